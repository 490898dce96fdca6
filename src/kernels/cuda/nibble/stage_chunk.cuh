// Inputs of a product of few rows as its tensor cores take them: in the weights' order, times the norm's weights, as
// f16 scaled by a power of two for each token and block of weights so that the largest is near 2^13. That keeps 11 bits
// of each, of bf16 and f32 inputs too, whatever their range. The factor of a norm is the same for all inputs of a
// token, so it multiplies the product's result.
#pragma once

#include "core/cuda/launch.cuh"
#include "kernels/cuda/nibble/fragments.cuh"
#include "kernels/cuda/nibble/small_rows.h"

namespace nibble::gpu {

/// The inputs that a lane stages at a time.
constexpr int kChunkInputs = 8;
constexpr int kBlockChunks = kBlockInputs / kChunkInputs;

/// The power of two that brings `most` into [2^13, 2^14): in f16's range, and 2^-6 of it still 21 bits above its
/// subnormals.
__device__ __forceinline__ float scale_for(float most) {
  constexpr int kTopExponent = 13;
  const int exponent = static_cast<int>(__float_as_uint(most) >> 23) - 127;
  // Zeros and subnormals stay as they are; so do infinities and NaNs, which the result then shows.
  if (exponent == -127 || exponent == 128) return 1;
  return __uint_as_float(static_cast<std::uint32_t>(127 + min(kTopExponent - exponent, 126)) << 23);
}

/// Stages the chunk of each lane; the 16 lanes of a half warp have the chunks of one block in their order, and all
/// lanes of a warp call. `inputs` is the block's place, `sums` that of its first set's, `factors` of its factors, each
/// for token 0. Lanes that are not `active` write nothing.
__device__ __forceinline__ void stage_chunk(const float (&v)[kChunkInputs], int chunk, int bits, int sets, int rows,
                                            int token, bool active, std::byte* inputs, float* sums, float* factors) {
  float most = 0;
#pragma unroll
  for (int i = 0; i < kChunkInputs; ++i) most = fmaxf(most, fabsf(v[i]));
#pragma unroll
  for (int offset = kBlockChunks / 2; offset > 0; offset /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
  const float scale = scale_for(most);
  const int step = chunk / 2;
  const int pair = chunk % 2;
  const int shift = input_shift(bits, step, pair);
  // Exact powers of two, by their exponents.
  const float down = scale * __uint_as_float(static_cast<std::uint32_t>(127 - shift) << 23);
  const float up = __uint_as_float(static_cast<std::uint32_t>(127 + shift) << 23);
  std::byte* to = inputs + step / 2 * staged_pair_bytes(rows) + token * 64 + step % 2 * 8 + pair * 4;
  float sum = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const __half2 h = __floats2half2_rn(v[2 * c] * down, v[2 * c + 1] * down);
    if (active) *reinterpret_cast<__half2*>(to + c * 16) = h;
    const float2 f = __half22float2(h);
    sum += (f.x + f.y) * up;
  }
  // The chunks of a set are neighbouring lanes.
  const int set_chunks = kBlockChunks / sets;
  for (int offset = set_chunks / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  // 2^24: codes are multiples of 2^-24.
  if (active && chunk % set_chunks == 0)
    sums[chunk / set_chunks * staged_tokens(rows) + token] = sum * 5.9604644775390625e-8f;
  if (active && chunk == 0) factors[token] = 16777216.0f / scale;
}

__device__ __forceinline__ float widen_half(std::uint32_t bits, bool half) {
  return half ? __half2float(__ushort_as_half(static_cast<unsigned short>(bits))) : __uint_as_float(bits << 16);
}

}  // namespace nibble::gpu
