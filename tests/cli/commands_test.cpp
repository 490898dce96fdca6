// The commands that look at models without benchmarking them, as a user runs them.
#include "ops/cuda_loader.h"
#include "support/program.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>

namespace nibble {
namespace {

using nlohmann::json;
using test::ProgramEnd;

const std::string kGolden = std::string(NIBBLE_TEST_DATA) + "/golden/";

ProgramEnd nibble_program(const std::vector<std::string>& arguments) {
  const test::TempFolder folder;
  return test::run_program(NIBBLE_PROGRAM, arguments, folder.path());
}

TEST(KernelsCommand, ListsTheReferenceWithItsTraits) {
  const ProgramEnd end = nibble_program({"kernels", "--format", "json"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  bool found = false;
  for (const auto& row : json::parse(end.out)) {
    if (row["kernel"] != "reference" || row["device"] != "cpu") continue;
    found = true;
    EXPECT_EQ(row["in_all"], false);
    EXPECT_EQ(row["deterministic"], true);
    EXPECT_EQ(row["formats"], "f32, bf16, GPTQ 2, 3, 4, 8 bits, act-order");
  }
  EXPECT_TRUE(found) << end.out;
}

TEST(KernelsCommand, SaysWhyThereIsNoGpu) {
  std::string why;
  if (cuda_device_count(&why) > 0) GTEST_SKIP() << "there is a GPU";
  const ProgramEnd both = nibble_program({"kernels"});
  EXPECT_EQ(both.exit_code, 0) << both.err;
  EXPECT_NE(both.out.find("No GPU can be used here: "), std::string::npos) << both.out;
  EXPECT_EQ(nibble_program({"kernels", "--device", "cpu"}).out.find("No GPU"), std::string::npos);
  for (const std::vector<std::string>& words : {std::vector<std::string>{"kernels", "--device", "cuda"},
                                                {"bench", "machine", "--device", "cuda"},
                                                {"plan", "--model", kGolden + "qwen2", "--device", "cuda:1"},
                                                {"inspect", kGolden + "qwen2", "--device", "cuda"}}) {
    const ProgramEnd end = nibble_program(words);
    EXPECT_EQ(end.exit_code, 1) << end.out;
    EXPECT_NE(end.err.find("the device cuda cannot be used: "), std::string::npos) << end.err;
  }
  EXPECT_EQ(nibble_program({"kernels", "--device", "tpu"}).exit_code, 2);
}

TEST(InspectCommand, TellsArchitectureQuantisationAndWhatKernelsSay) {
  const ProgramEnd end = nibble_program({"inspect", kGolden + "gptq_b4_g32_actorder", "--device", "cpu"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  EXPECT_NE(end.out.find("architecture: llama, 2 layers, hidden 64"), std::string::npos) << end.out;
  EXPECT_NE(end.out.find("quantisation: GPTQ, 4 bits, group size 32, symmetric, desc_act; zeros as gptq (v1)"),
            std::string::npos)
      << end.out;
  EXPECT_NE(end.out.find("4 bits, group 32, sym, act-order"), std::string::npos) << end.out;
  EXPECT_NE(end.out.find("reference"), std::string::npos);
  EXPECT_NE(end.out.find("dense"), std::string::npos);
  EXPECT_EQ(end.out.find("model.embed_tokens.weight"), std::string::npos);
  EXPECT_NE(nibble_program({"inspect", kGolden + "qwen2", "--tensors"}).out.find("model.embed_tokens.weight"),
            std::string::npos);
}

TEST(InspectCommand, AMissingFolderIsOneSentence) {
  const ProgramEnd end = nibble_program({"inspect", "/no/such/folder"});
  EXPECT_EQ(end.exit_code, 1);
  EXPECT_EQ(std::count(end.err.begin(), end.err.end(), '\n'), 1) << end.err;
}

double part_of(const json& rows, const std::string& name) {
  for (const auto& row : rows) {
    if (row["part"] == name) return row["mb"];
  }
  ADD_FAILURE() << "no part " << name;
  return 0;
}

TEST(PlanCommand, PlansWithoutRunning) {
  const auto plan = [](const std::string& batch) {
    const ProgramEnd end =
        nibble_program({"plan", "--model", kGolden + "gptq_b4_g32", "--kernel", "reference", "--device", "cpu",
                        "--batch-size", batch, "--prompt-length", "64", "--new-tokens", "64", "--format", "json"});
    EXPECT_EQ(end.exit_code, 0) << end.err;
    return json::parse(end.out);
  };
  const json one = plan("1");
  const json four = plan("4");
  EXPECT_GT(part_of(one, "weights"), 0);
  EXPECT_DOUBLE_EQ(part_of(one, "weights"), part_of(four, "weights"));
  // The cache's parts are padded.
  EXPECT_NEAR(4 * part_of(one, "KV cache"), part_of(four, "KV cache"), 0.02 * part_of(four, "KV cache"));
  EXPECT_NEAR(part_of(one, "total"),
              part_of(one, "weights") + part_of(one, "embedding (the file's own pages)") + part_of(one, "KV cache") +
                  part_of(one, "activations") + part_of(one, "scratch of kernels"),
              1e-9);
}

TEST(PlanCommand, SaysTheLargestBatchAndWhatDoesNotFit) {
  const std::vector<std::string> words = {"plan",     "--model", kGolden + "gptq_b4_g32", "--kernel", "reference",
                                          "--device", "cpu"};
  const ProgramEnd fits = nibble_program(words);
  EXPECT_EQ(fits.exit_code, 0) << fits.err;
  EXPECT_NE(fits.out.find("This fits. The largest batch that does is "), std::string::npos) << fits.out;
  std::vector<std::string> large = words;
  large.insert(large.end(), {"--batch-size", "1000000000"});
  const ProgramEnd end = nibble_program(large);
  EXPECT_EQ(end.exit_code, 1);
  EXPECT_NE(end.out.find("This does not fit; the largest batch that does is "), std::string::npos)
      << end.out << end.err;
}

/// A golden model with a tokenizer of the letters a to z, and a text of them.
class PerplexityCommand : public testing::Test {
 protected:
  PerplexityCommand() {
    std::filesystem::copy(kGolden + "qwen2", folder_.path() / "model");
    json vocab = json::object();
    for (int i = 0; i < 26; ++i) vocab[std::string(1, static_cast<char>('a' + i))] = i;
    const json tokenizer = {{"version", "1.0"},
                            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
    folder_.write("model/tokenizer.json", tokenizer.dump());
    std::string text;
    for (int i = 0; i < 70; ++i) text += static_cast<char>('a' + i * i % 26);
    folder_.write("text.txt", text);
  }
  ProgramEnd run(std::vector<std::string> more) {
    more.insert(more.begin(), {"perplexity", "--model", "model", "--dataset", "text.txt", "--dtype", "f32", "--kernel",
                               "reference", "--device", "cpu", "--format", "json"});
    return test::run_program(NIBBLE_PROGRAM, more, folder_.path());
  }
  test::TempFolder folder_;
};

TEST_F(PerplexityCommand, ScoresATextByAProcedure) {
  const ProgramEnd end = run({"--context", "16"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const json row = json::parse(end.out)[0];
  EXPECT_EQ(row["procedure"], "gptq2048");
  EXPECT_EQ(row["windows"], 4);
  EXPECT_EQ(row["scored_tokens"], 4 * 15);
  EXPECT_EQ(row["tokens"], 70);
  EXPECT_GT(row["perplexity"], 1.0);
  const ProgramEnd strided = run({"--procedure", "strided", "--context", "16", "--stride", "16"});
  ASSERT_EQ(strided.exit_code, 0) << strided.err;
  EXPECT_EQ(json::parse(strided.out)[0]["scored_tokens"], 4 * 15 + 5);
}

// In every format, as optimum's script has it: the mean of what its progress bar shows.
TEST_F(PerplexityCommand, IsPrintedByTheBenchmarkAsOptimumHasIt) {
  const std::vector<std::string> words = {"bench",    "gptq",        "--classic", "--model",   "model", "--ppl",
                                          "text.txt", "--procedure", "gptq2048",  "--context", "16",    "--dtype",
                                          "f32",      "--device",    "cpu",       "--format",  "json"};
  const ProgramEnd end = test::run_program(NIBBLE_PROGRAM, words, folder_.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  EXPECT_NEAR(json::parse(end.out)[0]["perplexity"].get<double>(),
              json::parse(run({"--context", "16"}).out)[0]["mean_of_running"].get<double>(), 1e-3);
}

TEST_F(PerplexityCommand, FailsWithASentence) {
  const ProgramEnd brief = run({});
  EXPECT_EQ(brief.exit_code, 1);
  EXPECT_NE(brief.err.find("the text has 70 tokens"), std::string::npos) << brief.err;
  const ProgramEnd bos = run({"--procedure", "autogptq", "--context", "16"});
  EXPECT_EQ(bos.exit_code, 1);
  EXPECT_NE(bos.err.find("BOS"), std::string::npos) << bos.err;
  EXPECT_EQ(run({"--procedure", "other"}).exit_code, 2);
  const ProgramEnd stride = run({"--context", "16", "--stride", "8"});
  EXPECT_EQ(stride.exit_code, 2);
  EXPECT_NE(stride.err.find("--procedure strided"), std::string::npos) << stride.err;
}

}  // namespace
}  // namespace nibble
