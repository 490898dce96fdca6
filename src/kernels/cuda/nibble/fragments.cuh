// Codes of a block (layout.h) as operands of the tensor core.
#pragma once

#include "kernels/cuda/nibble/layout.h"

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::gpu {

/// Matrix A of one mma m16n8k16: rows g and g + 8, inputs 2c, 2c + 1 (x[0], x[1]) and 2c + 8, 2c + 9 (x[2], x[3]).
///
/// A code is not converted: masked out of its word it is already the bits of a subnormal f16 of value code * 2^-24, or,
/// where it stands s bits higher, code * 2^(s-24), which tensor cores multiply exactly (measured on Hopper against
/// float64, all codes). The inputs that meet it are scaled by 2^-s beforehand: input_shift().
struct FragmentA {
  std::uint32_t x[4];
};

/// s for the inputs of a step (even or odd) at 2c (pair 0) or 2c + 8 (pair 1).
__host__ __device__ constexpr int input_shift(int bits, int step, int pair) {
  return bits == 8 ? 0 : bits == 4 ? 4 * pair : 4 * (step & 1) + 2 * pair;
}

/// The codes of one lane for a block. load<STEP>() reads those that begin at a step, from shared or global memory; it
/// is called for each step in turn, before fragment<STEP>().
template <int BITS>
struct LaneCodes;

template <>
struct LaneCodes<4> {
  uint4 unit[2];
  template <int STEP>
  __device__ __forceinline__ void load(const std::byte* block, int lane) {
    if constexpr (STEP % 4 == 0) unit[STEP / 4] = *reinterpret_cast<const uint4*>(block + STEP / 4 * 512 + lane * 16);
  }
  template <int STEP>
  __device__ __forceinline__ FragmentA fragment() const {
    const uint4& u = unit[STEP / 4];
    const std::uint32_t w = STEP % 4 == 0 ? u.x : STEP % 4 == 1 ? u.y : STEP % 4 == 2 ? u.z : u.w;
    const std::uint32_t high = w >> 8;
    return {{w & 0x000f000fu, high & 0x000f000fu, w & 0x00f000f0u, high & 0x00f000f0u}};
  }
};

template <>
struct LaneCodes<8> {
  uint4 pairs[4];
  template <int STEP>
  __device__ __forceinline__ void load(const std::byte* block, int lane) {
    if constexpr (STEP % 2 == 0) pairs[STEP / 2] = *reinterpret_cast<const uint4*>(block + STEP / 2 * 512 + lane * 16);
  }
  template <int STEP>
  __device__ __forceinline__ FragmentA fragment() const {
    const uint4& p = pairs[STEP / 2];
    const std::uint32_t low = STEP % 2 == 0 ? p.x : p.z;
    const std::uint32_t high = STEP % 2 == 0 ? p.y : p.w;
    // Bytes 0 and 1, then 2 and 3, each widened with a zero byte.
    return {{__byte_perm(low, 0, 0x4140), __byte_perm(high, 0, 0x4140), __byte_perm(low, 0, 0x4342),
             __byte_perm(high, 0, 0x4342)}};
  }
};

template <>
struct LaneCodes<2> {
  uint4 words;
  template <int STEP>
  __device__ __forceinline__ void load(const std::byte* block, int lane) {
    if constexpr (STEP == 0) words = *reinterpret_cast<const uint4*>(block + lane * 16);
  }
  template <int STEP>
  __device__ __forceinline__ FragmentA fragment() const {
    constexpr int J = STEP / 2;
    const std::uint32_t w = J == 0 ? words.x : J == 1 ? words.y : J == 2 ? words.z : words.w;
    const std::uint32_t high = w >> 8;
    if constexpr (STEP % 2 == 0)
      return {{w & 0x00030003u, high & 0x00030003u, w & 0x000c000cu, high & 0x000c000cu}};
    else
      return {{w & 0x00300030u, high & 0x00300030u, w & 0x00c000c0u, high & 0x00c000c0u}};
  }
};

template <>
struct LaneCodes<3> {
  LaneCodes<2> low;
  uint2 high;
  template <int STEP>
  __device__ __forceinline__ void load(const std::byte* block, int lane) {
    low.load<STEP>(block, lane);
    if constexpr (STEP == 0) high = *reinterpret_cast<const uint2*>(block + 512 + lane * 8);
  }
  template <int STEP>
  __device__ __forceinline__ FragmentA fragment() const {
    const std::uint32_t stored = STEP < 4 ? high.x : high.y;
    // Steps 2 and 3 of each four have their bits in the other byte of each half.
    const std::uint32_t h = STEP % 4 < 2 ? stored : __byte_perm(stored, 0, 0x2301);
    const std::uint32_t h8 = h >> 1;
    FragmentA a = low.fragment<STEP>();
    if constexpr (STEP % 2 == 0) {
      a.x[0] |= h & 0x00040004u;
      a.x[1] |= h8 & 0x00040004u;
      a.x[2] |= h & 0x00100010u;
      a.x[3] |= h8 & 0x00100010u;
    } else {
      a.x[0] |= h & 0x00400040u;
      a.x[1] |= h8 & 0x00400040u;
      a.x[2] |= h & 0x01000100u;
      a.x[3] |= h8 & 0x01000100u;
    }
    return a;
  }
};

}  // namespace nibble::gpu
