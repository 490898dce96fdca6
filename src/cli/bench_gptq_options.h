// The flags of `nibble bench gptq`: those of optimum's benchmark_gptq.py in all its versions, and nibble's own.
#pragma once

#include "bench/sweep.h"
#include "engine/configuration.h"
#include "report/table.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
}

namespace nibble {

struct BenchGptqOptions {
  // optimum's
  std::int64_t num_batches = 10;
  std::vector<std::int64_t> batch_size = {1};
  std::vector<std::int64_t> prompt_length = {256};
  std::vector<std::int64_t> new_tokens = {256};
  std::string task;
  std::string model;
  std::string gptq_model;
  std::string revision = "main";
  std::string ppl;
  bool ppl_given = false;
  bool gptq = false;
  bool sweep = false;
  bool prefill = false;
  bool decode = false;
  bool generate = false;
  bool disable_exllama = false;
  bool use_exllama = false;
  int exllama_version = 0;  // 0: not given
  bool use_marlin = false;
  bool bitsandbytes = false;

  // nibble's
  bool classic = false;
  bool shortened = false;
  std::vector<std::string> kernel;  // empty: by the other flags
  std::vector<std::string> dtype;
  std::string kv_dtype;
  std::string device = "auto";
  std::int64_t prefill_chunk = 0;
  bool no_fuse = false;
  std::uint64_t seed = 1;
  std::string procedure;  // of --ppl; empty: autogptq with --classic, gptq2048 otherwise
  std::int64_t context = 0;
  std::int64_t stride = 0;
  std::int64_t windows = 0;
  std::string format = "markdown";
  std::string out_folder;
  bool overwrite = false;

  void add_to(CLI::App& app);

  /// The sweep that the flags ask for: models found, kernels listed. UsageError for flags that contradict each other or
  /// ask for what this device does not have; Error where a model cannot be found.
  BenchSweep to_sweep() const;
  /// False where only the perplexity is asked for, as --ppl without --generate does in optimum's script.
  bool measures_speed() const { return !(classic && ppl_given) || generate; }
  /// What stands above the table: the protocol in words.
  std::string caption() const;
  /// UsageError for flags that contradict each other or ask for what this device does not have.
  void check(const DeviceChoice& device) const;
  /// The kernel of the GPTQ rows where --kernel names none: on the CPU the engine's choice, on a GPU what optimum's
  /// script would run with these flags on this model, and without --classic the engine's choice where no flag names
  /// one.
  std::string default_kernel(const std::string& folder, const DeviceChoice& device) const;

 private:
  bool num_batches_given_ = false;
  bool prompt_length_given_ = false;
  bool new_tokens_given_ = false;

  void refuse_gpu_kernels() const;
  /// UsageError where --task is not one of the model's.
  void check_task(const std::string& folder) const;
  std::vector<BenchSystem> systems(const DeviceChoice& device) const;
  std::vector<std::pair<std::string, std::string>> kernels_and_types(const std::string& folder,
                                                                     const DeviceChoice& device) const;
  std::vector<std::string> dtypes(const DeviceChoice& device) const;
  std::int64_t batches() const;
  std::vector<std::int64_t> prompts() const;
  std::vector<std::int64_t> tokens() const;
};

}  // namespace nibble
