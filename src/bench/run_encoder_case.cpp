#include "bench/run_encoder_case.h"

#include "bench/case_facts.h"
#include "bench/encoder_bench.h"
#include "bench/open_device.h"
#include "bench/verify_model.h"
#include "bench/watches.h"
#include "core/clock.h"
#include "core/error.h"
#include "engine/encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

EncoderOptions encoder_options(const BenchCase& c) {
  EncoderOptions options;
  options.device = c.device;
  options.kernel = c.kernel;
  options.compute = dtype_option(c.dtype, "--dtype");
  options.pass_rows = c.prefill_chunk;
  options.path = c.fuse ? EncoderPath::fast : EncoderPath::eager;
  return options;
}

}  // namespace

const std::vector<std::string_view>& encoder_tasks() {
  static const std::vector<std::string_view> tasks = {"feature-extraction", "fill-mask", "text-classification",
                                                      "token-classification", "question-answering"};
  return tasks;
}

BenchResult run_encoder_case(const BenchCase& c, const std::shared_ptr<const Checkpoint>& checkpoint,
                             const CaseProgress& progress) {
  if (!c.perplexity_file.empty()) fail_usage("--ppl: {} is an encoder, which has no perplexity", c.folder);
  BenchResult out;
  Watches watches;
  progress("verifying kernels", 0);
  const EncoderCell cell{
      c.batch_size, c.prompt_length, 0,
      std::vector<std::int32_t>(static_cast<std::size_t>(c.batch_size), static_cast<std::int32_t>(c.prompt_length))};
  EngineOptions engine_options;
  engine_options.device = c.device;
  OpenedDevice opened = open_device(engine_options);
  const bool gpu = opened.backend->device().info().kind == DeviceKind::cuda;
  {
    EncoderEngine engine(checkpoint, encoder_options(c));
    constexpr std::int64_t kMostRows = 64;
    const std::array rows = {std::min(kMostRows, cell.tokens())};
    const ModelVerification verified = verify_nodes(*checkpoint, engine.nodes(), *opened.backend, rows);
    out.verified_sites = verified.sites;
    out.verified_error = verified.error;
  }
  if (gpu) {
    out.gpu.open_seconds = opened.seconds;
    out.gpu.context = opened.context;
    out.gpu.remarks = opened.nvml_missing;
  }
  opened.backend.reset();
  watches.gpu = opened.nvml;
  if (watches.gpu) watches.gpu_memory.emplace(*watches.gpu, opened.used_before);
  progress("loading", 0);
  out.cached_share = weights_cached(*checkpoint);
  EncoderEngine engine(checkpoint, encoder_options(c));
  out.load = engine.load_times();
  out.quantisation = facts_of(*checkpoint, engine.sites());
  out.kernels = kernels_of(engine.sites());
  out.layers = layers_of(engine.sites(), engine.device().info().kind);
  out.dtype = name_of(engine.compute());
  out.kv_dtype = "None";
  out.device = engine.device().info().name;
  out.isa = engine.device().info().isa;
  out.threads = engine.device().info().threads;

  const std::vector<std::int32_t> ids = random_ids(engine.program(), cell, c.seed, 0);
  const EncoderBatch batch{c.batch_size, c.prompt_length, ids, cell.lengths, {}};
  EncoderResult result;
  // On a GPU hidden states stay in its memory.
  const EncoderWants wants{.hidden = !gpu, .head = false, .on_device = gpu};
  progress("warm-up", 0);
  engine.forward(batch, wants, result);
  watches.stop();
  std::optional<GpuRunWatch> run;
  if (watches.gpu) run.emplace(*watches.gpu);
  for (std::int64_t i = 0; i < c.num_batches; ++i) {
    progress(fmt::format("batch {} of {}", i + 1, c.num_batches),
             static_cast<double>(i + 1) / (static_cast<double>(c.num_batches) + 1));
    const Clock::time_point start = Clock::now();
    engine.forward(batch, wants, result);
    out.total_seconds.push_back(seconds_since(start));
    out.prefill_seconds.push_back(out.total_seconds.back());
  }
  if (run) out.gpu.run = run->finish();
  out.prefill_cost = engine.cost(cell.lengths);
  out.planned_bytes = engine.plan().total();
  out.planned_weights = engine.plan().weights + engine.plan().embedding;
  out.planned_arena = engine.plan().arena;
  out.planned_workspace = engine.plan().workspace;
  out.memory = watches.host.peak();
  if (watches.gpu_memory) out.gpu.peak = watches.gpu_memory->peak();
  if (const std::string remarks = remarks_on(out.gpu.run); !remarks.empty())
    out.gpu.remarks += (out.gpu.remarks.empty() ? "" : "; ") + remarks;
  return out;
}

}  // namespace nibble
