// How the CUDA back end lays one layer's K (and likewise V) out.
//
//   codes  [slot][kv head][token][row]   a row is the head_dim elements of one token and head, padded with zeros to a
//                                        multiple of 16 bytes, so that every row can be read 16 bytes at a time
//   scales [slot][kv head][token]        8-bit types only: f32, value = code * scale; the tokens of a head are padded
//                                        to a multiple of 4, so that four scales are one aligned load
//
// One head's tokens follow each other because that is what a decode step streams. i8 codes are symmetric: the scale is
// the largest magnitude of the row / 127; f8_e4m3: / 448 (the type's largest value) to 224, whichever of some scales
// between them leaves the least squared error (kv_cache.cuh). Scales are f32: half the bytes would save 1.5 % of a
// 128-wide row, and f16 has too little range for rows of small values.
#pragma once

#include "core/checked.h"
#include "core/matrix.h"

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

/// A layer's cache as kernels take it.
struct KvCache {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  std::int64_t head_bytes = 0;    // codes of one head of one slot
  std::int64_t scale_offset = 0;  // bytes from the codes to the scales
  std::int32_t scale_stride = 0;  // scales of one head of one slot
  std::int32_t row_bytes = 0;
  std::int32_t slots = 0;
  std::int32_t kv_heads = 0;
  std::int32_t capacity = 0;
  std::int32_t head_dim = 0;
};

inline bool has_scales(DType dtype) { return dtype == DType::i8 || dtype == DType::f8_e4m3; }

/// Sizes and offsets of `view`'s layout; its shape has been checked by kv_bytes().
inline KvCache kv_cache(const KvView& view) {
  KvCache cache;
  cache.k = view.k;
  cache.v = view.v;
  cache.slots = static_cast<std::int32_t>(view.slots);
  cache.kv_heads = static_cast<std::int32_t>(view.kv_heads);
  cache.capacity = static_cast<std::int32_t>(view.capacity);
  cache.head_dim = static_cast<std::int32_t>(view.head_dim);
  cache.row_bytes =
      static_cast<std::int32_t>(round_up<std::int64_t>(view.head_dim * static_cast<int>(bytes_of(view.dtype)), 16));
  cache.head_bytes = view.capacity * cache.row_bytes;
  cache.scale_offset = round_up<std::int64_t>(view.slots * view.kv_heads * cache.head_bytes, 64);
  if (has_scales(view.dtype)) cache.scale_stride = static_cast<std::int32_t>(round_up<std::int64_t>(view.capacity, 4));
  return cache;
}

}  // namespace nibble::cuda
