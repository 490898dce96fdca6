// The flags of `nibble bench gptq`: those of optimum's benchmark_gptq.py in all its versions, and nibble's own.
#pragma once

#include "bench/sweep.h"
#include "report/table.h"

#include <cstdint>
#include <string>
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

  // nibble's
  bool classic = false;
  bool shortened = false;
  std::vector<std::string> kernel;  // empty: by the other flags
  std::vector<std::string> dtype;
  std::string kv_dtype;
  std::string device = "cpu";
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

 private:
  bool unsupported_bitsandbytes_ = false;
  bool unsupported_marlin_ = false;
  bool unsupported_exllama_ = false;
  int unsupported_exllama_version_ = 0;
  bool num_batches_given_ = false;
  bool prompt_length_given_ = false;
  bool new_tokens_given_ = false;

  void refuse_what_is_not_here() const;
  std::vector<BenchSystem> systems() const;
  std::vector<std::string> quantised_kernels(const std::string& folder) const;
  std::int64_t batches() const;
  std::vector<std::int64_t> prompts() const;
  std::vector<std::int64_t> tokens() const;
};

}  // namespace nibble
