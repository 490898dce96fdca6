// The benchmark as a user runs it: the programs `nibble` and `benchmark_gptq`, with their files and exit codes.
#include "support/program.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <sstream>

namespace nibble {
namespace {

using test::file_text;
using test::ProgramEnd;

const std::string kQuantised = std::string(NIBBLE_TEST_DATA) + "/golden/gptq_b4_g32";
const std::string kProgram = NIBBLE_PROGRAM;
const std::string kClassicProgram = (std::filesystem::path(NIBBLE_PROGRAM).parent_path() / "benchmark_gptq").string();

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

/// A small case: the reference kernel on a toy model.
std::vector<std::string> small(std::vector<std::string> more = {}) {
  std::vector<std::string> out = {"--gptq-model",
                                  kQuantised,
                                  "--gptq",
                                  "--kernel",
                                  "reference",
                                  "--num-batches",
                                  "2",
                                  "--prompt-length",
                                  "4",
                                  "--new-tokens",
                                  "3",
                                  "--threads",
                                  "1",
                                  "--device",
                                  "cpu"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

std::vector<std::string> bench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"bench", "gptq"});
  return arguments;
}

// The file's name has the whole path of the model in it.
std::filesystem::path classic_file(const std::filesystem::path& folder) {
  std::string name = kQuantised;
  std::replace(name.begin(), name.end(), '/', '-');
  return folder / ("log_" + name + "_gptq.csv");
}

TEST(BenchmarkGptq, PrintsAndWritesWhatOptimumsScriptDoes) {
  const test::TempFolder folder;
  const ProgramEnd end = test::run_program(kClassicProgram, small({"--batch-size", "1,2"}), folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  EXPECT_EQ(end.out.rfind("### Batch size = 1\n\n| gptq | act_order | bits | group_size | kernel    | Load time (s) | "
                          "Per-token latency (ms) | Throughput (tok/s) | Peak memory (MB) |\n",
                          0),
            0u)
      << end.out;
  EXPECT_NE(end.out.find("### Batch size = 2\n"), std::string::npos);
  const auto rows = lines_of(file_text(classic_file(folder.path())));
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(
      rows[0],
      "gptq, act_order, bits, group_size, kernel, num_batches, batch_size, prompt_length, new_tokens, Load time (s), "
      "Per-token latency (ms), Throughput (tok/s), Max memory (MB)");
  EXPECT_EQ(rows[1].rfind("True,False,4,32,reference,2,1,4,3,", 0), 0u) << rows[1];
  EXPECT_EQ(rows[2].rfind("True,False,4,32,reference,2,2,4,3,", 0), 0u) << rows[2];
  // A second run adds to the file; a file with other columns is left alone.
  EXPECT_EQ(test::run_program(kClassicProgram, small(), folder.path()).exit_code, 0);
  EXPECT_EQ(lines_of(file_text(classic_file(folder.path()))).size(), 4u);
  std::ofstream(classic_file(folder.path())) << "other\n";
  const ProgramEnd refused = test::run_program(kClassicProgram, small(), folder.path());
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("--overwrite"), std::string::npos) << refused.err;
  EXPECT_EQ(file_text(classic_file(folder.path())), "other\n");
  EXPECT_EQ(test::run_program(kClassicProgram, small({"--overwrite"}), folder.path()).exit_code, 0);
  EXPECT_EQ(lines_of(file_text(classic_file(folder.path()))).size(), 2u);
}

TEST(BenchGptq, WritesRowsTableAndManifest) {
  const test::TempFolder folder;
  const ProgramEnd end =
      test::run_program(kProgram, bench(small({"--format", "json", "--out", "results"})), folder.path());
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const auto rows = nlohmann::json::parse(end.out);  // nothing else stands on stdout
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["status"], "ok");
  EXPECT_EQ(rows[0]["kernels"], "reference x9");
  EXPECT_EQ(rows[0]["threads"], 1);
  EXPECT_GT(rows[0]["per_token_latency_ms"], 0.0);
  EXPECT_GT(rows[0]["ttft_ms"], 0.0);
  EXPECT_GT(rows[0]["tpot_ms"], 0.0);
  EXPECT_GT(rows[0]["memory_gb_s"], 0.0);
  EXPECT_GT(rows[0]["verified_sites"], 0);
  EXPECT_LT(rows[0]["verified_error"], 1.0);
  EXPECT_GE(rows[0]["peak_memory_mb"], rows[0]["anonymous_mb"]);
  const auto out = folder.path() / "results";
  EXPECT_EQ(lines_of(file_text(out / "rows.csv")).size(), 2u);
  EXPECT_EQ(nlohmann::json::parse(file_text(out / "rows.jsonl")), rows[0]);
  EXPECT_NE(file_text(out / "table.md").find("| reference |"), std::string::npos);
  const auto manifest = nlohmann::json::parse(file_text(out / "manifest.json"))[0];
  EXPECT_EQ(manifest["started"], rows[0]["started"]);
  EXPECT_EQ(manifest["machine"]["threads"], 1);
  EXPECT_EQ(manifest["models"][0]["hash"].get<std::string>().rfind("xxh3-", 0), 0u);
  EXPECT_EQ(manifest["models"][0]["quantization"]["bits"], 4);
  EXPECT_FALSE(manifest["build"]["compiler"].get<std::string>().empty());
  EXPECT_TRUE(manifest["build"].contains("cuda"));
  EXPECT_FALSE(manifest["machine"].contains("gpu"));
  EXPECT_EQ(rows[0]["device"], "cpu");
  EXPECT_TRUE(rows[0]["gpu_memory_mb"].is_null());
  EXPECT_EQ(rows[0]["host_peak_mb"], rows[0]["peak_memory_mb"]);
  EXPECT_EQ(manifest["command"].back(), "results");
  // A second run adds to all of them.
  ASSERT_EQ(test::run_program(kProgram, bench(small({"--out", "results"})), folder.path()).exit_code, 0);
  EXPECT_EQ(lines_of(file_text(out / "rows.csv")).size(), 3u);
  EXPECT_EQ(lines_of(file_text(out / "rows.jsonl")).size(), 2u);
  EXPECT_EQ(nlohmann::json::parse(file_text(out / "manifest.json")).size(), 2u);
  const std::string tables = file_text(out / "table.md");
  EXPECT_NE(tables.find("| reference |"), tables.rfind("| reference |"));
}

TEST(BenchGptq, AnInterruptKeepsTheRowsThereAre) {
  const test::TempFolder folder;
  // The second case takes minutes.
  bool sent = false;
  const ProgramEnd end =
      test::run_program(kClassicProgram,
                        {"--gptq-model", kQuantised, "--gptq", "--kernel", "reference", "--num-batches", "20",
                         "--prompt-length", "2", "--new-tokens", "2,100000", "--threads", "1", "--device", "cpu"},
                        folder.path(), [&](pid_t pid) {
                          if (!sent && lines_of(file_text(classic_file(folder.path()))).size() == 2) {
                            sent = true;
                            kill(pid, SIGINT);
                          }
                        });
  EXPECT_TRUE(sent);
  EXPECT_EQ(end.exit_code, 130) << end.err;
  EXPECT_EQ(lines_of(file_text(classic_file(folder.path()))).size(), 2u);
  EXPECT_NE(end.out.find("| True | False     |    4 |         32 | reference |"), std::string::npos) << end.out;
  EXPECT_NE(end.err.find("interrupted; 1 rows"), std::string::npos) << end.err;
}

TEST(BenchGptq, ACaseThatFailsIsARowAndTheSweepGoesOn) {
  const test::TempFolder folder;
  // No machine has the memory for the second batch size.
  const ProgramEnd end =
      test::run_program(kProgram, bench(small({"--batch-size", "1,1000000000,2", "--format", "jsonl"})), folder.path());
  EXPECT_EQ(end.exit_code, 1);
  const auto rows = lines_of(end.out);
  ASSERT_EQ(rows.size(), 3u) << end.out << end.err;
  EXPECT_EQ(nlohmann::json::parse(rows[0])["status"], "ok");
  const std::string status = nlohmann::json::parse(rows[1])["status"];
  EXPECT_NE(status.find(" bytes) more than the "), std::string::npos) << status;
  EXPECT_TRUE(nlohmann::json::parse(rows[1])["per_token_latency_ms"].is_null());
  EXPECT_EQ(nlohmann::json::parse(rows[2])["status"], "ok");
}

TEST(BenchGptq, WrongUsageExitsWithTwoAndOneSentence) {
  const test::TempFolder folder;
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"bench", "gptq"},
                                                    {"bench", "gptq", "--model", kQuantised, "--use-marlin"},
                                                    {"bench", "gptq", "--model", kQuantised, "--batch-size", "none"},
                                                    {"bench", "gptq", "--no-such-flag"}}) {
    const ProgramEnd end = test::run_program(kProgram, arguments, folder.path());
    EXPECT_EQ(end.exit_code, 2) << end.err;
    EXPECT_EQ(end.out, "");
    EXPECT_NE(end.err, "");
  }
  const ProgramEnd missing =
      test::run_program(kProgram, {"bench", "gptq", "--model", "/no/such/folder"}, folder.path());
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_EQ(lines_of(missing.err).size(), 1u) << missing.err;
}

TEST(BenchGptq, RunsEncodersByTheirTasks) {
  const test::TempFolder folder;
  const std::string encoder = std::string(NIBBLE_TEST_DATA) + "/golden_encoders/bert";
  const auto run = [&](std::vector<std::string> more) {
    std::vector<std::string> all =
        bench({"--model", encoder, "--num-batches", "2", "--prompt-length", "8", "--batch-size", "3", "--threads", "1",
               "--device", "cpu", "--format", "jsonl"});
    all.insert(all.end(), more.begin(), more.end());
    return test::run_program(kProgram, all, folder.path());
  };
  const ProgramEnd end = run({"--task", "feature-extraction"});
  ASSERT_EQ(end.exit_code, 0) << end.err;
  const nlohmann::json row = nlohmann::json::parse(end.out);
  EXPECT_EQ(row.at("status"), "ok");
  EXPECT_EQ(row.at("new_tokens"), 1);
  EXPECT_GT(row.at("per_token_latency_ms"), 0);
  EXPECT_GT(row.at("verified_sites"), 0);
  EXPECT_NE(run({"--task", "text-generation"}).err.find("generates no text"), std::string::npos);
  EXPECT_NE(run({"--task", "summarization"}).err.find("expected text-generation, or for encoders"), std::string::npos);

  // The same with quantised weights.
  const std::string quantised = (folder.path() / "quantised").string();
  const std::string config = encoder + "/config.json";
  ASSERT_EQ(test::run_program(kProgram,
                              {"synth", "--config", config, "--gptq", "--bits", "4", "--group-size", "8", quantised},
                              folder.path())
                .exit_code,
            0);
  const ProgramEnd all = run({"--gptq-model", quantised, "--gptq", "--kernel", "all"});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_GE(lines_of(all.out).size(), 2u) << all.out;
}

}  // namespace
}  // namespace nibble
