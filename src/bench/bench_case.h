// One measurement to make, and what came of it: plain values that travel between processes as JSON.
#pragma once

#include "bench/bandwidth.h"
#include "bench/gpu_watch.h"
#include "bench/memory.h"
#include "engine/load_times.h"
#include "kernels/linear_kernel.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// What is to be measured. The strings are as users write them.
struct BenchCase {
  std::string folder;  // of the model
  std::string device = "cpu";
  std::string kernel = "auto";
  std::string dtype;               // compute type; empty: the engine's choice
  std::string kv_dtype;            // empty: as compute
  std::int64_t prefill_chunk = 0;  // 0: the engine's choice
  bool fuse = true;

  bool speed = true;  // measure generation; false: only the perplexity
  std::int64_t batch_size = 1;
  std::int64_t prompt_length = 256;
  std::int64_t new_tokens = 256;
  std::int64_t num_batches = 10;
  std::uint64_t seed = 1;  // of the random prompts

  std::string perplexity_file;  // empty: none
  std::string perplexity_procedure = "gptq2048";
  std::int64_t perplexity_context = 0;  // 0: the procedure's own
  std::int64_t perplexity_stride = 0;   // 0: the procedure's own
  std::int64_t perplexity_windows = 0;  // 0: all; else at most so many
};

/// What a model is, as the benchmark's columns have it.
struct QuantisationFacts {
  bool gptq = false;
  bool act_order = false;
  std::int64_t bits = 0;
  std::int64_t group_size = 0;  // -1: one group a column
};

/// What only a row on a GPU has.
struct GpuFacts {
  GpuMemory peak;           // from loading to the end of the warm-up
  std::size_t context = 0;  // bytes that the context took when it was made
  double open_seconds = 0;  // loading nibble's CUDA library and making the context
  GpuRun run;               // while it was timed
  std::string remarks;      // what makes the row's figures doubtful, or why some are missing; empty: nothing
};

struct BenchResult {
  std::string error;  // why there are no figures; empty where there are

  QuantisationFacts quantisation;
  std::string kernels;  // which kernels run the sites: "packed x120, dense x1"
  std::string layers;   // which kernel runs which layers, and how for how many rows
  std::string dtype;
  std::string kv_dtype;
  std::string device;  // as the system names it
  std::string isa;     // of the process; of a GPU its architecture
  int threads = 0;     // of the process; of a GPU its multiprocessors

  LoadTimes load;
  std::optional<double> cached_share;  // of the weight files before loading, 0 to 1

  // One value a timed batch, but step_seconds: one a decode step of each batch.
  std::vector<double> total_seconds;
  std::vector<double> prefill_seconds;
  std::vector<double> step_seconds;

  Cost prefill_cost;            // the least that the prompt's pass must move and compute
  Cost step_cost;               // of a decode step, at the middle of the generation
  ReadBandwidth own_bandwidth;  // reading a footprint of step_cost.bytes, by the same threads, right after

  ResidentMemory memory;  // peaks
  std::size_t planned_bytes = 0;
  std::size_t planned_weights = 0;
  std::size_t planned_kv_cache = 0;
  std::size_t planned_arena = 0;      // activations
  std::size_t planned_workspace = 0;  // scratch of kernels

  GpuFacts gpu;

  std::int64_t verified_sites = 0;  // distinct shapes
  double verified_error = 0;        // the largest, as a share of the bound that its kernel states

  std::optional<double> perplexity;
  std::optional<double> perplexity_running;  // the mean of the running values
  std::optional<double> perplexity_error;    // standard error
  std::int64_t perplexity_tokens = 0;        // scored
};

/// JSON of all fields, and back. Throws Error where it is not such JSON.
std::string to_json(const BenchCase& bench_case);
BenchCase bench_case_from_json(std::string_view text);
std::string to_json(const BenchResult& result);
BenchResult bench_result_from_json(std::string_view text);

}  // namespace nibble
