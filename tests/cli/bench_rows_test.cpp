#include "cli/bench_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace nibble {
namespace {

/// A row whose figures are easy to check by hand.
BenchRow dense_row(std::int64_t batch) {
  BenchRow row;
  row.system = {"org/model", "/models/model", false, "dense", ""};
  row.bench_case.batch_size = batch;
  row.bench_case.prompt_length = 512;
  row.bench_case.new_tokens = 10;
  row.bench_case.num_batches = 2;
  BenchResult& r = row.result;
  r.kernels = "dense x9";
  r.dtype = "bf16";
  r.kv_dtype = "bf16";
  r.isa = "avx512";
  r.threads = 2;
  r.load.total = 1.236;
  r.total_seconds = {0.2, 0.4};
  r.prefill_seconds = {0.1, 0.1};
  r.step_seconds = {0.01, 0.02, 0.03};
  r.prefill_cost = {1e6, 2e9};
  r.step_cost = {1e8, 2e8};
  r.own_bandwidth = {20e9, 100000000, 2, 5};
  r.memory = {0, 200000000, 50000000, 256789000};
  r.planned_bytes = 210000000;
  r.verified_sites = 5;
  r.verified_error = 0.25;
  row.memory_bandwidth = 10e9;
  row.last_level_cache = 32 << 20;
  row.started = "2026-01-31T12:00:00Z";
  return row;
}

BenchRow gptq_row(std::int64_t batch) {
  BenchRow row = dense_row(batch);
  row.system = {"org/model-GPTQ", "/models/model-GPTQ", true, "auto", ""};
  row.result.quantisation = {true, false, 4, 128};
  row.result.kernels = "packed x8, dense x1";
  return row;
}

/// The same on a GPU that copies 2 TB/s and multiplies 1000 TFLOP/s.
BenchRow gpu_row(std::int64_t batch) {
  BenchRow row = gptq_row(batch);
  row.system.kernel = "cuda-old";
  row.bench_case.device = "cuda:0";
  row.memory_bandwidth = 2e12;
  row.last_level_cache = 0;
  row.gemm = {.f32 = 50e12, .bf16 = 1000e12, .f16 = 900e12};
  BenchResult& r = row.result;
  r.kernels = "cuda-old x8, dense x1";
  r.device = "NVIDIA H100";
  r.own_bandwidth = {};
  r.prefill_cost = {4e10, 4e13};  // 20 ms to move, 40 ms to compute
  r.step_cost = {2e10, 2e11};     // 10 ms to move
  r.planned_bytes = 700000000;
  r.planned_arena = 60000000;
  r.planned_workspace = 40000000;
  r.layers = "q_proj|k_proj|v_proj: cuda-old (blocks of codes M<=127, dequantised above); lm_head: dense";
  r.load.read = 0.125;
  r.load.upload = 0.25;
  r.load.pack = 0.5;
  r.cached_share = 0.25;
  r.gpu.peak = {1234000000, "process"};
  r.gpu.context = 500000000;
  r.gpu.open_seconds = 0.5;
  r.gpu.run.samples = 20;
  r.gpu.run.sm_clock_min = 1900;
  r.gpu.run.sm_clock_max = 1980;
  r.gpu.run.power = 312.5;
  r.gpu.run.temperature = 60;
  r.gpu.run.throttle = 0x5;
  r.gpu.run.joules = 400;
  r.gpu.run.energy_source = "counter";
  r.gpu.remarks = "clocks moved: 1900 to 1980 MHz";
  return row;
}

std::string cell(const BenchRow& row, std::string_view key) {
  const auto columns = bench_columns();
  const auto found = std::find_if(columns.begin(), columns.end(), [&](const Column& c) { return c.key == key; });
  if (found == columns.end()) return "no such column";
  return text_of(bench_row(row)[static_cast<std::size_t>(found - columns.begin())], found->decimals);
}

TEST(ClassicCsv, IsOptimumsToTheLetter) {
  EXPECT_EQ(
      csv_header(classic_csv_columns()),
      "gptq, act_order, bits, group_size, kernel, num_batches, batch_size, prompt_length, new_tokens, Load time (s), "
      "Per-token latency (ms), Throughput (tok/s), Max memory (MB)");
  EXPECT_EQ(csv_row(classic_csv_columns(), classic_csv_row(dense_row(4))),
            "False,None,None,None,None,2,4,512,10,1.24,30.00,133.33,256.79");
  EXPECT_EQ(csv_row(classic_csv_columns(), classic_csv_row(gptq_row(1))),
            "True,False,4,128,packed,2,1,512,10,1.24,30.00,33.33,256.79");
}

TEST(ClassicCsv, FilesAreNamedAsOptimumNamesThem) {
  EXPECT_EQ(classic_csv_name("daryl149/llama-2-13b-chat-hf", false), "log_daryl149-llama-2-13b-chat-hf_nogptq.csv");
  EXPECT_EQ(classic_csv_name("/data/llama/", true), "log_-data-llama-_gptq.csv");
  EXPECT_EQ(classic_perplexity_name("a/b", true), "log_a-b_gptq_perplexity.csv");
}

TEST(ClassicTables, AreOneABatchSize) {
  EXPECT_EQ(classic_tables({dense_row(1), gptq_row(1), gptq_row(2)}),
            "### Batch size = 1\n"
            "\n"
            "| gptq  | act_order | bits | group_size | kernel | Load time (s) | Per-token latency (ms) | Throughput "
            "(tok/s) | Peak memory (MB) |\n"
            "|-------|-----------|-----:|-----------:|--------|--------------:|-----------------------:|---------------"
            "----:|-----------------:|\n"
            "| False | None      | None |       None | None   |           1.2 |                  30.00 |              "
            "33.33 |           256.79 |\n"
            "| True  | False     |    4 |        128 | packed |           1.2 |                  30.00 |              "
            "33.33 |           256.79 |\n"
            "\n"
            "### Batch size = 2\n"
            "\n"
            "| gptq | act_order | bits | group_size | kernel | Load time (s) | Per-token latency (ms) | Throughput "
            "(tok/s) | Peak memory (MB) |\n"
            "|------|-----------|-----:|-----------:|--------|--------------:|-----------------------:|----------------"
            "---:|-----------------:|\n"
            "| True | False     |    4 |        128 | packed |           1.2 |                  30.00 |              "
            "66.67 |           256.79 |\n");
}

TEST(ClassicPerplexity, WritesTheMeanOfTheRunningValues) {
  BenchRow row = gptq_row(1);
  row.result.perplexity = 9.5;
  row.result.perplexity_running = 9.876;
  EXPECT_EQ(csv_header(classic_perplexity_columns()), "quantization, act_order, bits, group_size, kernel, perplexity");
  EXPECT_EQ(csv_row(classic_perplexity_columns(), classic_perplexity_row(row)), "gptq,False,4,128,packed,9.88");
  row = dense_row(1);
  row.result.perplexity_running = 5.0;
  EXPECT_EQ(csv_row(classic_perplexity_columns(), classic_perplexity_row(row)), "None,None,None,None,None,5.00");
}

TEST(BenchRows, OptimumsColumnsComeFirst) {
  const auto columns = bench_columns();
  const auto classic = classic_csv_columns();
  ASSERT_GT(columns.size(), classic.size());
  for (std::size_t i = 0; i < classic.size(); ++i) EXPECT_EQ(columns[i].heading, classic[i].heading);
  std::set<std::string> keys;
  for (const Column& column : columns) {
    EXPECT_TRUE(keys.insert(column.key).second) << column.key << " stands twice";
    EXPECT_EQ(column.heading.find(','), std::string::npos)
        << "the CSV header would have a column more: " << column.heading;
  }
  EXPECT_EQ(bench_row(dense_row(1)).size(), columns.size());
}

TEST(BenchRows, FollowFromTheTimes) {
  const BenchRow row = dense_row(4);
  EXPECT_EQ(cell(row, "per_token_latency_ms"), "30.00");  // mean of 20 and 40
  EXPECT_EQ(cell(row, "latency_median_ms"), "30.00");
  EXPECT_EQ(cell(row, "latency_stddev_ms"), "14.142");
  EXPECT_EQ(cell(row, "latency_p95_ms"), "39.00");
  EXPECT_EQ(cell(row, "ttft_ms"), "100.00");
  EXPECT_EQ(cell(row, "prompt_tok_s"), "20480.0");  // 4 x 512 in 0.1 s
  EXPECT_EQ(cell(row, "tpot_ms"), "20.00");
  EXPECT_EQ(cell(row, "decode_tok_s"), "200.0");
  EXPECT_EQ(cell(row, "step_mb"), "100.0");
  EXPECT_EQ(cell(row, "step_gb_s"), "5.00");  // 1e8 bytes in 20 ms
  EXPECT_EQ(cell(row, "prefill_gflop_s"), "20.0");
  EXPECT_EQ(cell(row, "anonymous_mb"), "200.00");
  EXPECT_EQ(cell(row, "file_mb"), "50.00");
  EXPECT_EQ(cell(row, "planned_mb"), "210.00");
  EXPECT_EQ(cell(row, "status"), "ok");
  EXPECT_EQ(cell(row, "kernel"), "dense");
}

TEST(BenchRows, AStepThatFitsTheCacheIsHeldAgainstTheCache) {
  BenchRow row = dense_row(1);
  EXPECT_EQ(cell(row, "bound"), "memory");
  EXPECT_EQ(cell(row, "bandwidth_share_percent"), "50.0");
  EXPECT_EQ(cell(row, "own_footprint_share_percent"), "25.0");
  row.last_level_cache = std::size_t{512} << 20;
  EXPECT_EQ(cell(row, "bound"), "cache");
  EXPECT_EQ(cell(row, "bandwidth_share_percent"), "25.0");
  EXPECT_EQ(cell(row, "memory_share_percent"), "50.0");
}

TEST(BenchRows, OnAGpuItsMemoryCounts) {
  const BenchRow row = gpu_row(1);
  EXPECT_EQ(cell(row, "peak_memory_mb"), "1234.00");
  EXPECT_EQ(cell(row, "gpu_memory_mb"), "1234.00");
  EXPECT_EQ(cell(row, "memory_source"), "process");
  EXPECT_EQ(cell(row, "host_peak_mb"), "256.79");
  EXPECT_EQ(cell(row, "context_mb"), "500.00");
  EXPECT_EQ(cell(row, "residual_mb"), "34.00");  // 1234 - 700 - 500
  EXPECT_EQ(cell(row, "planned_activations_mb"), "60.00");
  EXPECT_EQ(cell(row, "planned_scratch_mb"), "40.00");
  EXPECT_EQ(cell(row, "load_upload_s"), "0.250");
  EXPECT_EQ(cell(row, "layers"),
            "q_proj|k_proj|v_proj: cuda-old (blocks of codes M<=127, dequantised above); lm_head: dense");
  // Loading is in the table as it is in the files.
  const std::string table = to_markdown(bench_table({row}, "caption"));
  for (const char* heading : {"Load: read (s)", "Load: upload (s)", "Load: pack (s)", "Files cached before (%)"})
    EXPECT_NE(table.find(heading), std::string::npos) << heading;
  EXPECT_EQ(table.find("Load: tune (s)"), std::string::npos) << "only --kernel auto measures";
  EXPECT_EQ(cell(row, "context_s"), "0.500");
  EXPECT_EQ(cell(row, "device"), "cuda:0");
  EXPECT_EQ(csv_row(classic_csv_columns(), classic_csv_row(row)),
            "True,False,4,128,autogptq-cuda-old,2,1,512,10,1.24,30.00,33.33,1234.00");
  BenchRow unknown = gpu_row(1);
  unknown.result.gpu.peak = {};
  EXPECT_EQ(cell(unknown, "peak_memory_mb"), "None");
  EXPECT_EQ(cell(unknown, "residual_mb"), "None");
}

TEST(BenchRows, OnAGpuRowsAreHeldAgainstWhatBinds) {
  const BenchRow row = gpu_row(1);
  EXPECT_EQ(cell(row, "step_floor_ms"), "10.000");
  EXPECT_EQ(cell(row, "step_floor_share_percent"), "50.0");
  EXPECT_EQ(cell(row, "step_floor_bound"), "memory");
  EXPECT_EQ(cell(row, "prefill_floor_ms"), "40.000");
  EXPECT_EQ(cell(row, "prefill_floor_share_percent"), "40.0");
  EXPECT_EQ(cell(row, "prefill_floor_bound"), "compute");
  EXPECT_EQ(cell(row, "gemm_gflop_s"), "1000000");  // of bf16
  EXPECT_EQ(cell(row, "bound"), "memory");
  EXPECT_EQ(cell(row, "own_footprint_gb_s"), "None");
  for (const char* key : {"step_floor_ms", "gemm_gflop_s", "gpu_memory_mb", "power_w", "joules_per_token", "notes"})
    EXPECT_EQ(cell(dense_row(1), key), "None") << key;
}

TEST(BenchRows, OnAGpuClocksAndEnergyAreTold) {
  const BenchRow row = gpu_row(4);
  EXPECT_EQ(cell(row, "sm_clock_min_mhz"), "1900");
  EXPECT_EQ(cell(row, "sm_clock_max_mhz"), "1980");
  EXPECT_EQ(cell(row, "power_w"), "312.5");
  EXPECT_EQ(cell(row, "throttle"), "power cap");  // being idle is none
  EXPECT_EQ(cell(row, "ecc_errors"), "0");
  EXPECT_EQ(cell(row, "joules_per_token"), "5.000");  // 400 J for 2 generations of 4 x 10 tokens
  EXPECT_EQ(cell(row, "notes"), "clocks moved: 1900 to 1980 MHz");
  BenchRow unwatched = gpu_row(4);
  unwatched.result.gpu.run = {};
  EXPECT_EQ(cell(unwatched, "ecc_errors"), "None");
  EXPECT_EQ(cell(unwatched, "joules_per_token"), "None");
}

TEST(ClassicCsv, KernelsAreSpelledAsInOptimumsScript) {
  BenchRow row = gpu_row(1);
  for (const auto& [ours, theirs] : {std::pair("cuda", "autotogptq-cuda"), std::pair("cuda-old", "autogptq-cuda-old"),
                                     std::pair("exllama", "exllama"), std::pair("exllamav2", "exllamav2")}) {
    row.system.kernel = ours;
    EXPECT_EQ(text_of(classic_csv_row(row)[4]), theirs);
    EXPECT_EQ(cell(row, "kernel"), ours);
  }
}

TEST(BenchRows, APromptAloneHasNoDecodeFigures) {
  BenchRow row = dense_row(1);
  row.bench_case.new_tokens = 1;
  row.result.step_seconds.clear();
  for (const char* key : {"tpot_ms", "decode_tok_s", "step_gb_s", "step_mb", "bandwidth_share_percent", "bound"}) {
    EXPECT_EQ(cell(row, key), "None") << key;
  }
}

TEST(BenchRows, AFailureIsARow) {
  BenchRow row = gptq_row(1);
  row.result = BenchResult{};
  row.result.error =
      "the case's process was killed (signal 9); most likely the system ran out of memory (while loading)";
  EXPECT_EQ(cell(row, "status"), row.result.error);
  EXPECT_EQ(cell(row, "per_token_latency_ms"), "None");
  EXPECT_EQ(cell(row, "kernel"), "auto");
}

TEST(BenchTable, ShowsWhatTellsRowsApart) {
  const auto has = [](const Table& table, std::string_view key) {
    return std::any_of(table.columns.begin(), table.columns.end(), [&](const Column& c) { return c.key == key; });
  };
  const Table one = bench_table({dense_row(1), dense_row(2)}, "Said.");
  EXPECT_EQ(one.caption, "Said.");
  EXPECT_TRUE(has(one, "kernel"));
  EXPECT_FALSE(has(one, "model"));
  EXPECT_FALSE(has(one, "bits"));
  EXPECT_FALSE(has(one, "status"));
  EXPECT_FALSE(has(one, "perplexity"));
  const Table both = bench_table({dense_row(1), gptq_row(1)}, "");
  EXPECT_TRUE(has(both, "model"));
  EXPECT_TRUE(has(both, "bits"));
  EXPECT_FALSE(has(both, "act_order"));  // it is False, and there is none in full precision
  for (const auto& row : both.rows) EXPECT_EQ(row.size(), both.columns.size());
}

}  // namespace
}  // namespace nibble
