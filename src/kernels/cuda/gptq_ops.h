// What the kernels of the original benchmark do beside their products: dequantise whole matrices, gather columns, begin
// sums and bring them to f16.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/matrix.h"
#include "kernels/cuda/gptq_upload.h"

#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::cuda {

/// to.codes = the rows of 4-bit codes of `from` in the order of to.row_index.
void sort_code_rows(const std::uint32_t* from, const DeviceGptq& to, CudaStream& stream);

/// `to` = the zero points [shape.groups, shape.out_features] less 1, packed as v1 files have them; all the middle code
/// where `zeros` is null. A row's zero points fill whole words.
void pack_zeros(const std::uint16_t* zeros, const DeviceGptq& shape, std::uint32_t* to, CudaStream& stream);

/// W as f16 [K, N]; with row_index null, or `sorted`, in the order in which its rows are packed. Group sizes that are
/// not all of K must be multiples of 8.
void dequantize(const DeviceGptq& weights, RowOrder order, __half* to, CudaStream& stream);

/// to[m, k] = x[m, index[k]], m < rows, `to` [rows, columns] without gaps; x is f16.
void gather_columns(const MatrixRef& x, std::int64_t rows, const std::int32_t* index, std::int64_t columns, __half* to,
                    CudaStream& stream);

/// Whether each row of halves begins on a whole pair, so that pairs can be added by one atomic.
inline bool begins_on_pairs(const MatrixRef& y) {
  return reinterpret_cast<std::uintptr_t>(y.data) % 4 == 0 && y.stride % 2 == 0;
}

/// y[m, n] = 0, m < rows; y is f16.
void clear_rows(const MatrixRef& y, std::int64_t rows, CudaStream& stream);

/// y[m, n] = sums[m, n] + bias[n], sums [rows, y.columns] without gaps; y is f16, bias may be null.
void store_sums(const float* sums, const float* bias, const MatrixRef& y, std::int64_t rows, CudaStream& stream);

}  // namespace nibble::cuda
