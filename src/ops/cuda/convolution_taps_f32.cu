// Convolutions in f32 of many taps and few channels a group, as those of positions are: the rows that the windows of a
// tile look at are brought once into shared memory; every tap then is a product of rows there, shifted by one from tap
// to tap, and its weights, which follow each other through a ring of stages.
#include "core/checked.h"
#include "core/cuda/async_copy.cuh"
#include "kernels/cuda/activation.cuh"
#include "ops/cuda/convolution.h"
#include "ops/cuda/elements.cuh"

namespace nibble::cuda {
namespace {

constexpr int kFrames = 64;  // of a tile
constexpr int kThreads = 256;
constexpr int kAcross = 16;              // threads side by side, each with some outputs of its own
constexpr int kOwnFrames = 4;            // of a thread
constexpr int kAccesses = 6;             // of a thread to the weights of a tap, at most
constexpr int kStages = 3;               // taps of weights
constexpr int kMostBytes = 100 << 10;    // of shared memory: two blocks a multiprocessor
constexpr std::int64_t kFewestTaps = 8;  // rows of fewer are brought as quickly for each tap

struct Parameters {
  const float* weight;
  const float* bias;
  int width, outputs;  // of a group
  int kernel, padding;
  bool active;
  ActivationKind activation;
};

// Rows in shared memory: four more floats than channels, so that eight rows lie in different banks.
__host__ __device__ int pitch_of(int width) { return width + 4; }

int shared_bytes(std::int64_t width, std::int64_t kernel, int outputs) {
  const std::int64_t rows = kFrames + kernel - 1 + kStages * outputs;
  return static_cast<int>(std::min<std::int64_t>(rows * pitch_of(static_cast<int>(width)) * 4, 1 << 30));
}

// kOwnOutputs: 3 or 4 of a thread, a tile has 16 times as many.
template <int kOwnOutputs>
__global__ void __launch_bounds__(kThreads, 2)
    taps_kernel(Rows<const float> x, Rows<float> y, Parameters p, const __grid_constant__ SequenceRows at) {
  extern __shared__ float4 memory[];
  constexpr int kOutputs = kOwnOutputs * kAcross;
  pdl_wait();
  pdl_launch();
  const SequenceRows::Tile tile = at.tile<kFrames>(static_cast<int>(blockIdx.x));
  if (tile.frames <= 0) return;
  const int pitch = pitch_of(p.width);
  const int rows = kFrames + p.kernel - 1;
  float* const windows = reinterpret_cast<float*>(memory);
  float* const weights = windows + rows * pitch;
  const int first = static_cast<int>(blockIdx.y) * kOutputs;
  const int group = static_cast<int>(blockIdx.z);
  const int tid = static_cast<int>(threadIdx.x);
  const int across = tid % kAcross;
  const int line0 = tid / kAcross * kOwnFrames;
  const int fours = p.width / 4;

  // This thread's accesses to each tap's weights: where they lie at the first tap, and where they go.
  const float* from[kAccesses];
  int to[kAccesses];
#pragma unroll
  for (int k = 0; k < kAccesses; ++k) {
    const int i = tid + k * kThreads;
    const int n = i / fours;
    to[k] = n < kOutputs ? n * pitch + i % fours * 4 : -1;
    const std::int64_t output = static_cast<std::int64_t>(group) * p.outputs + first + n;
    from[k] = first + n < p.outputs ? p.weight + output * p.kernel * p.width + i % fours * 4 : nullptr;
  }
  const auto fetch_weights = [&](int tap) {
    float* const stage = weights + tap % kStages * kOutputs * pitch;
#pragma unroll
    for (int k = 0; k < kAccesses; ++k) {
      if (to[k] < 0) continue;
      const bool inside = from[k] != nullptr;
      copy_16(stage + to[k], inside ? from[k] + tap * p.width : p.weight, inside);
    }
  };
  for (int i = tid; i < rows * fours; i += kThreads) {
    const std::int64_t row = tile.frame - p.padding + i / fours;
    const bool inside = row >= 0 && row < tile.x_rows;
    copy_16(windows + i / fours * pitch + i % fours * 4,
            x.row(tile.x_begin + (inside ? row : 0)) + static_cast<std::int64_t>(group) * p.width + i % fours * 4,
            inside);
  }
  for (int tap = 0; tap < kStages - 1; ++tap) {
    if (tap < p.kernel) fetch_weights(tap);
    copies_end_group();  // the rows of x with the first one
  }

  float sum[kOwnFrames][kOwnOutputs] = {};
  for (int tap = 0; tap < p.kernel; ++tap) {
    copies_wait<kStages - 2>();
    __syncthreads();  // the tap's weights are there, and those of the tap before have been read
    if (tap + kStages - 1 < p.kernel) fetch_weights(tap + kStages - 1);
    copies_end_group();
    const float* const own_rows = windows + (line0 + tap) * pitch;
    const float* const own_weights = weights + (tap % kStages * kOutputs + across) * pitch;
#pragma unroll 2
    for (int c = 0; c < p.width; c += 4) {
      float4 a[kOwnFrames];
      float4 b[kOwnOutputs];
#pragma unroll
      for (int i = 0; i < kOwnFrames; ++i) a[i] = *reinterpret_cast<const float4*>(own_rows + i * pitch + c);
#pragma unroll
      for (int j = 0; j < kOwnOutputs; ++j)
        b[j] = *reinterpret_cast<const float4*>(own_weights + j * kAcross * pitch + c);
#pragma unroll
      for (int i = 0; i < kOwnFrames; ++i) {
#pragma unroll
        for (int j = 0; j < kOwnOutputs; ++j) {
          sum[i][j] = fmaf(a[i].x, b[j].x, sum[i][j]);
          sum[i][j] = fmaf(a[i].y, b[j].y, sum[i][j]);
          sum[i][j] = fmaf(a[i].z, b[j].z, sum[i][j]);
          sum[i][j] = fmaf(a[i].w, b[j].w, sum[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kOwnFrames; ++i) {
    if (line0 + i >= tile.frames) break;
    float* const out = y.row(tile.y_begin + tile.frame + line0 + i) + static_cast<std::int64_t>(group) * p.outputs;
#pragma unroll
    for (int j = 0; j < kOwnOutputs; ++j) {
      const int n = first + across + j * kAcross;
      if (n >= p.outputs) break;
      float value = sum[i][j];
      if (p.bias != nullptr) value += p.bias[static_cast<std::int64_t>(group) * p.outputs + n];
      out[n] = p.active ? activate(p.activation, value) : value;
    }
  }
}

// Outputs of a thread, such that few are left over.
int own_outputs(std::int64_t outputs) {
  return ceil_div(outputs, std::int64_t{3 * kAcross}) * 3 < ceil_div(outputs, std::int64_t{4 * kAcross}) * 4 ? 3 : 4;
}

template <int kOwnOutputs>
void launch_taps(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  const ConvolutionShape& shape = packed.shape;
  const Parameters parameters{reinterpret_cast<const float*>(packed.weight->data()),
                              packed.bias_values(),
                              static_cast<int>(shape.inputs / shape.groups),
                              static_cast<int>(shape.outputs / shape.groups),
                              static_cast<int>(shape.kernel),
                              static_cast<int>(frames.padding),
                              shape.activation.has_value(),
                              shape.activation.value_or(ActivationKind::relu)};
  constexpr auto kKernel = taps_kernel<kOwnOutputs>;
  allow_shared_memory<kKernel>(kMostBytes);
  const int bytes = shared_bytes(parameters.width, parameters.kernel, kOwnOutputs * kAcross);
  const auto columns = static_cast<unsigned>(ceil_div(parameters.outputs, kOwnOutputs * kAcross));
  for_sequences(frames, kFrames, [&](const SequenceRows& sequences, unsigned tiles) {
    launch(stream, dim3(tiles, columns, static_cast<unsigned>(shape.groups)), dim3(kThreads),
           static_cast<std::size_t>(bytes), Overlap::yes, kKernel, Rows<const float>(frames.x), Rows<float>(frames.y),
           parameters, sequences);
  });
}

}  // namespace

bool takes_taps_f32(const ConvolutionShape& shape, const Frames& frames) {
  const std::int64_t width = shape.inputs / shape.groups;
  const bool fours = width % 4 == 0 && frames.x.stride % 4 == 0 && takes_vectors(static_cast<float*>(frames.x.data));
  const int outputs = own_outputs(shape.outputs / shape.groups) * kAcross;
  return fours && shape.stride == 1 && shape.kernel >= kFewestTaps && outputs * width / 4 <= kAccesses * kThreads &&
         shared_bytes(width, shape.kernel, outputs) <= kMostBytes;
}

void convolve_taps_f32(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  if (own_outputs(packed.shape.outputs / packed.shape.groups) == 3) return launch_taps<3>(packed, frames, stream);
  launch_taps<4>(packed, frames, stream);
}

}  // namespace nibble::cuda
