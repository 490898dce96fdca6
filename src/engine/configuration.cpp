#include "engine/configuration.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "models/family.h"

#include <algorithm>
#include <chrono>

namespace nibble {
namespace {

// Past this the prompt's activations leave the level-2 cache between two sites; a pass of 512 rows fills the cores.
constexpr std::int64_t kDefaultChunk = 512;
// Models that promise more positions than this get this many unless the user asks for more.
constexpr std::int64_t kDefaultTokens = 4096;

}  // namespace

std::unique_ptr<Backend> make_backend(const EngineOptions& options) {
  if (options.device != "cpu") fail_usage("there is no device \"{}\"; this build has cpu", options.device);
  return make_cpu_backend();
}

EngineConfiguration configure_engine(const Checkpoint& checkpoint, const EngineOptions& options, Backend& backend) {
  EngineConfiguration out;
  out.program = program_from_checkpoint(checkpoint);
  const Program& program = out.program;

  const TensorView embedding = checkpoint.tensor(std::get<EmbedNode>(program.nodes.front().op).table);
  out.compute = options.compute.value_or(embedding.dtype == DType::f32 ? DType::f32 : DType::bf16);
  out.kv_dtype = options.kv_dtype.value_or(out.compute);
  if (out.compute != DType::f32 && out.compute != DType::bf16) {
    fail_usage("compute type {} is not supported here; use f32 or bf16", name_of(out.compute));
  }
  if (out.kv_dtype != DType::f32 && out.kv_dtype != DType::bf16 && out.kv_dtype != DType::f16) {
    fail_usage("KV cache type {} is not supported here; use f32, bf16 or f16", name_of(out.kv_dtype));
  }
  if (options.max_batch < 1) fail_usage("the batch should be at least 1, found {}", options.max_batch);
  RunSizes& sizes = out.sizes;
  sizes.max_batch = options.max_batch;
  sizes.max_tokens = options.max_tokens > 0 ? options.max_tokens : std::min(program.max_positions, kDefaultTokens);
  if (sizes.max_tokens > program.max_positions && program.rotary.dims == 0) {
    fail_usage("{} tokens a sequence are more than the {} positions that the model has", sizes.max_tokens,
               program.max_positions);
  }
  const std::int64_t chunk = options.prefill_chunk > 0 ? options.prefill_chunk : kDefaultChunk;
  sizes.max_rows =
      std::max(sizes.max_batch, std::min(chunk, checked_mul(sizes.max_batch, sizes.max_tokens, "the rows of a batch")));
  sizes.max_logit_rows = std::max(sizes.max_batch, std::min(options.max_logit_rows, sizes.max_rows));
  sizes.kv_dtype = out.kv_dtype;

  LoweringOptions lowering;
  lowering.kernel = options.kernel;
  lowering.compute = out.compute;
  lowering.fuse = options.fuse;
  lowering.max_rows = sizes.max_rows;
  lowering.decode_rows = sizes.max_batch;
  const auto start = std::chrono::steady_clock::now();
  out.nodes = lower(program, backend.device(), lowering);
  out.tune_seconds = seconds_since(start);
  out.plan = make_plan(program, out.nodes, sizes, backend, embedding.bytes.size());
  return out;
}

}  // namespace nibble
