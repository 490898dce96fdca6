#include "formats/checkpoint.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>

namespace nibble {
namespace {

using test::expect_error;
using test::TempFolder;

void write_weights(const std::filesystem::path& path, const std::vector<std::string>& names, char value = 'v') {
  std::filesystem::create_directories(path.parent_path());
  std::vector<TensorDeclaration> tensors;
  for (const std::string& name : names) tensors.push_back({name, DType::u8, {4}});
  SafetensorsWriter writer(path, tensors);
  const std::string data(4, value);
  for (const std::string& name : names) writer.append(name, std::as_bytes(std::span(data)));
  writer.commit();
}

std::string index_of(const std::vector<std::pair<std::string, std::string>>& map) {
  nlohmann::json json{{"metadata", {{"total_size", 1}}}, {"weight_map", nlohmann::json::object()}};
  for (const auto& [tensor, file] : map) json["weight_map"][tensor] = file;
  return json.dump();
}

char first_byte(const Checkpoint& checkpoint, std::string_view name) {
  return static_cast<char>(checkpoint.tensor(name).bytes[0]);
}

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() { folder_.write("config.json", R"({"model_type": "llama"})"); }
  void weights(const std::string& file, const std::vector<std::string>& names, char value = 'v') {
    write_weights(folder_.path() / file, names, value);
  }
  const std::filesystem::path& path() const { return folder_.path(); }

  TempFolder folder_;
};

TEST_F(CheckpointTest, OpensASingleFile) {
  weights("model.safetensors", {"b", "a"});
  const Checkpoint checkpoint(path());
  EXPECT_EQ(checkpoint.config()["model_type"], "llama");
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(checkpoint.has("a"));
  EXPECT_FALSE(checkpoint.has("c"));
  EXPECT_EQ(checkpoint.total_bytes(), 8U);
  EXPECT_EQ(first_byte(checkpoint, "a"), 'v');
  checkpoint.drop("a");
  EXPECT_EQ(first_byte(checkpoint, "a"), 'v');
  EXPECT_EQ(checkpoint.file_of("a"), path() / "model.safetensors");
}

TEST_F(CheckpointTest, OpensShardsAlsoInSubfolders) {
  weights("model-1.safetensors", {"a"}, '1');
  weights("layers/model-2.safetensors", {"b", "unlisted"}, '2');
  folder_.write("model.safetensors.index.json",
                index_of({{"a", "model-1.safetensors"}, {"b", "layers/model-2.safetensors"}}));
  const Checkpoint checkpoint(path());
  EXPECT_EQ(first_byte(checkpoint, "a"), '1');
  EXPECT_EQ(first_byte(checkpoint, "b"), '2');
  EXPECT_FALSE(checkpoint.has("unlisted"));
  EXPECT_EQ(checkpoint.total_bytes(), 8U);
}

TEST_F(CheckpointTest, PrefersTheNameThatTheQuantisationImplies) {
  weights("model.safetensors", {"a"}, 'm');
  weights("gptq_model-4bit-128g.safetensors", {"a"}, 'g');
  EXPECT_EQ(first_byte(Checkpoint(path()), "a"), 'm');
  folder_.write("quantize_config.json", R"({"bits": 4, "group_size": 128})");
  EXPECT_EQ(first_byte(Checkpoint(path()), "a"), 'g');
  weights("own-name.safetensors", {"a"}, 'o');
  folder_.write("quantize_config.json", R"({"bits": 4, "group_size": 128, "model_file_base_name": "own-name"})");
  EXPECT_EQ(first_byte(Checkpoint(path()), "a"), 'o');
}

TEST_F(CheckpointTest, TakesTheOnlyFileWhateverItsName) {
  weights("llama-GPTQ-4bit-128g.no-act.order.safetensors", {"a"});
  weights("autogptq_model_gptq_marlin.safetensors", {"b"});
  EXPECT_TRUE(Checkpoint(path()).has("a"));
  weights("another.safetensors", {"b"});
  expect_error("several weight files (another.safetensors, llama-", [&] { Checkpoint{path()}; });
}

TEST_F(CheckpointTest, SaysWhatAnAbsentTensorIsLike) {
  weights("model.safetensors",
          {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"});
  const Checkpoint checkpoint(path());
  const std::string sentence =
      test::error_of([&] { (void)checkpoint.tensor("model.layers.0.self_atn.q_proj.weight"); });
  EXPECT_NE(sentence.find(path().string() + " has no tensor model.layers.0.self_atn.q_proj.weight"), std::string::npos)
      << sentence;
  EXPECT_NE(sentence.find("most like it are model.layers.0.self_attn.q_proj.weight, model.layers.1"), std::string::npos)
      << sentence;
  EXPECT_EQ(sentence.find("lm_head"), std::string::npos) << sentence;
}

TEST_F(CheckpointTest, RefusesFoldersThatAreNoModel) {
  expect_error("is not a folder", [&] { Checkpoint(path() / "absent"); });
  const TempFolder empty;
  expect_error("has no config.json", [&] { Checkpoint{empty.path()}; });
  expect_error("has no safetensors file", [&] { Checkpoint{path()}; });
  folder_.write("pytorch_model.bin", "x");
  expect_error("pickled weights (.bin, .pt) are not read", [&] { Checkpoint{path()}; });
  folder_.write("config.json", "[1]");
  expect_error("config.json should be an object", [&] { Checkpoint{path()}; });
}

TEST_F(CheckpointTest, RefusesAnIndexThatLeavesTheFolder) {
  const TempFolder elsewhere;
  write_weights(elsewhere.path() / "x.safetensors", {"a"});
  for (const std::string& name :
       {std::string("../x.safetensors"), (elsewhere.path() / "x.safetensors").string(),
        std::string("sub/../../x.safetensors"), std::string(""), std::string("x\0.safetensors", 14)}) {
    folder_.write("model.safetensors.index.json", index_of({{"a", name}}));
    expect_error("is not inside of", [&] { Checkpoint{path()}; });
  }
  folder_.write("model.safetensors.index.json", index_of({}));
  folder_.write("quantize_config.json", R"({"model_file_base_name": "../x"})");
  expect_error("is not inside of", [&] { Checkpoint{path()}; });
}

TEST_F(CheckpointTest, RefusesAnIndexThatDoesNotFitItsFiles) {
  weights("model-1.safetensors", {"a"});
  folder_.write("model.safetensors.index.json", index_of({{"b", "model-1.safetensors"}}));
  expect_error("model-1.safetensors holds the tensor b, but it does not", [&] { Checkpoint{path()}; });
  folder_.write("model.safetensors.index.json", index_of({{"a", "model-2.safetensors"}}));
  expect_error("model-2.safetensors: No such file", [&] { Checkpoint{path()}; });
  folder_.write("model.safetensors.index.json", R"({"weight_map": {"a": 1}})");
  expect_error("weight_map.a should be the name of a file", [&] { Checkpoint{path()}; });
  folder_.write("model.safetensors.index.json", "{}");
  expect_error("has no weight_map", [&] { Checkpoint{path()}; });
  folder_.write("model.safetensors.index.json", index_of({}));
  expect_error("has no weight_map that names a tensor", [&] { Checkpoint{path()}; });
}

TEST_F(CheckpointTest, FollowsLinksAsTheHubCacheHasThem) {
  const TempFolder blobs;
  write_weights(blobs.path() / "0123abcd", {"a"});
  std::filesystem::create_symlink(blobs.path() / "0123abcd", path() / "model.safetensors");
  EXPECT_TRUE(Checkpoint(path()).has("a"));
}

TEST_F(CheckpointTest, HashTellsModelsApart) {
  weights("model.safetensors", {"a"});
  const std::string first = Checkpoint(path()).hash();
  EXPECT_EQ(first.size(), 37U);
  EXPECT_EQ(Checkpoint(path()).hash(), first);
  weights("model.safetensors", {"b"});
  const std::string renamed = Checkpoint(path()).hash();
  EXPECT_NE(renamed, first);
  folder_.write("config.json", R"({"model_type": "qwen2"})");
  EXPECT_NE(Checkpoint(path()).hash(), renamed);
}

}  // namespace
}  // namespace nibble
