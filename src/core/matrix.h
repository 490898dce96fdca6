// What ops and kernels are handed at run time: matrices in device memory, the map of the batch's rows, a layer's KV
// cache.
#pragma once

#include "core/dtype.h"

#include <cstddef>
#include <cstdint>

namespace nibble {

/// A row-major matrix [rows, columns] in device memory; row r starts at element r * stride.
struct MatrixRef {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;  // in elements

  float* f32_row(std::int64_t row) const { return static_cast<float*>(data) + row * stride; }
};

/// The rows of one pass, ragged: sequence s has rows [row_begin[s], row_begin[s + 1]), each one token. There is no
/// padding. All pointers are device memory and stay fixed while a captured step is replayed; their contents change.
struct RowMap {
  std::int64_t rows = 0;
  std::int64_t sequences = 0;
  const std::int32_t* tokens = nullptr;     // [rows] token ids
  const std::int32_t* positions = nullptr;  // [rows] position in its sequence; also its index in the KV cache
  const std::int32_t* slots = nullptr;      // [rows] which sequence of the KV cache it belongs to
  const std::int32_t* row_begin = nullptr;  // [sequences + 1]
  const std::int32_t* types = nullptr;      // [rows] token type ids (segments) of encoders; null: all 0
};

/// One layer's K and V for all sequences. How the elements lie inside is the back end's affair.
struct KvView {
  DType dtype = DType::f32;
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  std::int64_t slots = 0;  // sequences
  std::int64_t kv_heads = 0;
  std::int64_t capacity = 0;  // tokens a sequence
  std::int64_t head_dim = 0;
};

}  // namespace nibble
