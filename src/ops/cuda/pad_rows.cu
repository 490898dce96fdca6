// Rows of packed sequences back to their places in a padded batch.
#include "core/checked.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

template <int kWidth, typename X, typename Y>
__global__ void pad_kernel(Rows<const X> x, const std::int32_t* row_begin, std::int64_t length, Rows<Y> y,
                           std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit() * kWidth;
  if (column >= columns) return;
  const std::int64_t sequence = blockIdx.x / length;
  const std::int64_t place = blockIdx.x % length;
  const std::int32_t begin = row_begin[sequence];
  float values[kWidth] = {};
  if (place < row_begin[sequence + 1] - begin) load(x.row(begin + place) + column, values);
  store(y.row(blockIdx.x) + column, values);
}

}  // namespace

void pad_rows(const MatrixRef& x, const std::int32_t* row_begin, std::int64_t sequences, std::int64_t length,
              const MatrixRef& y, CudaStream& stream) {
  const std::int64_t rows = checked_mul(sequences, length, "the rows of a padded batch");
  check_activation(x, "pad_rows", "x");
  check_shape(y, rows, x.columns, "pad_rows", "y");
  if (rows == 0) return;
  with_width(takes_vectors(x) && takes_vectors(y), [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const RowGrid grid(rows, x.columns / kWidth);
    with_type(x.dtype, "x", [&](auto from) {
      with_type(y.dtype, "y", [&](auto to) {
        using X = decltype(from);
        using Y = decltype(to);
        launch(stream, grid.grid, grid.block, 0, Overlap::yes, pad_kernel<kWidth, X, Y>, Rows<const X>(x), row_begin,
               length, Rows<Y>(y), x.columns);
      });
    });
  });
}

}  // namespace nibble::cuda
