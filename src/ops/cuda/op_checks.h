// What the CUDA ops check of their arguments before they launch anything.
#pragma once

#include "core/error.h"
#include "core/matrix.h"

#include <string_view>

namespace nibble::cuda {

/// Error unless `m` is of f32, f16 or bf16 and its rows do not overlap.
inline void check_activation(const MatrixRef& m, std::string_view op, std::string_view what) {
  if (m.dtype != DType::f32 && m.dtype != DType::f16 && m.dtype != DType::bf16) {
    fail("{}: {} of {} is not supported on the GPU; use f32, f16 or bf16", op, what, name_of(m.dtype));
  }
  if (m.rows > 0 && m.stride < m.columns) {
    fail("{}: {} has rows of {} elements {} apart: they overlap", op, what, m.columns, m.stride);
  }
}

/// The same, and Error unless `m` has at least `rows` rows, of `columns` columns.
inline void check_shape(const MatrixRef& m, std::int64_t rows, std::int64_t columns, std::string_view op,
                        std::string_view what) {
  check_activation(m, op, what);
  if (m.rows < rows || m.columns != columns) {
    fail("{}: {} is [{}, {}], expected [{}, {}]", op, what, m.rows, m.columns, rows, columns);
  }
}

}  // namespace nibble::cuda
