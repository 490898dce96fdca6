#include "cli/bench_gptq_options.h"

#include "bench/child.h"
#include "bench/perplexity.h"
#include "bench/probe.h"
#include "bench/run_encoder_case.h"
#include "core/error.h"
#include "formats/hub_cache.h"
#include "formats/quant_config.h"
#include "kernels/registry.h"
#include "models/family.h"
#include "ops/cuda_loader.h"

#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <optional>
#include <string_view>

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
  app.add_option("--task", task,
                 fmt::format("text-generation, or of encoders {} (by the model)", fmt::join(encoder_tasks(), ", ")));
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
  app.add_flag("--disable-exllama", disable_exllama,
               "run the plain kernel: on a GPU cuda-old, or cuda with act-order; on the CPU dequant");
  app.add_flag("--use-exllama", use_exllama, "on a GPU: run exllamav2, or what --exllama-version says");
  app.add_option("--exllama-version", exllama_version, "on a GPU: 1 runs exllama, 2 exllamav2")
      ->check(CLI::IsMember({1, 2}));
  app.add_flag("--use-marlin", use_marlin, "on a GPU: run marlin");
  app.add_flag("--bitsandbytes", bitsandbytes)->group("");

  add_list(app, "--kernel", kernel,
           "kernels for the GPTQ model, a list: names (see `nibble kernels`), auto, all (auto)");
  add_list(app, "--dtype", dtype, "what linear layers compute in, a list: f32, bf16, on a GPU also f16 (by the model)");
  app.add_option("--kv-dtype", kv_dtype,
                 "type of the KV cache: f32, bf16, f16, on a GPU also i8, f8_e4m3 (as --dtype)");
  app.add_option("--device", device, "auto, cpu, cuda or cuda:N (auto: a GPU where one can be used)");
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

void BenchGptqOptions::refuse_gpu_kernels() const {
  constexpr std::string_view kInstead = "this device is the CPU; --kernel packed is the fused kernel here";
  if (use_marlin) fail_usage("--use-marlin: marlin is a kernel for NVIDIA GPUs, and {}", kInstead);
  if (use_exllama || exllama_version != 0) {
    fail_usage("{}: exllama is a kernel for NVIDIA GPUs, and {}", use_exllama ? "--use-exllama" : "--exllama-version",
               kInstead);
  }
}

void BenchGptqOptions::check(const DeviceChoice& chosen) const {
  const std::vector<std::string_view>& encoders = encoder_tasks();
  if (!task.empty() && task != "text-generation" &&
      std::find(encoders.begin(), encoders.end(), task) == encoders.end()) {
    fail_usage("--task {}: expected text-generation, or for encoders {}", task, fmt::join(encoders, ", "));
  }
  if (bitsandbytes) {
    fail_usage(
        "--bitsandbytes: there is no bitsandbytes row here; full precision and the kernels of `nibble kernels` are "
        "there");
  }
  if (int{disable_exllama} + int{use_exllama || exllama_version != 0} + int{use_marlin} > 1) {
    fail_usage(
        "--disable-exllama, --use-exllama (with --exllama-version) and --use-marlin name different kernels: give one");
  }
  if (chosen.kind == DeviceKind::cpu) {
    refuse_gpu_kernels();
  } else {
    std::string why;
    const int count = cuda_device_count(&why);
    if (count == 0) fail("--device {}: {}; use --device cpu", device, why);
    if (chosen.index >= count)
      fail("--device {}: CUDA sees {} GPUs (CUDA_VISIBLE_DEVICES chooses among them)", device, count);
  }
  if (prefill && decode) fail_usage("--prefill and --decode contradict each other: give one");
  if (model.empty() && gptq_model.empty()) fail_usage("--model is missing: name the model to measure");
  if (ppl_given && ppl.empty()) fail_usage("--ppl needs a text file (nibble downloads nothing): --ppl FILE");
}

std::string BenchGptqOptions::default_kernel(const std::string& folder, const DeviceChoice& chosen) const {
  if (chosen.kind == DeviceKind::cpu) return disable_exllama ? "dequant" : "auto";
  if (use_marlin) return "marlin";
  // The second version is what optimum's script means by --use-exllama alone.
  if (use_exllama || exllama_version != 0) return exllama_version == 1 ? "exllama" : "exllamav2";
  if (!classic && !disable_exllama) return "auto";
  const std::optional<QuantConfig> quant = find_quant_config(folder);
  if (!quant) return "auto";
  // Exllama takes 4 bits only: there the script's row runs the plain kernel in any case.
  constexpr int kExllamaBits = 4;
  if (!disable_exllama && quant->linear.bits == kExllamaBits) return "exllama";
  // With one group a column, order does not matter, and the old kernel runs.
  return quant->linear.desc_act && quant->linear.group_size > 0 ? "cuda" : "cuda-old";
}

std::vector<std::string> BenchGptqOptions::dtypes(const DeviceChoice& chosen) const {
  if (!dtype.empty()) return dtype;
  // optimum's script loads every model in f16.
  return {classic && chosen.kind != DeviceKind::cpu ? "f16" : ""};
}

// What --kernel and --dtype mean for this model, a pair each row. "all" is every kernel that can run it in the type.
std::vector<std::pair<std::string, std::string>> BenchGptqOptions::kernels_and_types(const std::string& folder,
                                                                                     const DeviceChoice& chosen) const {
  const std::vector<std::string> asked = kernel.empty() ? std::vector{default_kernel(folder, chosen)} : kernel;
  const std::vector<std::string> types = dtypes(chosen);
  std::vector<std::pair<std::string, std::string>> out;
  const auto add = [&out](const std::string& name, const std::string& type) {
    if (std::find(out.begin(), out.end(), std::pair(name, type)) == out.end()) out.emplace_back(name, type);
  };
  for (const std::string& name : asked) {
    if (name != "all") {
      if (name != "auto") kernel_named(name, chosen.kind);  // its sentence lists the names there are
      for (const std::string& type : types) add(name, type);
      continue;
    }
    std::vector<std::pair<std::string, std::string>> fit;
    for (const std::string& type : types) {
      const std::vector<std::string> names =
          chosen.kind == DeviceKind::cpu
              ? kernels_that_run(folder, chosen.name(), type)
              : probe_in_child(own_program().string(), {"bench", "probe"}, {chosen.name(), false, folder, type})
                    .kernels;
      for (const std::string& one : names) fit.emplace_back(one, type);
    }
    // All types of a kernel one after another.
    std::stable_sort(fit.begin(), fit.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [one, type] : fit) add(one, type);
  }
  if (out.empty()) fail("no kernel of this build can run {}", folder);
  return out;
}

std::vector<BenchSystem> BenchGptqOptions::systems(const DeviceChoice& chosen) const {
  std::vector<BenchSystem> out;
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
    if (quantised_name.empty() && !kernel.empty()) {
      for (const auto& [name, type] : kernels_and_types(dense_folder, chosen))
        out.push_back({model, dense_folder, false, name, type});
    } else {
      for (const std::string& type : dtypes(chosen)) out.push_back({model, dense_folder, false, "dense", type});
    }
  }
  const bool wants_quantised = gptq || (!classic && !quantised_name.empty());
  if (wants_quantised) {
    const std::string folder = resolve_model(quantised_name, revision).string();
    if (!find_quant_config(folder))
      fail("--gptq-model {}: there is no GPTQ configuration in {}", quantised_name, folder);
    for (const auto& [name, type] : kernels_and_types(folder, chosen))
      out.push_back({quantised_name, folder, true, name, type});
  }
  for (const BenchSystem& system : out) check_task(system.folder);
  if (out.empty())
    fail_usage("nothing is left to measure: without --gptq, --classic measures --model, which is missing");
  return out;
}

void BenchGptqOptions::check_task(const std::string& folder) const {
  const bool encoder = is_encoder(folder);
  if (!task.empty() && encoder == (task == "text-generation")) {
    fail_usage("--task {}: {} is {}", task, folder,
               encoder ? "an encoder, which generates no text: leave the flag out" : "a model that generates text");
  }
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
  const DeviceChoice chosen = choose_device(device);
  check(chosen);
  table_format_from_name(format);
  BenchSweep out;
  out.batch_sizes = sweep ? kSweepBatches : batch_size;
  out.prompt_lengths = prompts();
  out.new_tokens = tokens();
  // Chosen once: all rows are of one device.
  out.base.device = chosen.name();
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
  out.systems = systems(chosen);
  // An encoder takes its sequences in and is done.
  if (std::any_of(out.systems.begin(), out.systems.end(),
                  [](const BenchSystem& system) { return is_encoder(system.folder); })) {
    out.new_tokens = {1};
  }
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
