// What a decode step leaves for the next one, so that a captured step can be replayed without the host.
#include "ops/cuda/cuda_ops.h"

#include "core/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr unsigned kThreads = 128;

__global__ void advance_sequences(AdvanceArgs args) {
  pdl_wait();
  pdl_launch();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= args.sequences) return;
  const std::int32_t token = args.next[i];
  const std::int32_t step = args.step_of[i];
  args.tokens[i] = token;
  args.positions[i] += 1;
  args.history[i * args.history_stride + step] = token;
  args.step_of[i] = step + 1;
  if (args.seen != nullptr) args.seen[i * args.vocab + token] = 1;
}

}  // namespace

void advance(const AdvanceArgs& args, CudaStream& stream) {
  if (args.sequences == 0) return;
  const auto blocks = static_cast<unsigned>((args.sequences + kThreads - 1) / kThreads);
  launch(stream, dim3(blocks), dim3(kThreads), 0, Overlap::yes, advance_sequences, args);
}

}  // namespace nibble::cuda
