// The few frames of a sequence whose windows reach into padding, of convolutions of one group: a warp adds up the
// products of one output's window, which is a run of memory.
#include "core/checked.h"
#include "kernels/cuda/activation_16.cuh"
#include "ops/cuda/convolution.h"
#include "ops/cuda/elements.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;

struct Parameters {
  const float* bias;
  int inputs, outputs, kernel, stride, padding;
  bool active;
  ActivationKind activation;
};

template <int kWidth, typename T>
__global__ void __launch_bounds__(32 * kWarps)
    edges_kernel(Rows<const T> x, const T* weight, Rows<T> y, Parameters p, const __grid_constant__ SequenceRows at) {
  pdl_wait();
  pdl_launch();
  const SequenceRows::Tile tile = at.tile<1>(static_cast<int>(blockIdx.x));
  const int n = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (tile.frames <= 0 || n >= p.outputs) return;
  // The part of the window that lies within the sequence.
  const std::int64_t begin = tile.frame * p.stride - p.padding;
  const std::int64_t from = max(begin, std::int64_t{0});
  const std::int64_t to = min(begin + p.kernel, tile.x_rows);
  const auto count = static_cast<int>(max(to - from, std::int64_t{0})) * p.inputs;
  const T* const values = x.row(tile.x_begin + from);
  const T* const weights = weight + (static_cast<std::int64_t>(n) * p.kernel + (from - begin)) * p.inputs;
  float sum = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) % 32 * kWidth; i < count; i += 32 * kWidth) {
    float a[kWidth];
    float b[kWidth];
    load(values + i, a);
    load(weights + i, b);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum = fmaf(a[j], b[j], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 != 0) return;
  if (p.bias != nullptr) sum += p.bias[n];
  if (p.active) sum = activate_for<T>(p.activation, sum);
  y.row(tile.y_begin + tile.frame)[n] = from_float<T>(sum);
}

}  // namespace

bool takes_edges(const Frames& frames) {
  constexpr std::int64_t kMostFrames = 4;  // of a sequence
  return std::all_of(frames.spans.begin(), frames.spans.end(),
                     [](const FrameSpan& span) { return span.y_rows <= kMostFrames; });
}

void convolve_edges(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  const ConvolutionShape& shape = packed.shape;
  const Parameters parameters{packed.bias_values(),
                              static_cast<int>(shape.inputs),
                              static_cast<int>(shape.outputs),
                              static_cast<int>(shape.kernel),
                              static_cast<int>(shape.stride),
                              static_cast<int>(frames.padding),
                              shape.activation.has_value(),
                              shape.activation.value_or(ActivationKind::relu)};
  const auto blocks = static_cast<unsigned>(ceil_div(shape.outputs, std::int64_t{kWarps}));
  for_sequences(frames, 1, [&](const SequenceRows& sequences, unsigned tiles) {
    with_type(shape.compute, "y", [&](auto type) {
      with_width(takes_vectors(frames.x), [&](auto width) {
        using T = decltype(type);
        launch(stream, dim3(tiles, blocks), dim3(32 * kWarps), 0, Overlap::yes, edges_kernel<decltype(width)::value, T>,
               Rows<const T>(frames.x), reinterpret_cast<const T*>(packed.weight->data()), Rows<T>(frames.y),
               parameters, sequences);
      });
    });
  });
}

}  // namespace nibble::cuda
