// The inputs of a product of few rows, staged once for all of its thread blocks: in the weights' order, normed, as f16
// scaled by a power of two for each token so that the largest is near 2^13. That keeps 11 bits of each, of bf16 and f32
// inputs too, whatever their range. The factor of a norm is the same for all inputs of a token, so it multiplies the
// product's result.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/nibble/fragments.cuh"
#include "kernels/cuda/nibble/small_rows.h"

#include <algorithm>

namespace nibble::gpu {
namespace {

// A thread has up to this many chunks of 8 inputs in registers: rows of up to 16384 inputs. Longer ones are read twice.
constexpr int kBatch = 2;
constexpr int kMostThreads = 1024;
// The largest staged input is in [2^13, 2^14): in f16's range, and 2^-6 of it still 21 bits above its subnormals.
constexpr int kTopExponent = 13;

struct StageArgs {
  int bits = 4;
  int sets = 1;
  int chunks = 0;  // of 8 packed inputs
  int inputs = 0;
  int rows = 0;
  const void* x = nullptr;
  DType x_dtype = DType::f16;
  std::int64_t x_stride = 0;
  bool vectors = false;                 // inputs stand in order, and may be read 8 at a time
  const std::int32_t* order = nullptr;  // InputOrder::inputs, or null
  const float* norm_weight = nullptr;   // null: no norm
  float norm_eps = 0;
  StagedRows to;
};

__device__ __forceinline__ float widen(std::uint32_t bits, bool half) {
  return half ? __half2float(__ushort_as_half(static_cast<unsigned short>(bits))) : __uint_as_float(bits << 16);
}

// The 8 inputs of a chunk of a row, times the norm's weights; adds to the sum of the inputs' squares.
__device__ __forceinline__ void load_chunk(const StageArgs& a, std::int64_t row, int chunk, float (&v)[8],
                                           float& squares) {
  const bool half = a.x_dtype == DType::f16;
  const int place = chunk * 8;
  int input[8];
  if (a.vectors) {
    if (a.x_dtype == DType::f32) {
      const float* from = static_cast<const float*>(a.x) + row + place;
      const float4 p = *reinterpret_cast<const float4*>(from);
      const float4 q = *reinterpret_cast<const float4*>(from + 4);
      v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
    } else {
      const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(a.x) + row + place);
      const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = widen(words[i / 2] >> (i % 2 * 16) & 0xffffu, half);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) input[i] = place + i;
  } else {
    // Any order and alignment.
#pragma unroll
    for (int i = 0; i < 8; ++i)
      input[i] = a.order != nullptr ? a.order[place + i] : (place + i < a.inputs ? place + i : -1);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::int64_t at = row + max(input[i], 0);
      v[i] = a.x_dtype == DType::f32 ? static_cast<const float*>(a.x)[at]
                                     : widen(static_cast<const std::uint16_t*>(a.x)[at], half);
      if (input[i] < 0) v[i] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
  if (a.norm_weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] *= a.norm_weight[max(input[i], 0)];
}

// The power of two that brings `most` into [2^13, 2^14).
__device__ float scale_for(float most) {
  const int exponent = static_cast<int>(__float_as_uint(most) >> 23) - 127;
  // Zeros and subnormals stay as they are; so do infinities and NaNs, which the result then shows.
  if (exponent == -127 || exponent == 128) return 1;
  return __uint_as_float(static_cast<std::uint32_t>(127 + min(kTopExponent - exponent, 126)) << 23);
}

// A thread block a token.
__global__ __launch_bounds__(kMostThreads) void stage_kernel(const __grid_constant__ StageArgs a) {
  pdl_launch();
  pdl_wait();
  __shared__ float partial[2][kMostThreads / 32];
  const int token = blockIdx.x;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int step = blockDim.x;
  const std::int64_t row = token * a.x_stride;
  const bool kept = a.chunks <= step * kBatch;
  float v[kBatch][8];
  float squares = 0;
  float most = 0;
  for (int first = 0; first < a.chunks; first += step * kBatch) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int chunk = first + static_cast<int>(threadIdx.x) + u * step;
      if (chunk >= a.chunks) break;
      load_chunk(a, row, chunk, v[u], squares);
#pragma unroll
      for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(v[u][i]));
    }
  }
  squares = warp_sum(squares);
  most = warp_max(most);
  if (lane == 0) {
    partial[0][warp] = squares;
    partial[1][warp] = most;
  }
  __syncthreads();
  const int warps = step / 32;
  squares = warp_sum(lane < warps ? partial[0][lane] : 0.0f);
  most = warp_max(lane < warps ? partial[1][lane] : 0.0f);
  const float scale = scale_for(most);
  if (threadIdx.x == 0) {
    const float factor = a.norm_weight != nullptr ? rsqrtf(squares / static_cast<float>(a.inputs) + a.norm_eps) : 1.0f;
    // 2^24: codes are multiples of 2^-24.
    a.to.factors[token] = factor * (16777216.0f / scale);
  }
  const int set_chunks = 16 / a.sets;
  for (int first = 0; first < a.chunks; first += step * kBatch) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int chunk = first + static_cast<int>(threadIdx.x) + u * step;
      // Whole warps are past the end, or half of one: a block of weights has 16 chunks.
      if (chunk - lane >= a.chunks) break;
      float sum = 0;
      if (chunk < a.chunks) {
        float again = 0;
        if (!kept) load_chunk(a, row, chunk, v[u], again);
        const int place_step = chunk % 16 / 2;
        const int pair = chunk % 2;
        const int shift = input_shift(a.bits, place_step, pair);
        // Exact powers of two, by their exponents.
        const float down = scale * __uint_as_float(static_cast<std::uint32_t>(127 - shift) << 23);
        const float up = __uint_as_float(static_cast<std::uint32_t>(127 + shift) << 23);
        std::byte* to = a.to.inputs +
                        (static_cast<std::int64_t>(chunk / 16 * 4 + place_step / 2) * a.rows + token) * 64 +
                        place_step % 2 * 8 + pair * 4;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const __half2 h = __floats2half2_rn(v[u][2 * c] * down, v[u][2 * c + 1] * down);
          *reinterpret_cast<__half2*>(to + c * 16) = h;
          const float2 f = __half22float2(h);
          sum += (f.x + f.y) * up;
        }
      }
      // The chunks of a set are neighbouring lanes.
      for (int offset = set_chunks / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (chunk < a.chunks && lane % set_chunks == 0)
        a.to.sums[chunk / set_chunks * a.rows + token] = sum * 5.9604644775390625e-8f;  // 2^-24
    }
  }
}

}  // namespace

StagedRows staged_rows(const PackedLayout& layout, std::int64_t rows, std::byte* workspace) {
  const auto align = [](std::int64_t bytes) { return round_up(bytes, std::int64_t{256}); };
  StagedRows out;
  out.inputs = workspace;
  out.sums = reinterpret_cast<float*>(workspace + align(layout.packed_inputs() * rows * 2));
  out.factors = out.sums + align(layout.blocks * layout.sets * rows * 4) / 4;
  return out;
}

void stage_small_rows(const PackedSite& packed, const LinearArgs& args, const StagedRows& to, CudaStream& stream) {
  const PackedLayout& layout = packed.layout;
  StageArgs a;
  a.bits = layout.bits;
  a.sets = layout.sets;
  a.chunks = static_cast<int>(layout.packed_inputs() / 8);
  a.inputs = static_cast<int>(layout.inputs);
  a.rows = static_cast<int>(args.rows);
  a.x = args.x.data;
  a.x_dtype = args.x.dtype;
  a.x_stride = args.x.stride;
  a.order = packed.order_data();
  a.vectors = a.order == nullptr && layout.packed_inputs() == layout.inputs &&
              reinterpret_cast<std::uintptr_t>(args.x.data) % 16 == 0 &&
              static_cast<std::size_t>(args.x.stride) * bytes_of(args.x.dtype) % 16 == 0;
  if (packed.site.prologue.kind == PrologueKind::rms_norm) {
    a.norm_weight = args.norm_weight;
    a.norm_eps = packed.site.prologue.eps;
  }
  a.to = to;
  const int threads = std::min(kMostThreads, static_cast<int>(round_up(a.chunks, 32)));
  launch(stream, dim3(static_cast<unsigned>(a.rows)), dim3(static_cast<unsigned>(threads)), 0, Overlap::yes,
         stage_kernel, a);
}

}  // namespace nibble::gpu
