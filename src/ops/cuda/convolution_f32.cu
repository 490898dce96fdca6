// Convolutions in f32 that are padded or grouped: tiles of frames and outputs, whose windows are gathered from x a few
// values at a time.
#include "core/checked.h"
#include "kernels/cuda/activation.cuh"
#include "ops/cuda/convolution.h"
#include "ops/cuda/elements.cuh"

namespace nibble::cuda {
namespace {

constexpr int kSide = 64;   // frames and outputs of a tile
constexpr int kDepth = 16;  // values of a window at a time
constexpr int kThreads = 256;
constexpr int kOwn = 4;  // frames and outputs of a thread
constexpr int kPad = 4;

struct Parameters {
  const float* weight;
  const float* bias;
  int width, outputs;  // of a group
  int window, stride, padding;
  std::optional<ActivationKind> activation;
};

__global__ void __launch_bounds__(kThreads)
    f32_kernel(Rows<const float> x, Rows<float> y, Parameters p, const __grid_constant__ SequenceRows at) {
  __shared__ float windows[kDepth][kSide + kPad];
  __shared__ float weights[kDepth][kSide + kPad];
  pdl_wait();
  pdl_launch();
  const SequenceRows::Tile tile = at.tile<kSide>(static_cast<int>(blockIdx.x));
  if (tile.frames <= 0) return;
  const int first = static_cast<int>(blockIdx.y) * kSide;
  const int group = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x);
  const int own_k = thread % kDepth;

  // This thread's part of the values of a depth: brought while those before are multiplied.
  constexpr int kParts = kSide * kDepth / kThreads;
  float own_windows[kParts];
  float own_weights[kParts];
  const auto fetch = [&](int begin) {
    const int k = begin + own_k;
    const int tap = k / p.width;
    const int channel = k % p.width;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int line = thread / kDepth + i * (kThreads / kDepth);
      const std::int64_t row = (tile.frame + line) * p.stride + tap - p.padding;
      const bool inside = k < p.window && line < tile.frames && row >= 0 && row < tile.x_rows;
      own_windows[i] = inside ? x.row(tile.x_begin + row)[static_cast<std::int64_t>(group) * p.width + channel] : 0.0f;
      own_weights[i] = k < p.window && first + line < p.outputs
                           ? p.weight[(static_cast<std::int64_t>(group) * p.outputs + first + line) * p.window + k]
                           : 0.0f;
    }
  };

  float sum[kOwn][kOwn] = {};
  fetch(0);
  for (int begin = 0; begin < p.window; begin += kDepth) {
    __syncthreads();  // all have read the values before these
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int line = thread / kDepth + i * (kThreads / kDepth);
      windows[own_k][line] = own_windows[i];
      weights[own_k][line] = own_weights[i];
    }
    __syncthreads();
    if (begin + kDepth < p.window) fetch(begin + kDepth);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float4 a = *reinterpret_cast<const float4*>(&windows[d][thread / 16 * kOwn]);
      const float4 b = *reinterpret_cast<const float4*>(&weights[d][thread % 16 * kOwn]);
      const float of_frames[kOwn] = {a.x, a.y, a.z, a.w};
      const float of_outputs[kOwn] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sum[i][j] = fmaf(of_frames[i], of_outputs[j], sum[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int line = thread / 16 * kOwn + i;
    if (line >= tile.frames) break;
    float* const to = y.row(tile.y_begin + tile.frame + line) + static_cast<std::int64_t>(group) * p.outputs;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int n = first + thread % 16 * kOwn + j;
      if (n >= p.outputs) break;
      float value = sum[i][j];
      if (p.bias != nullptr) value += p.bias[static_cast<std::int64_t>(group) * p.outputs + n];
      if (p.activation) value = activate(*p.activation, value);
      to[n] = value;
    }
  }
}

}  // namespace

void convolve_f32(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  const ConvolutionShape& shape = packed.shape;
  const Parameters parameters{reinterpret_cast<const float*>(packed.weight->data()),
                              packed.bias_values(),
                              static_cast<int>(shape.inputs / shape.groups),
                              static_cast<int>(shape.outputs / shape.groups),
                              static_cast<int>(shape.window()),
                              static_cast<int>(shape.stride),
                              static_cast<int>(frames.padding),
                              shape.activation};
  const auto columns = static_cast<unsigned>(ceil_div(shape.outputs / shape.groups, std::int64_t{kSide}));
  for_sequences(frames, kSide, [&](const SequenceRows& sequences, unsigned tiles) {
    launch(stream, dim3(tiles, columns, static_cast<unsigned>(shape.groups)), dim3(kThreads), 0, Overlap::yes,
           f32_kernel, Rows<const float>(frames.x), Rows<float>(frames.y), parameters, sequences);
  });
}

}  // namespace nibble::cuda
