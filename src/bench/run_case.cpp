#include "bench/run_case.h"

#include "bench/case_facts.h"
#include "bench/open_device.h"
#include "bench/perplexity.h"
#include "bench/run_encoder_case.h"
#include "bench/verify_model.h"
#include "bench/watches.h"
#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "engine/engine.h"
#include "engine/generator.h"
#include "formats/tokenizer.h"
#include "models/family.h"

#include <algorithm>
#include <chrono>
#include <random>

namespace nibble {
namespace {

// A pass over a footprint takes some milliseconds: long enough to meet a quiet moment of the machine.
constexpr double kBandwidthSeconds = 0.3;

EngineOptions engine_options(const BenchCase& c) {
  EngineOptions options;
  options.device = c.device;
  options.kernel = c.kernel;
  options.compute = dtype_option(c.dtype, "--dtype");
  options.kv_dtype = dtype_option(c.kv_dtype, "--kv-dtype");
  options.prefill_chunk = c.prefill_chunk;
  options.fuse = c.fuse;
  if (c.speed) {
    options.max_batch = c.batch_size;
    options.max_tokens = checked_add(c.prompt_length, c.new_tokens, "the length of a sequence");
  }
  return options;
}

/// optimum's prompts: uniform ids without the first and the last, which tend to be special tokens.
std::vector<std::vector<std::int32_t>> random_prompts(std::int64_t batch, std::int64_t length, std::int64_t vocab,
                                                      std::uint64_t seed) {
  if (vocab < 4) fail("the model's vocabulary of {} entries is too small for random prompts", vocab);
  std::mt19937_64 random(seed);
  std::vector<std::vector<std::int32_t>> prompts(static_cast<std::size_t>(batch));
  for (auto& prompt : prompts) {
    prompt.resize(static_cast<std::size_t>(length));
    for (std::int32_t& id : prompt)
      id = static_cast<std::int32_t>(1 + random() % static_cast<std::uint64_t>(vocab - 2));
  }
  return prompts;
}

void measure_speed(Engine& engine, const BenchCase& c, Watches& watches, const CaseProgress& progress,
                   BenchResult& out) {
  const auto prompts = random_prompts(c.batch_size, c.prompt_length, engine.program().vocab, c.seed);
  GenerateOptions options;
  options.max_new_tokens = c.new_tokens;
  options.ignore_stop = true;
  const double rounds = static_cast<double>(c.num_batches) + 1;
  progress("warm-up", 0);
  generate(engine, prompts, options);
  watches.stop();
  std::optional<GpuRunWatch> run;
  if (watches.gpu) run.emplace(*watches.gpu);
  for (std::int64_t i = 0; i < c.num_batches; ++i) {
    progress(fmt::format("batch {} of {}", i + 1, c.num_batches), static_cast<double>(i + 1) / rounds);
    const Generation generation = generate(engine, prompts, options);
    for (const auto& tokens : generation.tokens) {
      if (static_cast<std::int64_t>(tokens.size()) != c.new_tokens) {
        fail("a generation gave {} tokens and {} were asked for", tokens.size(), c.new_tokens);
      }
    }
    out.total_seconds.push_back(generation.total_seconds);
    out.prefill_seconds.push_back(generation.prefill_seconds);
    out.step_seconds.insert(out.step_seconds.end(), generation.step_seconds.begin(), generation.step_seconds.end());
  }
  if (run) out.gpu.run = run->finish();
  const double prompt = static_cast<double>(c.prompt_length);
  out.prefill_cost = engine.pass_cost(c.batch_size * c.prompt_length, c.batch_size, prompt / 2);
  out.step_cost = engine.pass_cost(c.batch_size, c.batch_size, prompt + static_cast<double>(c.new_tokens) / 2);
}

PerplexityOptions procedure_of(const BenchCase& c) {
  return perplexity_options(
      c.perplexity_procedure,
      {.context = c.perplexity_context, .stride = c.perplexity_stride, .max_windows = c.perplexity_windows});
}

void measure_perplexity(Engine& engine, const BenchCase& c, const CaseProgress& progress, BenchResult& out) {
  const Tokenizer tokenizer = Tokenizer::load(c.folder);
  const PerplexityResult measured = measure_perplexity_of_file(
      engine, tokenizer, c.perplexity_file, procedure_of(c), [&](std::int64_t done, std::int64_t total) {
        progress("perplexity", static_cast<double>(done) / static_cast<double>(total));
      });
  out.perplexity = measured.perplexity;
  out.perplexity_running = measured.mean_of_running;
  out.perplexity_error = measured.error;
  out.perplexity_tokens = measured.scored_tokens;
}

}  // namespace

BenchResult run_case(const BenchCase& c, const CaseProgress& progress) {
  if (is_encoder(c.folder)) return run_encoder_case(c, std::make_shared<const Checkpoint>(c.folder), progress);
  BenchResult out;
  EngineOptions options = engine_options(c);
  if (!c.perplexity_file.empty()) {
    options.max_tokens = std::max(options.max_tokens, procedure_of(c).context);
    options.max_logit_rows = kPerplexityRows;
  }
  Watches watches;
  progress("opening", 0);
  OpenedDevice opened = open_device(options);
  const bool gpu = opened.backend->device().info().kind != DeviceKind::cpu;
  if (gpu) {
    out.gpu.open_seconds = opened.seconds;
    out.gpu.context = opened.context;
    out.gpu.remarks = opened.nvml_missing;
  }
  const auto opening = std::chrono::steady_clock::now();
  auto checkpoint = std::make_shared<const Checkpoint>(c.folder);
  const double open_seconds = seconds_since(opening);

  progress("verifying kernels", 0);
  // A decode step's rows and a prompt's, but no more than it takes to tell the kernels' ways for few and many rows
  // apart.
  constexpr std::int64_t kMostRows = 64;
  const std::int64_t step_rows = std::min(kMostRows, c.batch_size);
  std::vector<std::int64_t> rows = {step_rows};
  if (c.prompt_length > 1) rows.push_back(std::min(kMostRows, step_rows * std::min(kMostRows, c.prompt_length)));
  const ModelVerification verified = verify_model(*checkpoint, options, *opened.backend, rows);
  out.verified_sites = verified.sites;
  out.verified_error = verified.error;

  progress("loading", 0);
  // What the verification held is gone from here on: what is seen is what a run of the model takes. A GPU's context
  // stays with the process.
  opened.backend.reset();
  // Now, as verification has read a layer or two.
  out.cached_share = weights_cached(*checkpoint);
  watches.gpu = opened.nvml;
  if (watches.gpu) watches.gpu_memory.emplace(*watches.gpu, opened.used_before);
  Engine engine(checkpoint, options);
  out.load = engine.load_times();
  out.load.open += open_seconds;
  out.load.total += open_seconds;
  // Verification has lowered the same model first, and measured what the engine then found in the file of choices.
  out.load.tune += verified.tune_seconds;
  out.quantisation = facts_of(*checkpoint, engine.sites());
  out.kernels = kernels_of(engine.sites());
  out.layers = layers_of(engine.sites(), engine.device().info().kind);
  out.dtype = name_of(engine.compute());
  out.kv_dtype = name_of(engine.kv_dtype());
  out.device = engine.device().info().name;
  out.isa = engine.device().info().isa;
  out.threads = engine.device().info().threads;
  out.planned_bytes = engine.plan().total();
  out.planned_weights = engine.plan().weights + engine.plan().embedding;
  out.planned_kv_cache = engine.plan().kv_cache;
  out.planned_arena = engine.plan().arena;
  out.planned_workspace = engine.plan().workspace;
  if (c.speed) measure_speed(engine, c, watches, progress, out);
  if (!c.perplexity_file.empty()) measure_perplexity(engine, c, progress, out);
  watches.stop();
  out.memory = watches.host.peak();
  if (watches.gpu_memory) out.gpu.peak = watches.gpu_memory->peak();
  if (const std::string remarks = remarks_on(out.gpu.run); !remarks.empty())
    out.gpu.remarks += (out.gpu.remarks.empty() ? "" : "; ") + remarks;
  // A GPU's memory is measured once a run, without a model beside it.
  if (c.speed && !gpu)
    out.own_bandwidth = measure_read_bandwidth(static_cast<std::size_t>(out.step_cost.bytes), kBandwidthSeconds);
  return out;
}

}  // namespace nibble
