// The encoder benchmark as a user runs it: `nibble bench bettertransformer`, `benchmark_bettertransformer`.
#include "support/program.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace nibble {
namespace {

using test::file_text;
using test::ProgramEnd;

const std::string kModel = std::string(NIBBLE_TEST_DATA) + "/golden_encoders/bert";
const std::string kProgram = NIBBLE_PROGRAM;
const std::string kScript =
    (std::filesystem::path(NIBBLE_PROGRAM).parent_path() / "benchmark_bettertransformer").string();

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

std::vector<std::string> bench(std::vector<std::string> more) {
  std::vector<std::string> out = {
      "bench", "bettertransformer", "--model", kModel, "--num-batches", "2", "--threads", "1", "--batch-size",
      "2",     "--seqlen",          "16"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

TEST(BenchmarkBettertransformer, WritesWhatOptimumsScriptDoes) {
  const test::TempFolder folder;
  const ProgramEnd end = test::run_program(
      kScript,
      {"--model-name", kModel, "--num-batches", "1", "--batch-size", "2", "--max-seqlen", "16", "--threads", "1"},
      folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  std::string name = kModel;
  std::replace(name.begin(), name.end(), '/', '-');
  const auto rows = lines_of(file_text(folder.path() / ("log_" + name + ".csv")));
  ASSERT_EQ(rows.size(), 6u);  // five shares of padding
  EXPECT_EQ(rows[0],
            "num_batches, batch_size, seq_len, is cuda, is half, use mask, pad percentage, Latency eager (ms), Latency "
            "BT (ms), Speedup (%), Mem eager (MB), Mem BT (MB), Mem saved (%)");
  EXPECT_EQ(rows[1].rfind("1,2,16,False,False,True,0.000,", 0), 0u) << rows[1];
  EXPECT_EQ(rows[5].rfind("1,2,16,False,False,True,0.750,", 0), 0u) << rows[5];
}

TEST(BenchmarkBettertransformerVit, WritesWhatOptimumsScriptDoes) {
  const test::TempFolder folder;
  const std::string model = std::string(NIBBLE_TEST_DATA) + "/golden_encoders/vit";
  const ProgramEnd end = test::run_program(
      kScript + "_vit", {"--model-name", model, "--num-batches", "1", "--threads", "1"}, folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  std::string name = model;
  std::replace(name.begin(), name.end(), '/', '-');
  const auto rows = lines_of(file_text(folder.path() / ("log_" + name + ".csv")));
  ASSERT_EQ(rows.size(), 6u);  // batch sizes 2, 4, 8, 16, 32
  EXPECT_EQ(rows[0], "num_batches, batch_size, is_cuda, is_half, HF_time, BT_time, Speedup");
  EXPECT_EQ(rows[1].rfind("1,2,False,False,0.", 0), 0u) << rows[1];
  EXPECT_EQ(rows[5].rfind("1,32,False,False,0.", 0), 0u) << rows[5];
}

TEST(BenchmarkBettertransformer, KeepsRowsAndPrintsEachFormat) {
  const test::TempFolder folder;
  const ProgramEnd end = test::run_program(
      kProgram, bench({"--padding", "0,0.5", "--dtype", "f32,bf16", "--out", "results", "--format", "jsonl"}),
      folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const auto rows = lines_of(end.out);
  ASSERT_EQ(rows.size(), 4u);
  const nlohmann::json last = nlohmann::json::parse(rows.back());
  EXPECT_EQ(last.at("status"), "ok");
  EXPECT_EQ(last.at("dtype"), "bf16");
  EXPECT_EQ(last.at("pad_percentage"), 0.5);
  EXPECT_GT(last.at("fast_median_ms"), 0);
  EXPECT_GT(last.at("tokens"), 0);
  EXPECT_EQ(lines_of(file_text(folder.path() / "results" / "rows.jsonl")), rows);
  EXPECT_EQ(lines_of(file_text(folder.path() / "results" / "rows.csv")).size(), 5u);
  EXPECT_NE(file_text(folder.path() / "results" / "table.md").find("| Eager / fast |"), std::string::npos);
}

TEST(BenchmarkBettertransformer, TakesLengthsFromAFile) {
  const test::TempFolder folder;
  std::ofstream(folder.path() / "lengths") << "5\n9\n";
  const ProgramEnd end = test::run_program(
      kProgram, bench({"--lengths-file", "lengths", "--path", "fast", "--format", "jsonl"}), folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const nlohmann::json row = nlohmann::json::parse(end.out);
  EXPECT_LE(row.at("tokens"), 18);
  EXPECT_TRUE(row.at("latency_eager_ms").is_null());
}

TEST(BenchmarkBettertransformer, TimesRecordings) {
  const test::TempFolder folder;
  const std::string models = std::string(NIBBLE_TEST_DATA) + "/golden_encoders/";
  const auto run = [&](const std::string& model, std::vector<std::string> more) {
    std::vector<std::string> all = {
        "bench", "bettertransformer", "--model", models + model, "--num-batches", "1", "--threads",
        "1",     "--batch-size",      "2",       "--format",     "jsonl"};
    all.insert(all.end(), more.begin(), more.end());
    return test::run_program(kProgram, all, folder.path());
  };
  const ProgramEnd padded = run("wav2vec2_stable", {"--seqlen", "700", "--padding", "0,0.5"});
  ASSERT_EQ(padded.exit_code, 0) << padded.err;
  const auto rows = lines_of(padded.out);
  ASSERT_EQ(rows.size(), 2u);
  const nlohmann::json full = nlohmann::json::parse(rows[0]);
  const nlohmann::json half = nlohmann::json::parse(rows[1]);
  EXPECT_EQ(full.at("status"), "ok");
  EXPECT_EQ(full.at("seq_len"), 700);
  EXPECT_EQ(full.at("tokens"), 2 * 34);  // rows: 139, 69, 34 frames
  EXPECT_EQ(half.at("status"), "ok");
  EXPECT_LT(half.at("tokens"), full.at("tokens"));
  // Nothing but the model's own length can be asked of a model with one.
  const ProgramEnd fixed = run("whisper_encoder", {"--path", "fast"});
  ASSERT_EQ(fixed.exit_code, 0) << fixed.err;
  EXPECT_EQ(nlohmann::json::parse(fixed.out).at("seq_len"), 28);
  EXPECT_EQ(run("wav2vec2", {"--seqlen", "29"}).exit_code, 2);
}

TEST(BenchAttention, TimesBothWays) {
  const test::TempFolder folder;
  const ProgramEnd end = test::run_program(
      kProgram, {"bench",      "attention", "--batch-size", "2",     "--seqlen",  "5,300",
                 "--head-dim", "8",         "--hidden",     "24",    "--mask",    "none,causal,padding",
                 "--dtype",    "f32,bf16",  "--seconds",    "0.001", "--threads", "1",
                 "--format",   "jsonl"},
      folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err << end.out;
  const auto rows = lines_of(end.out);
  ASSERT_EQ(rows.size(), 12u);
  for (const std::string& text : rows) {
    const nlohmann::json row = nlohmann::json::parse(text);
    EXPECT_EQ(row.at("status"), "ok");
    EXPECT_EQ(row.at("heads"), 3);
    EXPECT_GT(row.at("fused_ms"), 0);
    // Matrices of scores outgrow tiles with the length.
    if (row.at("length") == 300) {
      EXPECT_GT(row.at("math_mb"), row.at("fused_mb")) << text;
    }
  }
  EXPECT_EQ(test::run_program(kProgram, {"bench", "attention", "--mask", "alibi"}, folder.path()).exit_code, 2);
}

TEST(BenchmarkBettertransformer, RefusesWithASentence) {
  const test::TempFolder folder;
  const auto refused = [&](std::vector<std::string> more, const std::string& part, int code = 2) {
    const ProgramEnd end = test::run_program(kProgram, bench(std::move(more)), folder.path());
    EXPECT_EQ(end.exit_code, code) << end.err;
    EXPECT_NE(end.err.find(part), std::string::npos) << end.err;
    EXPECT_EQ(end.out, "");
  };
  refused({"--is_decoder"}, "measured by nibble bench gptq");
  refused({"--use-cuda", "--device", "cpu"}, "leave one out");
  refused({"--dtype", "f16", "--device", "cpu"}, "expected f32 or bf16");
  refused({"--seqlen", "4096"}, "takes at most");
  refused({"--path", "eager"}, "give fast, or both");
  refused({"--lengths-file", "nowhere"}, "nowhere", 1);
}

}  // namespace
}  // namespace nibble
