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
  const int s = at.of_tile(static_cast<int>(blockIdx.x));
  const std::int64_t frame = static_cast<std::int64_t>(static_cast<int>(blockIdx.x) - at.tile_begin.data()[s]) * kSide;
  const std::int64_t y_rows = at.y_rows.data()[s];
  const std::int64_t x_rows = at.x_rows.data()[s];
  const int first = static_cast<int>(blockIdx.y) * kSide;
  const int group = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x);
  const int own_k = thread % kDepth;

  float sum[kOwn][kOwn] = {};
  for (int begin = 0; begin < p.window; begin += kDepth) {
    const int k = begin + own_k;
    const int tap = k / p.width;
    const int channel = k % p.width;
    __syncthreads();  // all have read the values before these
#pragma unroll
    for (int i = 0; i < kSide; i += kThreads / kDepth) {
      const int line = thread / kDepth + i;
      const std::int64_t row = (frame + line) * p.stride + tap - p.padding;
      const bool inside = k < p.window && frame + line < y_rows && row >= 0 && row < x_rows;
      windows[own_k][line] =
          inside ? x.row(at.x_begin.data()[s] + row)[static_cast<std::int64_t>(group) * p.width + channel] : 0.0f;
      weights[own_k][line] =
          k < p.window && first + line < p.outputs
              ? p.weight[(static_cast<std::int64_t>(group) * p.outputs + first + line) * p.window + k]
              : 0.0f;
    }
    __syncthreads();
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
    const std::int64_t row = frame + thread / 16 * kOwn + i;
    if (row >= y_rows) break;
    float* const to = y.row(at.y_begin.data()[s] + row) + static_cast<std::int64_t>(group) * p.outputs;
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
  for_sequences(frames.spans, kSide, [&](const SequenceRows& sequences) {
    launch(stream, dim3(static_cast<unsigned>(sequences.tiles()), columns, static_cast<unsigned>(shape.groups)),
           dim3(kThreads), 0, Overlap::yes, f32_kernel, Rows<const float>(frames.x), Rows<float>(frames.y), parameters,
           sequences);
  });
}

}  // namespace nibble::cuda
