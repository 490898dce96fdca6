// How one layer's K and V lie in memory on the CPU. Each (slot, kv head) has a plane of K and one of V, both of
// round_up(capacity, 16) tokens times head_dim elements, planes in the order [slot][kv head].
//
// K is transposed in blocks of 16 tokens, so that one broadcast element of q gives 16 scores without a horizontal sum:
//   f32, f16:  [block][head_dim][16 tokens]
//   bf16:      [block][head_dim / 2][16 tokens][2]   pairs of dimensions, as vdpbf16ps and AMX's tiles read them
// V is row-major, for bf16 with the two tokens of a pair interleaved for the same reason:
//   f32, f16:  [token][head_dim]
//   bf16:      [token / 2][head_dim][2]
#pragma once

#include "core/matrix.h"

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {

/// Tokens in a block of K: the floats of one AVX-512 register, the columns of one AMX tile.
inline constexpr std::int64_t kKeyBlock = 16;

/// Bytes after the last plane that vector code may read (never use): half a register past a row of V.
inline constexpr std::size_t kKvSlack = 64;

inline std::int64_t kv_element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

/// Elements of the plane of one (slot, kv head).
inline std::int64_t kv_plane_elements(const KvView& cache) {
  return (cache.capacity + kKeyBlock - 1) / kKeyBlock * kKeyBlock * cache.head_dim;
}

inline std::int64_t kv_plane_offset(const KvView& cache, std::int64_t slot, std::int64_t kv_head) {
  return (slot * cache.kv_heads + kv_head) * kv_plane_elements(cache) * kv_element_bytes(cache.dtype);
}

/// The element of K's plane that holds dimension d of a token.
inline std::int64_t k_index(bool pairs, std::int64_t head_dim, std::int64_t token, std::int64_t d) {
  const std::int64_t block = token / kKeyBlock * head_dim * kKeyBlock;
  const std::int64_t lane = token % kKeyBlock;
  return pairs ? block + d / 2 * (2 * kKeyBlock) + lane * 2 + d % 2 : block + d * kKeyBlock + lane;
}

/// The element of V's plane that holds dimension d of a token.
inline std::int64_t v_index(bool pairs, std::int64_t head_dim, std::int64_t token, std::int64_t d) {
  return pairs ? token / 2 * (2 * head_dim) + d * 2 + token % 2 : token * head_dim + d;
}

}  // namespace nibble::cpu
