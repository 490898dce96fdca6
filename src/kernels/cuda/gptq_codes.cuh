// Packed GPTQ codes in device code: formats/gptq_pack.h's stream of bits, with positions known at compile time.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::cuda {

/// The `kCount` bits from bit `position` of a stream of words, where `position` is a constant of an unrolled loop.
template <int kCount, int kWords>
__device__ __forceinline__ std::uint32_t stream_bits(const std::uint32_t (&words)[kWords], int position) {
  constexpr std::uint32_t kMask = (1u << kCount) - 1u;
  const int word = position / 32;
  const int shift = position % 32;
  // Without the second word where nothing of it is wanted: it may not exist.
  if (shift + kCount <= 32) return words[word] >> shift & kMask;
  return __funnelshift_r(words[word], words[word + 1], static_cast<std::uint32_t>(shift)) & kMask;
}

/// The zero point of output n from a row of packed ones, which store it less 1.
template <int kBits>
__device__ __forceinline__ std::uint32_t zero_point(const std::uint32_t* row, int n) {
  constexpr std::uint32_t kMask = (1u << kBits) - 1u;
  const int position = n * kBits;
  const std::uint32_t* const word = row + position / 32;
  const int shift = position % 32;
  std::uint32_t stored = word[0] >> shift;
  if (32 % kBits != 0 && shift + kBits > 32) stored |= word[1] << (32 - shift);
  return (stored + 1u) & kMask;
}

/// The same bits; __half2 is not trivially copyable, which std::bit_cast asks for.
__device__ __forceinline__ __half2 as_half2(std::uint32_t bits) { return reinterpret_cast<const __half2&>(bits); }
__device__ __forceinline__ std::uint32_t as_bits(__half2 halves) { return reinterpret_cast<std::uint32_t&>(halves); }

/// at[0] += low, at[1] += high. atomicAdd on a lone half is a loop of compare-and-swap, in which blocks that finish
/// together queue up, so halves are added in pairs wherever rows begin on whole pairs: `paired`.
__device__ __forceinline__ void add_pair(__half* at, __half2 values, bool paired) {
  if (paired) {
    // atomicAdd also asks whether the address is in shared memory, and waits for the old value.
    asm volatile("red.relaxed.gpu.global.add.noftz.f16x2 [%0], %1;" ::"l"(__cvta_generic_to_global(at)),
                 "r"(as_bits(values))
                 : "memory");
  } else {
    atomicAdd(at, __low2half(values));
    atomicAdd(at + 1, __high2half(values));
  }
}

}  // namespace nibble::cuda
