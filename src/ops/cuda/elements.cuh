// Rows of activations in device memory, read and written several elements at a time where they lie so that it can be
// done.
#pragma once

#include "core/cuda/launch.cuh"
#include "core/matrix.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace nibble::cuda {

/// The rows of a MatrixRef as a kernel gets them.
template <typename T>
struct Rows {
  T* data;
  std::int64_t stride;

  explicit Rows(const MatrixRef& m) : data(static_cast<T*>(m.data)), stride(m.stride) {}
  __device__ __forceinline__ T* row(std::int64_t index) const { return data + index * stride; }
};

/// Elements of one access: 16 bytes of a 16-bit type, two times 16 of f32.
inline constexpr int kVector = 8;

/// Whether each row of `m` may be read and written kVector elements at a time.
inline bool takes_vectors(const MatrixRef& m) {
  constexpr std::int64_t kAccessBytes = 16;
  const auto bytes = static_cast<std::int64_t>(bytes_of(m.dtype));
  return reinterpret_cast<std::uintptr_t>(m.data) % kAccessBytes == 0 && m.stride * bytes % kAccessBytes == 0 &&
         m.columns % kVector == 0;
}

/// The same for the floats of a weight or a table; nullptr is none, and fits.
inline bool takes_vectors(const float* values) { return reinterpret_cast<std::uintptr_t>(values) % 16 == 0; }

/// Calls body with kVector or with 1 as a constant.
template <typename Body>
void with_width(bool vectors, const Body& body) {
  if (vectors) {
    body(std::integral_constant<int, kVector>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

/// Reads kCount elements (1, 4 or 8). 4 and 8 elements must be aligned to their size or to 16 bytes, what is less.
template <typename T, int kCount>
__device__ __forceinline__ void load(const T* from, float (&to)[kCount]) {
  static_assert(kCount == 1 || kCount == 4 || kCount == 8);
  if constexpr (kCount == 1) {
    to[0] = to_float(*from);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
    using Word = std::conditional_t<kCount == 8, uint4, uint2>;
    const Word word = *reinterpret_cast<const Word*>(from);
    T elements[kCount];
    memcpy(elements, &word, sizeof word);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = to_float(elements[i]);
  }
}

/// Writes kCount elements, as load() reads them.
template <typename T, int kCount>
__device__ __forceinline__ void store(T* to, const float (&from)[kCount]) {
  static_assert(kCount == 1 || kCount == 4 || kCount == 8);
  if constexpr (kCount == 1) {
    *to = from_float<T>(from[0]);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  } else {
    using Word = std::conditional_t<kCount == 8, uint4, uint2>;
    T elements[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) elements[i] = from_float<T>(from[i]);
    Word word;
    memcpy(&word, elements, sizeof word);
    *reinterpret_cast<Word*>(to) = word;
  }
}

/// How `rows` rows of `units` pieces of work each are divided: a block is a part of one row, blockIdx.x is the row (it
/// may exceed 65535, which blockIdx.y may not) and column_unit() the piece.
struct RowGrid {
  dim3 grid;
  dim3 block;

  RowGrid(std::int64_t rows, std::int64_t units) {
    // Small blocks: a decode step's few rows are to be spread over many multiprocessors.
    constexpr std::int64_t kThreads = 128;
    constexpr std::int64_t kWarp = 32;
    const std::int64_t threads = std::min(kThreads, (units + kWarp - 1) / kWarp * kWarp);
    block = dim3(static_cast<unsigned>(threads));
    grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>((units + threads - 1) / threads));
  }
};

__device__ __forceinline__ std::int64_t column_unit() {
  return static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
}

}  // namespace nibble::cuda
