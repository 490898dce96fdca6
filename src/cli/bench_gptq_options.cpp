#include "cli/bench_gptq_options.h"

#include "bench/perplexity.h"
#include "core/error.h"
#include "core/log.h"
#include "engine/configuration.h"
#include "formats/hub_cache.h"
#include "formats/quant_config.h"
#include "kernels/registry.h"

#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <algorithm>

namespace nibble {
namespace {

// optimum's --sweep.
const std::vector<std::int64_t> kSweepBatches = {1, 2, 4, 8, 16};
constexpr std::int64_t kSweepLength = 512;
// --short: long enough for a decode step's time to settle, short enough for all kernels and batch sizes in some minutes
// on two cores.
constexpr std::int64_t kShortBatches = 3;
constexpr std::int64_t kShortPrompt = 128;
constexpr std::int64_t kShortTokens = 64;

// Lists are written with commas or by repeating the flag.
template <typename T>
CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<T>& value, const std::string& help) {
  return app.add_option(name, value, help)->delimiter(',')->take_all();
}

}  // namespace

void BenchGptqOptions::add_to(CLI::App& app) {
  app.add_option_function<std::int64_t>(
         "--num-batches", [this](std::int64_t v) { num_batches = v, num_batches_given_ = true; },
         "timed generations of each row (10)")
      ->check(CLI::PositiveNumber);
  add_list(app, "--batch-size", batch_size, "sequences at a time, a list (1)")->check(CLI::PositiveNumber);
  add_list(app, "--prompt-length", prompt_length, "tokens a prompt, a list (256)")
      ->check(CLI::PositiveNumber)
      ->each([this](const std::string&) { prompt_length_given_ = true; });
  add_list(app, "--new-tokens", new_tokens, "tokens generated, a list (256)")
      ->check(CLI::PositiveNumber)
      ->each([this](const std::string&) { new_tokens_given_ = true; });
  app.add_option("--task", task, "text-generation");
  app.add_option("--model", model, "folder or hub id of a model, in full precision or quantised");
  app.add_option("--gptq-model", gptq_model, "folder or hub id of a GPTQ model");
  app.add_option("--revision", revision, "branch, tag or commit of a hub id");
  app.add_flag("--gptq", gptq, "measure the GPTQ model only");
  app.add_flag("--sweep", sweep, "batch sizes 1,2,4,8,16, prompts of 512, 512 new tokens");
  app.add_flag("--prefill", prefill, "measure the prompt only: 1 new token");
  app.add_flag("--decode", decode, "measure decoding only: prompts of 1 token");
  app.add_flag("--generate", generate,
               "measure speed (this is what it does in any case, but for --classic with --ppl)");
  app.add_option_function<std::vector<std::string>>(
         "--ppl", [this](const std::vector<std::string>& v) { ppl_given = true, ppl = v.empty() ? "" : v.front(); },
         "measure perplexity on this text file, too")
      ->expected(0, 1);
  app.add_flag("--disable-exllama", disable_exllama, "run the plain kernel (here: dequant) instead of the fused one");
  app.add_flag("--bitsandbytes", unsupported_bitsandbytes_)->group("");
  app.add_flag("--use-marlin", unsupported_marlin_)->group("");
  app.add_flag("--use-exllama", unsupported_exllama_)->group("");
  app.add_option("--exllama-version", unsupported_exllama_version_)->group("");

  add_list(app, "--kernel", kernel,
           "kernels for the GPTQ model, a list: names (see `nibble kernels`), auto, all (auto)");
  add_list(app, "--dtype", dtype, "what linear layers compute in, a list: f32, bf16 (by the model)");
  app.add_option("--kv-dtype", kv_dtype, "type of the KV cache: f32, bf16, f16 (as --dtype)");
  app.add_option("--device", device, "device to run on (cpu)");
  app.add_option("--prefill-chunk", prefill_chunk, "rows of the prompt a pass (0: by the device)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--no-fuse", no_fuse, "run every node of the model by itself");
  app.add_option("--seed", seed, "of the random prompts (1)");
  app.add_option("--procedure", procedure, "of --ppl: gptq2048, autogptq, llama.cpp, strided (gptq2048)");
  app.add_option("--context", context, "tokens a window of --ppl (by the procedure)")->check(CLI::PositiveNumber);
  app.add_option("--stride", stride, "of --procedure strided: tokens from one window's end to the next (512)")
      ->check(CLI::PositiveNumber);
  app.add_option("--windows", windows, "windows of --ppl at most (all)")->check(CLI::PositiveNumber);
  app.add_flag("--short", shortened, "a shortened protocol, which the table's caption states");
  app.add_flag("--classic", classic, "print and write what optimum's benchmark_gptq.py does");
  app.add_option("--format", format, "of the table: markdown, csv, json, jsonl (markdown)");
  app.add_option("--out", out_folder, "folder for rows.csv, rows.jsonl, table.md and manifest.json");
  app.add_flag("--overwrite", overwrite, "replace result files that have other columns");
}

void BenchGptqOptions::refuse_what_is_not_here() const {
  if (!task.empty() && task != "text-generation") {
    fail_usage("--task {}: only text-generation is measured here; leave the flag out or say so", task);
  }
  if (unsupported_bitsandbytes_) {
    fail_usage(
        "--bitsandbytes: there is no bitsandbytes row on the CPU; full precision and the kernels of `nibble kernels` "
        "are there");
  }
  if (unsupported_marlin_) {
    fail_usage(
        "--use-marlin: marlin is a kernel for NVIDIA GPUs, and this device is the CPU; --kernel packed is the fused "
        "kernel here");
  }
  if (unsupported_exllama_ || unsupported_exllama_version_ != 0) {
    fail_usage(
        "{}: exllama is a kernel for NVIDIA GPUs, and this device is the CPU; --kernel packed is the fused kernel here",
        unsupported_exllama_ ? "--use-exllama" : "--exllama-version");
  }
  if (prefill && decode) fail_usage("--prefill and --decode contradict each other: give one");
  if (model.empty() && gptq_model.empty()) fail_usage("--model is missing: name the model to measure");
  if (ppl_given && ppl.empty()) fail_usage("--ppl needs a text file (nibble downloads nothing): --ppl FILE");
}

// The kernels that --kernel means for this model. "all" is every kernel that can run it.
std::vector<std::string> BenchGptqOptions::quantised_kernels(const std::string& folder) const {
  std::vector<std::string> asked = kernel;
  if (asked.empty()) asked = {disable_exllama ? "dequant" : "auto"};
  std::vector<std::string> out;
  const auto add = [&out](std::string name) {
    if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(std::move(name));
  };
  for (const std::string& name : asked) {
    if (name != "all") {
      if (name != "auto") kernel_named(name, DeviceKind::cpu);  // its sentence lists the names there are
      add(name);
      continue;
    }
    const Checkpoint checkpoint(folder);
    for (const LinearKernel* one : kernels_for(DeviceKind::cpu)) {
      if (!one->traits().in_all) continue;
      EngineOptions options;
      options.device = device;
      options.kernel = one->name();
      const std::unique_ptr<Backend> backend = make_backend(options);
      try {
        configure_engine(checkpoint, options, *backend);
        add(std::string(one->name()));
      } catch (const Error& e) {
        log_info(fmt::format("--kernel all leaves out {}: {}", one->name(), e.what()));
      }
    }
  }
  if (out.empty()) fail("no kernel of this build can run {}", folder);
  return out;
}

std::vector<BenchSystem> BenchGptqOptions::systems() const {
  std::vector<BenchSystem> out;
  const std::vector<std::string> dtypes = dtype.empty() ? std::vector<std::string>{""} : dtype;
  const auto add = [&](const std::string& name, const std::string& folder, bool quantised,
                       const std::vector<std::string>& kernels) {
    for (const std::string& one : kernels) {
      for (const std::string& type : dtypes) out.push_back({name, folder, quantised, one, type});
    }
  };
  // The GPTQ model, where one is to be measured. --model may name it, too.
  std::string quantised_name = gptq_model;
  std::string dense_folder;
  if (!model.empty()) {
    const std::string folder = resolve_model(model, revision).string();
    const bool is_quantised = find_quant_config(folder).has_value();
    if (!is_quantised) dense_folder = folder;
    if (is_quantised && quantised_name.empty()) quantised_name = model;
    if (is_quantised && classic && !gptq) fail_usage("--model {} is a GPTQ model: add --gptq to measure it", model);
  }
  if (gptq && quantised_name.empty()) fail_usage("--gptq needs --gptq-model: {} is not a GPTQ model", model);
  if (!dense_folder.empty() && !gptq) {
    // A kernel other than dense is for the quantised model; where there is none, it is for this one.
    add(model, dense_folder, false,
        quantised_name.empty() && !kernel.empty() ? quantised_kernels(dense_folder)
                                                  : std::vector<std::string>{"dense"});
  }
  const bool wants_quantised = gptq || (!classic && !quantised_name.empty());
  if (wants_quantised) {
    const std::string folder = resolve_model(quantised_name, revision).string();
    if (!find_quant_config(folder))
      fail("--gptq-model {}: there is no GPTQ configuration in {}", quantised_name, folder);
    add(quantised_name, folder, true, quantised_kernels(folder));
  }
  if (out.empty())
    fail_usage("nothing is left to measure: without --gptq, --classic measures --model, which is missing");
  return out;
}

std::int64_t BenchGptqOptions::batches() const {
  return shortened && !num_batches_given_ ? kShortBatches : num_batches;
}

std::vector<std::int64_t> BenchGptqOptions::prompts() const {
  if (decode) return {1};
  if (shortened && !prompt_length_given_) return {kShortPrompt};
  return sweep && !shortened ? std::vector{kSweepLength} : prompt_length;
}

std::vector<std::int64_t> BenchGptqOptions::tokens() const {
  if (prefill) return {1};
  if (shortened && !new_tokens_given_) return {kShortTokens};
  return sweep && !shortened ? std::vector{kSweepLength} : new_tokens;
}

BenchSweep BenchGptqOptions::to_sweep() const {
  refuse_what_is_not_here();
  table_format_from_name(format);
  BenchSweep out;
  out.batch_sizes = sweep ? kSweepBatches : batch_size;
  out.prompt_lengths = prompts();
  out.new_tokens = tokens();
  out.base.device = device;
  out.base.kv_dtype = kv_dtype;
  out.base.prefill_chunk = prefill_chunk;
  out.base.fuse = !no_fuse;
  out.base.num_batches = batches();
  out.base.seed = seed;
  out.base.perplexity_file = ppl;
  out.base.perplexity_procedure = !procedure.empty() ? procedure : classic ? "autogptq" : "gptq2048";
  out.base.perplexity_context = context;
  out.base.perplexity_stride = stride;
  out.base.perplexity_windows = windows;
  // Each row asks again in a process of its own; what is wrong should be said once, and before anything is measured.
  if (ppl_given) perplexity_options(out.base.perplexity_procedure, {.context = context, .stride = stride});
  out.systems = systems();
  return out;
}

std::string BenchGptqOptions::caption() const {
  std::string text = fmt::format("Prompt length {}, {} new tokens, greedy; one generation to warm up, then {} timed.",
                                 fmt::join(prompts(), ", "), fmt::join(tokens(), ", "), batches());
  if (shortened)
    text += " This is a shortened protocol; the full one has prompts of 512, 512 new tokens and 10 timed generations.";
  return text;
}

}  // namespace nibble
