// Attention through whole matrices of scores, as op-by-op programs do it: heads are brought side by side, cuBLASLt
// multiplies q by k of every head, a pass scales, masks and softens the scores, cuBLASLt multiplies them by v, and the
// heads go back to their columns.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/gemm_lt.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/self_attention_parts.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kEight = 8;  // elements that rows are padded to: 16 bytes of 16-bit types

// [rows, heads * dim] to [sequences * heads, length, padded dim], or back; a block a row.
template <typename T>
__global__ void split_heads(Rows<const T> x, T* y, int length, int heads, int dim, int padded) {
  pdl_wait();
  pdl_launch();
  const std::int64_t row = blockIdx.x;
  const std::int64_t sequence = row / length;
  for (int i = static_cast<int>(threadIdx.x); i < heads * dim; i += static_cast<int>(blockDim.x)) {
    const std::int64_t matrix = sequence * heads + i / dim;
    y[(matrix * length + row % length) * padded + i % dim] = x.row(row)[i];
  }
}

template <typename T>
__global__ void join_heads(const T* x, Rows<T> y, int length, int heads, int dim, int padded) {
  pdl_wait();
  pdl_launch();
  const std::int64_t row = blockIdx.x;
  const std::int64_t sequence = row / length;
  for (int i = static_cast<int>(threadIdx.x); i < heads * dim; i += static_cast<int>(blockDim.x)) {
    const std::int64_t matrix = sequence * heads + i / dim;
    y.row(row)[i] = x[(matrix * length + row % length) * padded + i % dim];
  }
}

struct SoftmaxShape {
  int length;
  int heads;
  int stride;  // of a row of scores
  float scale;
  bool causal;
  const std::int32_t* valid;
  const float* bias;
  int bias_reach;
};

__device__ __forceinline__ float over_block(float value, bool largest) {
  __shared__ float parts[kThreads / 32];
  value = largest ? warp_max(value) : warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float out = parts[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) out = largest ? fmaxf(out, parts[i]) : out + parts[i];
  return out;
}

// A block a row of scores, in place.
template <typename T>
__global__ void __launch_bounds__(kThreads) soften(T* scores, const SoftmaxShape s) {
  pdl_wait();
  pdl_launch();
  const std::int64_t index = blockIdx.x;
  const int row = static_cast<int>(index % s.length);
  const auto matrix = index / s.length;
  const int head = static_cast<int>(matrix % s.heads);
  int keys = s.valid != nullptr ? min(s.length, s.valid[matrix / s.heads]) : s.length;
  if (s.causal) keys = min(keys, row + 1);
  T* const own = scores + index * s.stride;
  const auto score = [&](int key) {
    float value = to_float(own[key]) * s.scale;
    if (s.bias != nullptr) {
      const int distance = max(-s.bias_reach, min(s.bias_reach, key - row));
      value += s.bias[static_cast<std::int64_t>(head) * (2 * s.bias_reach + 1) + distance + s.bias_reach];
    }
    return value;
  };
  float largest = -INFINITY;
  for (int key = static_cast<int>(threadIdx.x); key < keys; key += kThreads) largest = fmaxf(largest, score(key));
  largest = over_block(largest, true);
  float total = 0;
  for (int key = static_cast<int>(threadIdx.x); key < keys; key += kThreads) total += expf(score(key) - largest);
  total = over_block(total, false);
  for (int key = static_cast<int>(threadIdx.x); key < s.length; key += kThreads)
    own[key] = from_float<T>(key < keys ? expf(score(key) - largest) / total : 0.0f);
}

struct Places {
  std::size_t heads = 0;   // bytes of one of q, k, v, y with their heads side by side
  std::size_t scores = 0;  // bytes
  std::int64_t padded_dim = 0;
  std::int64_t padded_length = 0;
  std::size_t total() const { return 4 * heads + scores + gemm_workspace_bytes(); }
};

Places places_of(std::int64_t sequences, std::int64_t length, std::int64_t heads, std::int64_t dim, DType type) {
  constexpr std::size_t kAlign = 256;
  constexpr const char* kWhat = "matrices of scores";
  Places out;
  out.padded_dim = round_up(dim, kEight);
  out.padded_length = round_up(length, kEight);
  const std::int64_t matrices = checked_mul(sequences, heads, kWhat);
  const auto bytes = [&](std::int64_t columns) {
    return round_up(
        static_cast<std::size_t>(checked_mul(checked_mul(matrices, length, kWhat), columns, kWhat)) * bytes_of(type),
        kAlign);
  };
  out.heads = bytes(out.padded_dim);
  out.scores = bytes(out.padded_length);
  return out;
}

}  // namespace

std::size_t self_attend_whole_workspace(const SelfAttentionShape& shape) {
  return places_of(shape.sequences, shape.longest, shape.heads, shape.head_dim, shape.compute).total();
}

void self_attend_whole(const SelfAttentionArgs& args, CudaStream& stream) {
  const std::int64_t sequences = args.map.sequences;
  const std::int64_t dim = args.q.columns / args.heads;
  const Places places = places_of(sequences, args.length, args.heads, dim, args.q.dtype);
  std::byte* const q = args.workspace;
  std::byte* const k = q + places.heads;
  std::byte* const v = k + places.heads;
  std::byte* const y = v + places.heads;
  std::byte* const scores = y + places.heads;
  std::byte* const scratch = scores + places.scores;
  const dim3 rows(static_cast<unsigned>(args.map.rows));
  const int length = static_cast<int>(args.length);
  const int heads = static_cast<int>(args.heads);
  const int padded = static_cast<int>(places.padded_dim);
  const int width = static_cast<int>(dim);
  with_type(args.q.dtype, "q", [&](auto type) {
    using T = decltype(type);
    const auto split = [&](const MatrixRef& from, std::byte* to) {
      launch(stream, rows, dim3(kThreads), 0, Overlap::yes, split_heads<T>, Rows<const T>(from),
             reinterpret_cast<T*>(to), length, heads, width, padded);
    };
    split(args.q, q);
    split(args.k, k);
    split(args.v, v);
    GemmArgs product;
    product.m = product.n = args.length;
    product.k = dim;
    product.x = q;
    product.w = k;
    product.x_stride = product.w_stride = places.padded_dim;
    product.operands = product.y_dtype = args.q.dtype;
    product.y = scores;
    product.y_stride = places.padded_length;
    product.batch = sequences * args.heads;
    product.x_step = product.w_step = args.length * places.padded_dim;
    product.y_step = args.length * places.padded_length;
    product.workspace = scratch;
    gemm(product, stream);
    launch(stream, dim3(static_cast<unsigned>(product.batch * args.length)), dim3(kThreads), 0, Overlap::yes, soften<T>,
           reinterpret_cast<T*>(scores),
           SoftmaxShape{length, heads, static_cast<int>(places.padded_length), args.scale, args.causal, args.valid,
                        args.bias, static_cast<int>(args.bias_reach)});
    product.x = scores;
    product.x_stride = places.padded_length;
    product.x_step = product.y_step;
    product.n = dim;
    product.k = args.length;
    product.w = v;
    product.w_is_kn = true;
    product.y = y;
    product.y_stride = places.padded_dim;
    product.y_step = product.w_step;
    gemm(product, stream);
    launch(stream, rows, dim3(kThreads), 0, Overlap::yes, join_heads<T>, reinterpret_cast<const T*>(y), Rows<T>(args.y),
           length, heads, width, padded);
  });
}

}  // namespace nibble::cuda
