#include "engine/configuration.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "models/family.h"
#include "ops/cuda_loader.h"

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <string_view>

namespace nibble {
namespace {

// Past this the prompt's activations leave the level-2 cache between two sites; a pass of 512 rows fills the cores.
constexpr std::int64_t kDefaultChunk = 512;
// A GPU needs more rows to fill, and 4-bit weights are written out once for each pass. On an H100, 13 billion weights
// and 8192 rows: 411 ms in passes of 2048, 389 in 4096, 371 in 8192, each step up taking 0.3 and 0.6 GB more.
constexpr std::int64_t kDefaultChunkGpu = 4096;
// Models that promise more positions than this get this many unless the user asks for more.
constexpr std::int64_t kDefaultTokens = 4096;

}  // namespace

std::string DeviceChoice::name() const { return kind == DeviceKind::cpu ? "cpu" : fmt::format("cuda:{}", index); }

DeviceChoice choose_device(std::string_view name) {
  constexpr std::string_view kCuda = "cuda";
  if (name == "cpu") return {};
  if (name == "auto") return {cuda_device_count() > 0 ? DeviceKind::cuda : DeviceKind::cpu, 0};
  if (name.starts_with(kCuda)) {
    const std::string_view index = name.substr(kCuda.size());
    if (index.empty()) return {DeviceKind::cuda, 0};
    if (index.size() == 2 && index[0] == ':' && index[1] >= '0' && index[1] <= '9')
      return {DeviceKind::cuda, index[1] - '0'};
  }
  fail_usage("there is no device \"{}\": expected auto, cpu, cuda or cuda:N with a GPU's number", name);
}

std::unique_ptr<Backend> make_backend(const EngineOptions& options) {
  const DeviceChoice choice = choose_device(options.device);
  return choice.kind == DeviceKind::cpu ? make_cpu_backend() : make_cuda_backend(choice.index);
}

EngineConfiguration configure_engine(const Checkpoint& checkpoint, const EngineOptions& options, Backend& backend) {
  EngineConfiguration out;
  out.program = program_from_checkpoint(checkpoint);
  const Program& program = out.program;
  if (program.encoder) {
    fail("{} is a {} model, an encoder, which generates no text: use nibble encode and bench bettertransformer",
         checkpoint.folder().string(), program.architecture);
  }

  const TensorView embedding = checkpoint.tensor(tables_of(program).front());
  const bool gpu = backend.device().info().kind == DeviceKind::cuda;
  // On a GPU a 16-bit checkpoint is computed in its own type; the CPU has no products of f16.
  const DType half = gpu && embedding.dtype == DType::f16 ? DType::f16 : DType::bf16;
  out.compute = options.compute.value_or(embedding.dtype == DType::f32 ? DType::f32 : half);
  out.kv_dtype = options.kv_dtype.value_or(out.compute);
  const auto allowed = [](DType type, std::initializer_list<DType> types) {
    return std::find(types.begin(), types.end(), type) != types.end();
  };
  if (!allowed(out.compute, {DType::f32, DType::bf16}) && (!gpu || out.compute != DType::f16)) {
    fail_usage("compute type {} is not supported on {}; use f32{} or bf16", name_of(out.compute),
               gpu ? "GPUs" : "the CPU", gpu ? ", f16" : "");
  }
  if (!allowed(out.kv_dtype, {DType::f32, DType::bf16, DType::f16}) &&
      !(gpu && allowed(out.kv_dtype, {DType::i8, DType::f8_e4m3}))) {
    fail_usage("KV cache type {} is not supported on {}; use f32, bf16{}", name_of(out.kv_dtype),
               gpu ? "GPUs" : "the CPU", gpu ? ", f16, i8 or f8_e4m3" : " or f16");
  }
  if (options.max_batch < 1) fail_usage("the batch should be at least 1, found {}", options.max_batch);
  RunSizes& sizes = out.sizes;
  sizes.max_batch = options.max_batch;
  sizes.max_tokens = options.max_tokens > 0 ? options.max_tokens : std::min(program.max_positions, kDefaultTokens);
  if (sizes.max_tokens > program.max_positions && program.rotary.dims == 0) {
    fail_usage("{} tokens a sequence are more than the {} positions that the model has", sizes.max_tokens,
               program.max_positions);
  }
  const std::int64_t chunk =
      options.prefill_chunk > 0 ? options.prefill_chunk : (gpu ? kDefaultChunkGpu : kDefaultChunk);
  sizes.max_rows =
      std::max(sizes.max_batch, std::min(chunk, checked_mul(sizes.max_batch, sizes.max_tokens, "the rows of a batch")));
  sizes.max_logit_rows = std::max(sizes.max_batch, std::min(options.max_logit_rows, sizes.max_rows));
  sizes.kv_dtype = out.kv_dtype;
  const BackendTraits traits = backend.traits();
  sizes.activations = traits.compute_activations ? out.compute : DType::f32;
  sizes.joins_parts = traits.joins_parts;

  LoweringOptions lowering;
  lowering.kernel = options.kernel;
  lowering.compute = out.compute;
  lowering.fuse = options.fuse;
  lowering.max_rows = sizes.max_rows;
  lowering.decode_rows = sizes.max_batch;
  lowering.backend = traits;
  const auto start = std::chrono::steady_clock::now();
  out.nodes = lower(program, backend.device(), lowering);
  if (options.kernel == "auto") out.tune_seconds = seconds_since(start);
  out.plan = make_plan(program, out.nodes, sizes, backend, embedding.bytes.size());
  return out;
}

}  // namespace nibble
