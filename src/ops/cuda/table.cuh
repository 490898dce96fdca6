// A table that a model keeps, of a type of its own.
#pragma once

#include "ops/cuda/elements.cuh"

namespace nibble::cuda {

/// A table that may be missing (no data), of a type that is looked at for each access: it is read from the cache,
/// mostly.
struct Table {
  const void* data;
  std::int64_t stride;
  DType type;

  explicit Table(const MatrixRef& m) : data(m.data), stride(m.stride), type(m.dtype) {}

  template <int kWidth>
  __device__ __forceinline__ void read(std::int64_t row, std::int64_t column, float (&to)[kWidth]) const {
    const std::int64_t index = row * stride + column;
    if (type == DType::f32) {
      load(static_cast<const float*>(data) + index, to);
    } else if (type == DType::f16) {
      load(static_cast<const __half*>(data) + index, to);
    } else {
      load(static_cast<const __nv_bfloat16*>(data) + index, to);
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void add_to(std::int64_t row, std::int64_t column, float (&sum)[kWidth]) const {
    float values[kWidth];
    read(row, column, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] += values[i];
  }
};

}  // namespace nibble::cuda
