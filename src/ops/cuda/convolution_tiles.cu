// Convolutions in f16 and bf16 on tensor cores, of any shape: padded, in groups, with windows that begin and end
// anywhere. A block makes a tile of frames and outputs of one group. The rows that the tile's windows look at are
// brought once into shared memory, some channels and taps at a time; every tap then is a product of rows there, shifted
// by one from tap to tap, and its weights, which follow each other through a ring of stages.
#include "core/checked.h"
#include "kernels/cuda/activation_16.cuh"
#include "ops/cuda/convolution.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/mma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostFrames = 128;         // of a tile
constexpr int kStages = 4;               // taps of weights
constexpr int kMostChannels = 64;        // at a time
constexpr int kPad = 8;                  // elements behind each row, so that eight rows lie in different banks
constexpr int kMostRowBytes = 48 << 10;  // of rows of x

struct Parameters {
  const void* weight;
  const float* bias;
  int width, outputs;           // of a group
  int kernel, stride, padding;  // frames
  int channels, taps;           // at a time; channels are a multiple of 16
  int jump;                     // rows in shared memory from frame to frame: the stride, or `taps` where that is less
  bool x_vectors, w_vectors, y_pairs;
  bool active;
  ActivationKind activation;
};

__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  // What is not there becomes zeros.
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void await_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// One tile's place and its parts of shared memory. A warp has a quarter of the tile's frames, 16 or 32.
template <typename T, typename X, int kOutputs, int kFrames>
class Tile {
  static constexpr int kHalves = kFrames / 64;
  static constexpr int kAccesses = kOutputs * kMostChannels / kVector / kThreads;  // of a thread to a tap's weights

 public:
  __device__ Tile(const Rows<const X>& x, const Rows<T>& y, const Parameters& p, const SequenceRows::Tile& at,
                  T* shared)
      : x_(x), y_(y), p_(p), at_(at), pitch_(p.channels + kPad), rows_((kFrames - 1) * p.jump + p.taps) {
    first_ = static_cast<int>(blockIdx.y) * kOutputs;
    group_ = static_cast<int>(blockIdx.z);
    windows_ = shared;
    weights_ = shared + rows_ * pitch_;
  }

  __device__ void run() {
    for (int channel = 0; channel < p_.width; channel += p_.channels) {
      for (int tap = 0; tap < p_.kernel; tap += p_.taps) add_taps(channel, tap, min(p_.taps, p_.kernel - tap));
    }
    finish();
  }

 private:
  // Adds the products of `taps` taps from `tap` on, and p_.channels channels from `channel` on.
  __device__ void add_taps(int channel, int tap, int taps) {
    __syncthreads();  // all have read what lies in shared memory
    fetch_windows(channel, tap);
    find_weights(channel);
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < taps) fetch_weights(tap + i, i);
      commit();  // the rows of x with the first one
    }
    for (int i = 0; i < taps; ++i) {
      await_all_but<kStages - 2>();
      __syncthreads();  // the tap's weights are there, and those of the tap before have been read
      if (i + kStages - 1 < taps) fetch_weights(tap + i + kStages - 1, (i + kStages - 1) % kStages);
      commit();
      multiply_tap(i, i % kStages);
    }
    await_all_but<0>();
  }

  __device__ void fetch_windows(int channel, int tap) {
    const int vectors = p_.channels / kVector;
    const std::int64_t first = at_.frame * p_.stride - p_.padding + tap;
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * vectors; i += kThreads) {
      const int line = i / vectors;
      const int own = channel + i % vectors * kVector;
      const std::int64_t row = first + static_cast<std::int64_t>(line / p_.jump) * p_.stride + line % p_.jump;
      const bool inside = row >= 0 && row < at_.x_rows;
      const X* const from = x_.row(at_.x_begin + (inside ? row : 0)) + static_cast<std::int64_t>(group_) * p_.width;
      T* const to = windows_ + line * pitch_ + i % vectors * kVector;
      if constexpr (std::is_same_v<T, X>) {
        if (p_.x_vectors) {
          const bool there = inside && own < p_.width;
          copy_async(to, there ? from + own : from, there);
          continue;
        }
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j)
        to[j] = from_float<T>(inside && own + j < p_.width ? to_float(from[own + j]) : 0.0f);
    }
  }

  // Finds this thread's accesses to the weights of some channels: where they lie at the first tap, and where they go.
  __device__ void find_weights(int channel) {
    const int vectors = p_.channels / kVector;
#pragma unroll
    for (int k = 0; k < kAccesses; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * kThreads;
      const int n = i / vectors;
      const int own = channel + i % vectors * kVector;
      const std::int64_t output = static_cast<std::int64_t>(group_) * p_.outputs + first_ + n;
      to_[k] = n < kOutputs ? n * pitch_ + i % vectors * kVector : -1;
      there_[k] = first_ + n < p_.outputs ? p_.width - own : 0;
      from_[k] = static_cast<const T*>(p_.weight) + (there_[k] > 0 ? output * p_.kernel * p_.width + own : 0);
    }
  }

  __device__ void fetch_weights(int tap, int stage) {
#pragma unroll
    for (int k = 0; k < kAccesses; ++k) {
      if (to_[k] < 0) continue;
      const T* const from = there_[k] > 0 ? from_[k] + static_cast<std::int64_t>(tap) * p_.width : from_[k];
      T* const to = weights_ + stage * kOutputs * pitch_ + to_[k];
      if (p_.w_vectors) {
        copy_async(to, from, there_[k] > 0);
        continue;
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) to[j] = j < there_[k] ? from[j] : from_float<T>(0.0f);
    }
  }

  __device__ void multiply_tap(int tap, int stage) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x / 32);
    const T* const a_row =
        windows_ + ((warp * 16 * kHalves + lane % 16) * p_.jump + tap) * pitch_ + lane / 16 * kVector;
    const T* const b_row = weights_ + (stage * kOutputs + lane % 8 + lane / 16 * 8) * pitch_ + lane / 8 % 2 * kVector;
    for (int k = 0; k < p_.channels; k += 16) {
      unsigned a[kHalves][4];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) load_matrices(a[half], a_row + half * 16 * p_.jump * pitch_ + k);
#pragma unroll
      for (int n = 0; n < kOutputs / 16; ++n) {
        unsigned b[4];
        load_matrices(b, b_row + n * 16 * pitch_ + k);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          multiply(sum_[half][2 * n], a[half], b[0], b[1], T{});
          multiply(sum_[half][2 * n + 1], a[half], b[2], b[3], T{});
        }
      }
    }
  }

  __device__ float finished(float value, int n) const {
    if (p_.bias != nullptr) value += p_.bias[static_cast<std::int64_t>(group_) * p_.outputs + n];
    return p_.active ? activate_for<T>(p_.activation, value) : value;
  }

  __device__ void finish() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int i = 0; i < 2 * kHalves; ++i) {
      const int line = warp * 16 * kHalves + i * 8 + lane / 4;
      if (line >= at_.frames) return;
      T* const to = y_.row(at_.y_begin + at_.frame + line) + static_cast<std::int64_t>(group_) * p_.outputs;
#pragma unroll
      for (int j = 0; j < kOutputs / 8; ++j) {
        const int n = first_ + j * 8 + lane % 4 * 2;
        if (n >= p_.outputs) break;
        const float low = finished(sum_[i / 2][j][i % 2 * 2], n);
        if (n + 1 == p_.outputs) {
          to[n] = from_float<T>(low);
          break;
        }
        const float high = finished(sum_[i / 2][j][i % 2 * 2 + 1], n + 1);
        if (p_.y_pairs) {
          *reinterpret_cast<unsigned*>(to + n) = pack(low, high, T{});
        } else {
          to[n] = from_float<T>(low);
          to[n + 1] = from_float<T>(high);
        }
      }
    }
  }

  const Rows<const X>& x_;
  const Rows<T>& y_;
  const Parameters& p_;
  const SequenceRows::Tile at_;
  const int pitch_;
  const int rows_;
  int first_, group_;
  T* windows_;
  T* weights_;
  const T* from_[kAccesses];
  int to_[kAccesses], there_[kAccesses];  // there: channels from this one on
  float sum_[kHalves][kOutputs / 8][4] = {};
};

template <typename T, typename X, int kOutputs, int kFrames>
__global__ void __launch_bounds__(kThreads)
    tiles_kernel(Rows<const X> x, Rows<T> y, const __grid_constant__ Parameters p,
                 const __grid_constant__ SequenceRows at) {
  extern __shared__ __align__(16) unsigned char shared[];
  pdl_wait();
  pdl_launch();
  const SequenceRows::Tile tile = at.tile<kFrames>(static_cast<int>(blockIdx.x));
  if (tile.frames > 0) Tile<T, X, kOutputs, kFrames>(x, y, p, tile, reinterpret_cast<T*>(shared)).run();
}

// Outputs of a tile, such that few are left over.
int outputs_of(int outputs) {
  int best = 0;
  int least = 0;
  for (const int columns : {64, 48, 32, 16}) {
    // A tile's rows of x cost about as much as 16 outputs.
    const int cost = ceil_div(outputs, columns) * (columns + 16);
    if (best == 0 || cost < least) {
      best = columns;
      least = cost;
    }
  }
  return best;
}

std::size_t row_bytes(const Parameters& p, int frames) {
  const int rows = (frames - 1) * p.jump + p.taps;
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(p.channels + kPad) * sizeof(std::uint16_t);
}

// How many taps' rows are brought at a time: all, or as many as there is room for.
void divide(Parameters& p) {
  p.channels = std::min(kMostChannels, round_up(p.width, 16));
  for (p.taps = p.kernel;; p.taps = ceil_div(p.taps, 2)) {
    p.jump = std::min(p.stride, p.taps);
    if (p.taps == 1 || row_bytes(p, kMostFrames) <= kMostRowBytes) return;
  }
}

template <typename T, typename X, int kOutputs, int kFrames>
void enqueue_tiles(const Frames& frames, const Parameters& p, int groups, CudaStream& stream) {
  constexpr auto kKernel = tiles_kernel<T, X, kOutputs, kFrames>;
  const std::size_t bytes =
      row_bytes(p, kFrames) + static_cast<std::size_t>(kStages * kOutputs * (p.channels + kPad)) * sizeof(T);
  constexpr int kMost =
      kMostRowBytes + kStages * kOutputs * (kMostChannels + kPad) * static_cast<int>(sizeof(std::uint16_t));
  allow_shared_memory<kKernel>(kMost);
  for_sequences(frames, kFrames, [&](const SequenceRows& sequences, unsigned tiles) {
    launch(stream, dim3(tiles, static_cast<unsigned>(ceil_div(p.outputs, kOutputs)), static_cast<unsigned>(groups)),
           dim3(kThreads), bytes, Overlap::yes, kKernel, Rows<const X>(frames.x), Rows<T>(frames.y), p, sequences);
  });
}

}  // namespace

void convolve_tiles(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  const ConvolutionShape& shape = packed.shape;
  Parameters p{};
  p.weight = packed.weight->data();
  p.bias = packed.bias_values();
  p.width = static_cast<int>(shape.inputs / shape.groups);
  p.outputs = static_cast<int>(shape.outputs / shape.groups);
  p.kernel = static_cast<int>(shape.kernel);
  p.stride = static_cast<int>(shape.stride);
  p.padding = static_cast<int>(frames.padding);
  p.w_vectors = p.width % kVector == 0;
  p.x_vectors = p.width % kVector == 0 && takes_vectors(frames.x);
  p.y_pairs =
      p.outputs % 2 == 0 && frames.y.stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(frames.y.data) % 4 == 0;
  p.active = shape.activation.has_value();
  p.activation = shape.activation.value_or(ActivationKind::relu);
  divide(p);
  const int groups = static_cast<int>(shape.groups);
  const auto of_outputs = [&](auto type, auto from, auto outputs) {
    using T = decltype(type);
    using X = decltype(from);
    constexpr int kOutputs = decltype(outputs)::value;
    // Half as many frames to a tile where there are fewer tiles than multiprocessors.
    const std::int64_t tiles =
        ceil_div(frames.y.rows, std::int64_t{kMostFrames}) * groups * ceil_div(p.outputs, kOutputs);
    if (tiles < packed.multiprocessors) {
      enqueue_tiles<T, X, kOutputs, kMostFrames / 2>(frames, p, groups, stream);
    } else {
      enqueue_tiles<T, X, kOutputs, kMostFrames>(frames, p, groups, stream);
    }
  };
  const auto with = [&](auto type, auto from) {
    switch (outputs_of(p.outputs)) {
      case 64:
        return of_outputs(type, from, std::integral_constant<int, 64>{});
      case 48:
        return of_outputs(type, from, std::integral_constant<int, 48>{});
      case 32:
        return of_outputs(type, from, std::integral_constant<int, 32>{});
      default:
        return of_outputs(type, from, std::integral_constant<int, 16>{});
    }
  };
  const auto from = [&](auto type) {
    if (frames.x.dtype == DType::f32) {
      with(type, float{});
    } else {
      with(type, type);
    }
  };
  if (shape.compute == DType::f16) {
    from(__half{});
  } else {
    from(__nv_bfloat16{});
  }
}

}  // namespace nibble::cuda
