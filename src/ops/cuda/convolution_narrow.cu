// Convolutions whose windows hold few values: a thread keeps the weights of its outputs and walks along the frames of a
// tile, whose inputs lie in shared memory.
#include "core/checked.h"
#include "kernels/cuda/activation_16.cuh"
#include "ops/cuda/convolution.h"
#include "ops/cuda/elements.cuh"

namespace nibble::cuda {
namespace {

constexpr int kFrames = 128;        // of a tile
constexpr int kThreads = 64;        // of a block, each with kVector outputs
constexpr int kMostTaps = 16;       // values of a window
constexpr std::int64_t kStep = 16;  // values from one window to the next, at most
constexpr int kValues = (kFrames - 1) * static_cast<int>(kStep) + kMostTaps;

struct Parameters {
  const float* bias;
  int inputs, outputs, window, stride, padding;
  bool vectors;  // y takes them
  std::optional<ActivationKind> activation;
};

template <int kTaps, typename T, typename X>
__global__ void __launch_bounds__(kThreads)
    narrow_kernel(Rows<const X> x, const T* weight, Rows<T> y, Parameters p, const __grid_constant__ SequenceRows at) {
  __shared__ float values[kValues];
  const int first = (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  float w[kTaps][kVector];
  float bias[kVector];
#pragma unroll
  for (int n = 0; n < kVector; ++n) {
    const bool there = first + n < p.outputs;
    bias[n] = there && p.bias != nullptr ? p.bias[first + n] : 0.0f;
#pragma unroll
    for (int k = 0; k < kTaps; ++k)
      w[k][n] = there && k < p.window ? to_float(weight[static_cast<std::int64_t>(first + n) * p.window + k]) : 0.0f;
  }
  pdl_wait();
  pdl_launch();
  const SequenceRows::Tile tile = at.tile<kFrames>(static_cast<int>(blockIdx.x));
  const int frames = static_cast<int>(tile.frames);
  const std::int64_t before = tile.frame * p.stride - p.padding;
  const int count = (frames - 1) * p.stride * p.inputs + kTaps;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const std::int64_t row = before + i / p.inputs;
    values[i] = row >= 0 && row < tile.x_rows ? to_float(x.row(tile.x_begin + row)[i % p.inputs]) : 0.0f;
  }
  __syncthreads();
  if (first >= p.outputs) return;
  for (int f = 0; f < frames; ++f) {
    float sum[kVector];
#pragma unroll
    for (int n = 0; n < kVector; ++n) sum[n] = bias[n];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const float value = values[f * p.stride * p.inputs + k];
#pragma unroll
      for (int n = 0; n < kVector; ++n) sum[n] = fmaf(value, w[k][n], sum[n]);
    }
    if (p.activation) {
#pragma unroll
      for (int n = 0; n < kVector; ++n) sum[n] = activate_for<T>(*p.activation, sum[n]);
    }
    T* const to = y.row(tile.y_begin + tile.frame + f) + first;
    if (p.vectors) {
      store(to, sum);
      continue;
    }
#pragma unroll
    for (int n = 0; n < kVector; ++n) {
      if (first + n < p.outputs) to[n] = from_float<T>(sum[n]);
    }
  }
}

}  // namespace

bool is_narrow(const ConvolutionShape& shape) {
  return shape.groups == 1 && shape.window() <= kMostTaps && shape.stride <= kStep &&
         shape.stride * shape.inputs <= kStep;
}

void convolve_narrow(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  const ConvolutionShape& shape = packed.shape;
  const Parameters parameters{packed.bias_values(),
                              static_cast<int>(shape.inputs),
                              static_cast<int>(shape.outputs),
                              static_cast<int>(shape.window()),
                              static_cast<int>(shape.stride),
                              static_cast<int>(frames.padding),
                              takes_vectors(frames.y),
                              shape.activation};
  const auto blocks = static_cast<unsigned>(ceil_div(shape.outputs, std::int64_t{kThreads * kVector}));
  for_sequences(frames, kFrames, [&](const SequenceRows& sequences, unsigned tiles) {
    with_type(frames.x.dtype, "x", [&](auto from) {
      with_type(shape.compute, "y", [&](auto to) {
        using X = decltype(from);
        using T = decltype(to);
        const auto with = [&](auto taps) {
          launch(stream, dim3(tiles, blocks), dim3(kThreads), 0, Overlap::yes,
                 narrow_kernel<decltype(taps)::value, T, X>, Rows<const X>(frames.x),
                 reinterpret_cast<const T*>(packed.weight->data()), Rows<T>(frames.y), parameters, sequences);
        };
        constexpr int kOfSamples = 10;  // the first convolution of wav2vec 2.0 and its relatives
        if (shape.window() <= kOfSamples) {
          with(std::integral_constant<int, kOfSamples>{});
        } else {
          with(std::integral_constant<int, kMostTaps>{});
        }
      });
    });
  });
}

}  // namespace nibble::cuda
