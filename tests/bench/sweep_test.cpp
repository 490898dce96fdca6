#include "bench/sweep.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Sweep, GoesThroughSystemsFirstAndBatchSizesLast) {
  BenchSweep sweep;
  sweep.systems = {{"a", "/a", false, "dense", ""}, {"b", "/b", true, "packed", "f32"}};
  sweep.batch_sizes = {1, 4};
  sweep.prompt_lengths = {8, 16};
  sweep.new_tokens = {2};
  sweep.base.num_batches = 3;
  const auto cases = cases_of(sweep);
  ASSERT_EQ(cases.size(), 8u);
  EXPECT_EQ(cases[0].bench_case.folder, "/a");
  EXPECT_EQ(cases[1].bench_case.folder, "/b");
  EXPECT_EQ(cases[1].bench_case.kernel, "packed");
  EXPECT_EQ(cases[1].bench_case.dtype, "f32");
  EXPECT_EQ(cases[1].bench_case.num_batches, 3);
  EXPECT_EQ(cases[2].bench_case.prompt_length, 16);
  EXPECT_EQ(cases[3].bench_case.batch_size, 1);
  EXPECT_EQ(cases[4].bench_case.batch_size, 4);
  EXPECT_EQ(cases[4].bench_case.prompt_length, 8);
}

TEST(Sweep, PerplexityIsMeasuredOnceASystem) {
  BenchSweep sweep;
  sweep.systems = {{"a", "/a", false, "dense", ""}, {"b", "/b", true, "packed", ""}};
  sweep.batch_sizes = {1, 2, 4};
  EXPECT_TRUE(perplexity_cases_of(sweep).empty());
  sweep.base.perplexity_file = "text";
  const auto texts = perplexity_cases_of(sweep);
  ASSERT_EQ(texts.size(), 2u);
  EXPECT_FALSE(texts[0].bench_case.speed);
  EXPECT_EQ(texts[0].bench_case.perplexity_file, "text");
  for (const SweepCase& one : cases_of(sweep)) EXPECT_TRUE(one.bench_case.perplexity_file.empty());
}

TEST(BenchCase, TravelsAsJson) {
  BenchCase one;
  one.folder = "/m \"x\"";
  one.kernel = "packed";
  one.dtype = "f32";
  one.batch_size = 7;
  one.fuse = false;
  one.perplexity_stride = 16;
  one.seed = 0xffffffffffffffffu;
  const BenchCase back = bench_case_from_json(to_json(one));
  EXPECT_EQ(to_json(back), to_json(one));
  EXPECT_EQ(back.folder, one.folder);
  EXPECT_EQ(back.seed, one.seed);
  EXPECT_FALSE(back.fuse);
  EXPECT_EQ(back.perplexity_stride, 16);
}

TEST(BenchResult, TravelsAsJson) {
  BenchResult one;
  one.quantisation = {true, true, 3, -1};
  one.total_seconds = {0.5, 0.25};
  one.cached_share = 0.5;
  one.perplexity = 9.25;
  one.memory.file = 12345;
  one.load.tune = 0.125;
  one.load.upload = 0.25;
  one.layers = "o_proj: nibble (small_rows M<=16, dequantised above)";
  one.device = "NVIDIA H100";
  one.planned_arena = 17;
  one.planned_workspace = 18;
  one.gpu.peak = {std::size_t{81'000'000'000}, "process"};
  one.gpu.context = 500'000'000;
  one.gpu.run.throttle = 0x8000000000000004u;
  one.gpu.run.joules = 12.5;
  one.gpu.remarks = "held back by: power cap";
  const BenchResult back = bench_result_from_json(to_json(one));
  EXPECT_EQ(to_json(back), to_json(one));
  EXPECT_EQ(back.quantisation.group_size, -1);
  EXPECT_EQ(back.total_seconds, one.total_seconds);
  EXPECT_EQ(back.cached_share, one.cached_share);
  EXPECT_EQ(back.layers, one.layers);
  EXPECT_FALSE(back.perplexity_error.has_value());
  EXPECT_EQ(back.gpu.peak.bytes, std::size_t{81'000'000'000});
  EXPECT_EQ(back.gpu.peak.source, "process");
  EXPECT_EQ(back.gpu.run.throttle, 0x8000000000000004u);
  EXPECT_EQ(back.gpu.remarks, "held back by: power cap");
}

TEST(BenchCase, BadJsonIsASentence) {
  test::expect_error("should be a JSON object", [] { bench_case_from_json("[]"); });
  test::expect_error("wrong type", [] { bench_case_from_json(R"({"batch_size": "two"})"); });
  EXPECT_THROW(bench_result_from_json("{"), Error);
}

BenchResult run_script(const std::string& script, bool& interrupted, std::string& stages) {
  // `sh -c SCRIPT JSON`: the case is $0.
  return run_in_child(
      "/bin/sh", {"-c", script}, BenchCase{}, [&](std::string_view what, double) { stages += std::string(what) + ";"; },
      interrupted);
}

TEST(RunInChild, TakesTheResult) {
  bool interrupted = true;
  std::string stages;
  const BenchResult result = run_script(
      R"(echo '{"progress":"loading","share":0}' >&3; echo '{"result":{"threads":3,"total_seconds":[0.5]}}' >&3)",
      interrupted, stages);
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(result.threads, 3);
  EXPECT_EQ(stages, "loading;");
  EXPECT_FALSE(interrupted);
}

TEST(RunInChild, ACrashIsAResultThatSaysWhere) {
  bool interrupted = false;
  std::string stages;
  const BenchResult killed =
      run_script(R"(echo '{"progress":"loading","share":0}' >&3; kill -KILL $$)", interrupted, stages);
  EXPECT_NE(killed.error.find("ran out of memory"), std::string::npos) << killed.error;
  EXPECT_NE(killed.error.find("while loading"), std::string::npos) << killed.error;
  EXPECT_NE(run_script("exit 4", interrupted, stages).error.find("exit code 4"), std::string::npos);
}

TEST(RunInChild, TheCaseIsItsLastArgument) {
  bool interrupted = false;
  std::string stages;
  const BenchResult result = run_script(
      R"sh(printf '{"result":{"error":"%s"}}\n' "$(printf %s "$0" | grep -c batch_size)" >&3)sh", interrupted, stages);
  EXPECT_EQ(result.error, "1");
}

}  // namespace
}  // namespace nibble
