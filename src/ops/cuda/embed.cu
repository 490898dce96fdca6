// Rows picked by an index in device memory: the embedding of tokens, and the rows whose logits are wanted.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

template <int kWidth, typename X, typename Y>
__global__ void pick_rows(Rows<const X> x, const std::int32_t* indices, float scale, Rows<Y> y, std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit() * kWidth;
  if (column >= columns) return;
  float values[kWidth];
  load(x.row(indices[blockIdx.x]) + column, values);
#pragma unroll
  for (float& value : values) value *= scale;
  store(y.row(blockIdx.x) + column, values);
}

void enqueue(const MatrixRef& x, const std::int32_t* indices, float scale, const MatrixRef& y, std::int64_t rows,
             const char* what, CudaStream& stream) {
  if (rows == 0 || y.columns == 0) return;
  with_width(takes_vectors(x) && takes_vectors(y), [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const RowGrid grid(rows, y.columns / kWidth);
    with_type(x.dtype, what, [&](auto from) {
      with_type(y.dtype, "y", [&](auto to) {
        using X = decltype(from);
        using Y = decltype(to);
        launch(stream, grid.grid, grid.block, 0, Overlap::yes, pick_rows<kWidth, X, Y>, Rows<const X>(x), indices,
               scale, Rows<Y>(y), y.columns);
      });
    });
  });
}

}  // namespace

void embed(const EmbedArgs& args, CudaStream& stream) {
  check_activation(args.table, "embed", "the table");
  check_shape(args.y, args.map.rows, args.table.columns, "embed", "y");
  enqueue(args.table, args.map.tokens, args.scale, args.y, args.map.rows, "an embedding table", stream);
}

void gather_rows(const MatrixRef& x, const std::int32_t* indices, const MatrixRef& y, CudaStream& stream) {
  check_activation(x, "gather_rows", "x");
  check_shape(y, y.rows, x.columns, "gather_rows", "y");
  enqueue(x, indices, 1, y, y.rows, "x", stream);
}

}  // namespace nibble::cuda
