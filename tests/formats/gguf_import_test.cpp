#include "formats/gguf_import.h"

#include "core/tensor.h"
#include "formats/checkpoint.h"
#include "formats/gguf_tokenizer.h"
#include "formats/json.h"
#include "support/expect_error.h"
#include "support/gguf_builder.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <set>

namespace nibble {
namespace {

using test::expect_error;
using test::GgufBuilder;
using test::TempFolder;

constexpr std::uint64_t kHidden = 16, kHeads = 2, kKvHeads = 1, kHeadDim = 8, kInner = 24, kVocab = 6;

float counted(std::size_t i) { return static_cast<float>(i); }

/// What to change in the small model that the tests import.
struct Change {
  std::string architecture = "llama";
  std::set<std::string> without;  // keys and tensors left out
  bool biases = false;            // q, k and v; of llama also the output
  bool untied = false;
  std::function<void(GgufBuilder&)> more = [](GgufBuilder&) {};
};

void tokenizer_keys(GgufBuilder& builder, const std::function<bool(const std::string&)>& wanted) {
  if (wanted("tokenizer.ggml.model")) builder.string("tokenizer.ggml.model", "gpt2");
  if (wanted("tokenizer.ggml.pre")) builder.string("tokenizer.ggml.pre", "smollm");
  builder.strings("tokenizer.ggml.tokens", {"<s>", "</s>", "a", "b", "ab", "<u>"});
  builder.array("tokenizer.ggml.token_type", 5, std::vector<std::int32_t>{3, 3, 1, 1, 1, 4});
  builder.strings("tokenizer.ggml.merges", {"a b"});
  builder.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 1);
  if (wanted("tokenizer.chat_template")) builder.string("tokenizer.chat_template", "{{ messages }}");
}

std::string model(const Change& change = {}) {
  GgufBuilder builder;
  const std::string& arch = change.architecture;
  const auto wanted = [&](const std::string& name) { return !change.without.contains(name); };
  builder.string("general.architecture", arch).string("general.name", "tiny");
  const auto number = [&](const std::string& name, std::uint64_t value) {
    if (wanted(name)) builder.u32(arch + "." + name, static_cast<std::uint32_t>(value));
  };
  number("embedding_length", kHidden);
  number("block_count", 1);
  number("attention.head_count", kHeads);
  number("attention.head_count_kv", kKvHeads);
  number("feed_forward_length", kInner);
  number("context_length", 128);
  builder.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f).f32(arch + ".rope.freq_base", 500000.0f);
  tokenizer_keys(builder, wanted);
  const auto tensor = [&](const std::string& name, const std::vector<std::uint64_t>& dims) {
    if (wanted(name)) builder.floats(name, dims, counted);
  };
  tensor("token_embd.weight", {kHidden, kVocab});
  tensor("output_norm.weight", {kHidden});
  tensor("blk.0.attn_norm.weight", {kHidden});
  tensor("blk.0.ffn_norm.weight", {kHidden});
  tensor("blk.0.attn_q.weight", {kHidden, kHeads * kHeadDim});
  tensor("blk.0.attn_k.weight", {kHidden, kKvHeads * kHeadDim});
  tensor("blk.0.attn_v.weight", {kHidden, kKvHeads * kHeadDim});
  tensor("blk.0.attn_output.weight", {kHeads * kHeadDim, kHidden});
  tensor("blk.0.ffn_gate.weight", {kHidden, kInner});
  tensor("blk.0.ffn_up.weight", {kHidden, kInner});
  tensor("blk.0.ffn_down.weight", {kInner, kHidden});
  if (change.biases) {
    tensor("blk.0.attn_q.bias", {kHeads * kHeadDim});
    tensor("blk.0.attn_k.bias", {kKvHeads * kHeadDim});
    tensor("blk.0.attn_v.bias", {kKvHeads * kHeadDim});
    if (arch == "llama") tensor("blk.0.attn_output.bias", {kHidden});
  }
  if (arch == "qwen3") {
    tensor("blk.0.attn_q_norm.weight", {kHeadDim});
    tensor("blk.0.attn_k_norm.weight", {kHeadDim});
  }
  if (change.untied) tensor("output.weight", {kHidden, kVocab});
  change.more(builder);
  return builder.bytes();
}

class GgufImportTest : public testing::Test {
 protected:
  std::filesystem::path out() const { return folder_.path() / "out"; }
  GgufImportResult import(const Change& change = {}, GgufImportOptions options = {}) const {
    options.overwrite = true;
    return import_gguf(folder_.write("model.gguf", model(change)), out(), options);
  }
  void expect_refused(std::string_view part, const Change& change) const {
    expect_error(part, [&] { import(change); });
    EXPECT_FALSE(std::filesystem::exists(out() / "config.json"));
  }
  std::vector<float> values(const std::string& name) const { return to_float(Checkpoint(out()).tensor(name)); }
  nlohmann::json json(const char* name) const { return read_json_file(out() / name); }

  TempFolder folder_;
};

/// The row of the file that must come out at `row`: half r, pair i of a head is stored at 2i + r.
std::size_t stored_row(std::size_t row) {
  const std::size_t head = row / kHeadDim;
  const std::size_t r = row % kHeadDim / (kHeadDim / 2);
  const std::size_t i = row % (kHeadDim / 2);
  return head * kHeadDim + 2 * i + r;
}

TEST_F(GgufImportTest, WritesAFolderThatSaysWhatTheFileSaid) {
  const GgufImportResult result = import();
  EXPECT_EQ(result.model_type, "llama");
  EXPECT_EQ(result.name, "tiny");
  EXPECT_EQ(result.tensors, 11);
  EXPECT_TRUE(result.tied);
  const nlohmann::json config = json("config.json");
  EXPECT_EQ(config["architectures"], nlohmann::json::array({"LlamaForCausalLM"}));
  EXPECT_EQ(config["hidden_size"], kHidden);
  EXPECT_EQ(config["num_hidden_layers"], 1);
  EXPECT_EQ(config["num_attention_heads"], kHeads);
  EXPECT_EQ(config["num_key_value_heads"], kKvHeads);
  EXPECT_EQ(config["head_dim"], kHeadDim);
  EXPECT_EQ(config["intermediate_size"], kInner);
  EXPECT_EQ(config["vocab_size"], kVocab);
  EXPECT_EQ(config["max_position_embeddings"], 128);
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config["rope_theta"], 500000.0);
  EXPECT_TRUE(config["rope_scaling"].is_null());
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["attention_bias"], false);
  EXPECT_EQ(config["torch_dtype"], "float16");
  EXPECT_EQ(json("generation_config.json"), (nlohmann::json{{"bos_token_id", 0}, {"eos_token_id", 1}}));
  EXPECT_EQ(json("tokenizer_config.json")["chat_template"], "{{ messages }}");
  EXPECT_EQ(json("tokenizer_config.json")["eos_token"], "</s>");
  EXPECT_FALSE(Checkpoint(out()).has("lm_head.weight"));
}

TEST_F(GgufImportTest, PutsRotaryRowsBackInOrder) {
  Change change;
  change.biases = true;
  import(change);
  for (const auto& [name, rows] :
       {std::pair<std::string, std::uint64_t>{"q_proj", kHeads * kHeadDim}, {"k_proj", kKvHeads * kHeadDim}}) {
    const std::vector<float> weight = values("model.layers.0.self_attn." + name + ".weight");
    const std::vector<float> bias = values("model.layers.0.self_attn." + name + ".bias");
    for (std::size_t row = 0; row < rows; ++row) {
      EXPECT_EQ(bias[row], static_cast<float>(stored_row(row)));
      for (std::size_t c = 0; c < kHidden; ++c)
        EXPECT_EQ(weight[row * kHidden + c], static_cast<float>(stored_row(row) * kHidden + c));
    }
  }
  const std::vector<float> v = values("model.layers.0.self_attn.v_proj.weight");
  const std::vector<float> down = values("model.layers.0.mlp.down_proj.weight");
  for (std::size_t i = 0; i < v.size(); ++i) EXPECT_EQ(v[i], static_cast<float>(i));
  for (std::size_t i = 0; i < down.size(); ++i) EXPECT_EQ(down[i], static_cast<float>(i));
  EXPECT_EQ(json("config.json")["attention_bias"], true);
}

TEST_F(GgufImportTest, LeavesTheRowsOfOtherArchitecturesAlone) {
  for (const char* architecture : {"qwen2", "qwen3"}) {
    Change change;
    change.architecture = architecture;
    change.biases = change.architecture == "qwen2";
    change.untied = true;
    const GgufImportResult result = import(change);
    EXPECT_FALSE(result.tied);
    const std::vector<float> q = values("model.layers.0.self_attn.q_proj.weight");
    for (std::size_t i = 0; i < q.size(); ++i) EXPECT_EQ(q[i], static_cast<float>(i));
    EXPECT_EQ(json("config.json")["model_type"], architecture);
    EXPECT_EQ(json("config.json")["tie_word_embeddings"], false);
    EXPECT_TRUE(Checkpoint(out()).has("lm_head.weight"));
    EXPECT_EQ(Checkpoint(out()).has("model.layers.0.self_attn.k_norm.weight"), change.architecture == "qwen3");
  }
}

TEST_F(GgufImportTest, WritesBf16AndRefusesWhatF16CannotHold) {
  Change change;
  change.without = {"output_norm.weight"};
  change.more = [](GgufBuilder& builder) {
    builder.floats("output_norm.weight", {kHidden}, [](std::size_t) { return 70000.0f; });
  };
  expect_refused("tensor output_norm.weight holds 70000, which f16 cannot; import with --dtype bf16", change);
  import(change, {DType::bf16, true});
  EXPECT_EQ(Checkpoint(out()).tensor("model.norm.weight").dtype, DType::bf16);
  EXPECT_NEAR(values("model.norm.weight")[0], 70000.0f, 300.0f);
  EXPECT_EQ(json("config.json")["torch_dtype"], "bfloat16");
  EXPECT_THROW(import(change, {DType::f32, true}), UsageError);
}

TEST_F(GgufImportTest, KeepsOutOfAFolderThatIsInUse) {
  const auto file = folder_.write("model.gguf", model());
  folder_.write("out/notes.txt", "mine");
  expect_error("has files already; choose another, or pass --overwrite", [&] { import_gguf(file, out()); });
  EXPECT_NO_THROW(import_gguf(file, out(), {DType::f16, true}));
}

TEST_F(GgufImportTest, RefusesModelsThatItCannotExpress) {
  const auto changed = [](const std::function<void(Change&)>& edit) {
    Change change;
    edit(change);
    return change;
  };
  const auto with = [&](const std::function<void(GgufBuilder&)>& more) {
    return changed([&](Change& c) { c.more = more; });
  };
  const auto without = [&](const std::string& name) { return changed([&](Change& c) { c.without = {name}; }); };
  expect_refused("the architecture is gemma", changed([](Change& c) { c.architecture = "gemma"; }));
  expect_refused("has no key llama.embedding_length", without("embedding_length"));
  expect_refused("has no key llama.context_length", without("context_length"));
  expect_refused("has no key tokenizer.ggml.model", without("tokenizer.ggml.model"));
  expect_refused("has no embedding", without("token_embd.weight"));
  expect_refused("has no tensor blk.0.ffn_up.weight", without("blk.0.ffn_up.weight"));
  expect_refused("has no tensor output_norm.weight", without("output_norm.weight"));
  expect_refused("mixture of experts", with([](GgufBuilder& b) { b.u32("llama.expert_count", 8); }));
  expect_refused("llama.vocab_size is 7, but the embedding has 6 rows",
                 with([](GgufBuilder& b) { b.u32("llama.vocab_size", 7); }));
  expect_refused("only 4 of 8 features of a head are rotated",
                 with([](GgufBuilder& b) { b.u32("llama.rope.dimension_count", 4); }));
  expect_refused("keys and values differ in size",
                 with([](GgufBuilder& b) { b.u32("llama.attention.value_length", 4); }));
  expect_refused("has the tensor blk.0.extra, for which",
                 with([](GgufBuilder& b) { b.floats("blk.0.extra", {1}, counted); }));
  expect_refused("llama.rope.scaling.type is magic", with([](GgufBuilder& b) {
                   b.string("llama.rope.scaling.type", "magic").f32("llama.rope.scaling.factor", 2);
                 }));
  expect_refused("some attention projections have a bias",
                 with([](GgufBuilder& b) { b.floats("blk.0.attn_q.bias", {16}, counted); }));
  expect_refused("qwen2 needs biases", changed([](Change& c) { c.architecture = "qwen2"; }));
  expect_refused("norms of q and k belong to qwen3",
                 with([](GgufBuilder& b) { b.floats("blk.0.attn_q_norm.weight", {8}, counted); }));
  expect_refused("tensor output.weight has the shape [5, 16], but the file's keys make it [6, 16]",
                 with([](GgufBuilder& b) { b.floats("output.weight", {16, 5}, counted); }));
  expect_refused("chat template is not valid UTF-8", changed([](Change& c) {
                   c.without = {"tokenizer.chat_template"};
                   c.more = [](GgufBuilder& b) { b.string("tokenizer.chat_template", "a\xff"); };
                 }));
}

TEST_F(GgufImportTest, WritesRotaryScaling) {
  Change linear;
  linear.more = [](GgufBuilder& b) {
    b.string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4);
  };
  import(linear);
  EXPECT_EQ(json("config.json")["rope_scaling"], (nlohmann::json{{"rope_type", "linear"}, {"factor", 4.0}}));
  Change yarn;
  yarn.more = [](GgufBuilder& b) {
    b.string("llama.rope.scaling.type", "yarn")
        .f32("llama.rope.scaling.factor", 4)
        .u32("llama.rope.scaling.original_context_length", 64);
  };
  import(yarn);
  EXPECT_EQ(json("config.json")["rope_scaling"],
            (nlohmann::json{{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}}));
}

/// Divisors as llama.cpp's converter writes them for Llama 3.1, from the scaling's definition with its wavelength
/// bands.
float llama3_divisor(std::size_t i) {
  const double wavelength = 2 * M_PI * std::pow(500000.0, 2.0 * static_cast<double>(i) / kHeadDim);
  if (wavelength < 8192.0 / 4.0) return 1.0f;
  if (wavelength > 8192.0) return 8.0f;
  const double smooth = (8192.0 / wavelength - 1.0) / 3.0;
  return static_cast<float>(1.0 / ((1.0 - smooth) / 8.0 + smooth));
}

TEST_F(GgufImportTest, RecognisesTheScalingOfLlama3) {
  Change change;
  change.more = [](GgufBuilder& b) { b.floats("rope_freqs.weight", {kHeadDim / 2}, llama3_divisor); };
  import(change);
  const nlohmann::json scaling = json("config.json")["rope_scaling"];
  EXPECT_EQ(scaling["rope_type"], "llama3");
  EXPECT_EQ(scaling["factor"], 8.0);
  EXPECT_EQ(scaling["original_max_position_embeddings"], 8192);
  std::filesystem::remove_all(out());
  change.more = [](GgufBuilder& b) {
    b.floats("rope_freqs.weight", {kHeadDim / 2}, [](std::size_t i) { return i == 0 ? 3.0f : 1.0f; });
  };
  expect_refused("is not the table of Llama 3's scaling", change);
}

nlohmann::ordered_json tokenizer_of(const std::function<void(GgufBuilder&)>& fill) {
  GgufBuilder builder;
  fill(builder);
  const std::string file = builder.bytes();
  return gguf_tokenizer_json(GgufContents::parse(std::as_bytes(std::span(file.data(), file.size())), "x.gguf"));
}

nlohmann::ordered_json byte_level(const std::string& pre) {
  return tokenizer_of([&](GgufBuilder& b) {
    tokenizer_keys(b, [](const std::string& name) { return name != "tokenizer.ggml.pre"; });
    b.string("tokenizer.ggml.pre", pre);
  });
}

TEST(GgufTokenizerTest, WritesByteLevelBpe) {
  const nlohmann::ordered_json json = byte_level("smollm");
  EXPECT_EQ(json["model"]["type"], "BPE");
  EXPECT_EQ(json["model"]["vocab"].size(), 6U);
  EXPECT_EQ(json["model"]["vocab"]["ab"], 4);
  EXPECT_EQ(json["model"]["merges"], nlohmann::ordered_json::array({"a b"}));
  ASSERT_EQ(json["added_tokens"].size(), 3U);
  EXPECT_EQ(json["added_tokens"][0]["special"], true);
  EXPECT_EQ(json["added_tokens"][2]["content"], "<u>");
  EXPECT_EQ(json["added_tokens"][2]["special"], false);
  EXPECT_EQ(json["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
  EXPECT_EQ(json["pre_tokenizer"]["pretokenizers"][1]["type"], "ByteLevel");
  EXPECT_EQ(json["decoder"]["type"], "ByteLevel");
  EXPECT_TRUE(json["post_processor"].is_null());
}

TEST(GgufTokenizerTest, ChoosesThePreTokenizerByName) {
  EXPECT_EQ(byte_level("gpt-2")["pre_tokenizer"]["type"], "ByteLevel");
  const auto llama3 = byte_level("llama-bpe");
  EXPECT_EQ(llama3["model"]["ignore_merges"], true);
  EXPECT_NE(llama3["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].get<std::string>().find(R"(|\p{N}{1,3}|)"),
            std::string::npos);
  EXPECT_EQ(llama3["post_processor"]["processors"][1]["single"][0]["SpecialToken"]["id"], "<s>");
  const auto qwen = byte_level("qwen2");
  EXPECT_EQ(qwen["normalizer"]["type"], "NFC");
  EXPECT_EQ(qwen["model"]["ignore_merges"], false);
  EXPECT_NE(qwen["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].get<std::string>().find(R"(|\p{N}|)"),
            std::string::npos);
  EXPECT_TRUE(qwen["post_processor"].is_null());
  expect_error("tokenizer.ggml.pre is klingon", [] { byte_level("klingon"); });
}

void sentencepiece_keys(GgufBuilder& b) {
  b.string("tokenizer.ggml.model", "llama");
  b.strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "c", "bc", "ab", "abc", "[PAD9]"});
  b.array("tokenizer.ggml.scores", 6, std::vector<float>{0, 0, 0, 0, -10, -11, -12, -2, -1, -3, 0});
  b.array("tokenizer.ggml.token_type", 5, std::vector<std::int32_t>{2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 5});
  b.u32("tokenizer.ggml.bos_token_id", 1)
      .u32("tokenizer.ggml.eos_token_id", 2)
      .u32("tokenizer.ggml.unknown_token_id", 0);
}

TEST(GgufTokenizerTest, RebuildsMergesFromScores) {
  const nlohmann::ordered_json json = tokenizer_of(sentencepiece_keys);
  // By falling score of the whole, then of the left part: "ab" -1, "bc" -2, "abc" -3 from ab+c (-1) before a+bc (-10).
  EXPECT_EQ(json["model"]["merges"], nlohmann::ordered_json::array({"a b", "b c", "ab c", "a bc"}));
  EXPECT_EQ(json["model"]["byte_fallback"], true);
  EXPECT_EQ(json["model"]["fuse_unk"], true);
  ASSERT_EQ(json["added_tokens"].size(), 3U);
  EXPECT_EQ(json["added_tokens"][0]["content"], "<unk>");
  EXPECT_EQ(json["added_tokens"][0]["special"], true);
  EXPECT_EQ(json["model"]["unk_token"], "<unk>");
  EXPECT_FALSE(json["model"]["vocab"].contains("[PAD9]"));
  EXPECT_EQ(json["normalizer"]["normalizers"][0]["type"], "Prepend");
  EXPECT_EQ(json["normalizer"]["normalizers"][1]["pattern"]["String"], " ");
  EXPECT_EQ(json["decoder"]["decoders"][1]["type"], "ByteFallback");
  EXPECT_EQ(json["decoder"]["decoders"].size(), 4U);
  EXPECT_EQ(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
  EXPECT_EQ(json["post_processor"]["special_tokens"]["<s>"]["ids"], nlohmann::ordered_json::array({1}));
}

TEST(GgufTokenizerTest, AddsNoSpaceWhereTheFileSaysSo) {
  const nlohmann::ordered_json json = tokenizer_of([](GgufBuilder& b) {
    sentencepiece_keys(b);
    b.boolean("tokenizer.ggml.add_space_prefix", false)
        .boolean("tokenizer.ggml.add_bos_token", false)
        .boolean("tokenizer.ggml.add_eos_token", true);
  });
  EXPECT_EQ(json["normalizer"]["normalizers"].size(), 1U);
  EXPECT_EQ(json["decoder"]["decoders"].size(), 3U);
  EXPECT_EQ(json["post_processor"]["single"][0]["Sequence"]["id"], "A");
  EXPECT_EQ(json["post_processor"]["single"][1]["SpecialToken"]["id"], "</s>");
}

TEST(GgufTokenizerTest, RefusesTokenizersThatMakeNoSense) {
  expect_error("tokenizer.ggml.model is bert",
               [] { tokenizer_of([](GgufBuilder& b) { b.string("tokenizer.ggml.model", "bert"); }); });
  expect_error("has no tokens", [] { tokenizer_of([](GgufBuilder& b) { b.string("tokenizer.ggml.model", "gpt2"); }); });
  const auto broken = [](const std::function<void(GgufBuilder&)>& more) {
    return [more] {
      tokenizer_of([&](GgufBuilder& b) {
        b.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "gpt-2");
        more(b);
      });
    };
  };
  expect_error("tokens 0 and 1 are the same",
               broken([](GgufBuilder& b) { b.strings("tokenizer.ggml.tokens", {"a", "a"}); }));
  expect_error("1 tokens have 2 token types", broken([](GgufBuilder& b) {
                 b.strings("tokenizer.ggml.tokens", {"a"})
                     .array("tokenizer.ggml.token_type", 5, std::vector<std::int32_t>{1, 1});
               }));
  expect_error("the entry \"ab\", which is not two tokens", broken([](GgufBuilder& b) {
                 b.strings("tokenizer.ggml.tokens", {"a"}).strings("tokenizer.ggml.merges", {"ab"});
               }));
  expect_error("bos_token_id is 9, but there are 1 tokens", broken([](GgufBuilder& b) {
                 b.strings("tokenizer.ggml.tokens", {"a"})
                     .u32("tokenizer.ggml.bos_token_id", 9)
                     .boolean("tokenizer.ggml.add_bos_token", true);
               }));
  expect_error("have 0 scores", [] {
    tokenizer_of(
        [](GgufBuilder& b) { b.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", {"a"}); });
  });
}

TEST(GgufTokenizerTest, EndsOnTurnsToo) {
  GgufBuilder builder;
  tokenizer_keys(builder, [](const std::string&) { return true; });
  builder.u32("tokenizer.ggml.eot_token_id", 5);
  const std::string file = builder.bytes();
  const auto gguf = GgufContents::parse(std::as_bytes(std::span(file.data(), file.size())), "x.gguf");
  EXPECT_EQ(gguf_generation_config_json(gguf)["eos_token_id"], (nlohmann::ordered_json{1, 5}));
}

}  // namespace
}  // namespace nibble
