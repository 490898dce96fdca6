// Rows picked by an index in device memory: the embedding of tokens, and the rows whose logits are wanted.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"
#include "ops/cuda/table.cuh"

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

template <int kWidth, typename X, typename Y>
__global__ void sum_rows(Rows<const X> x, RowMap map, float scale, Table positions, std::int64_t offset, Table types,
                         Rows<Y> y, std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit() * kWidth;
  if (column >= columns) return;
  const std::int64_t row = blockIdx.x;
  float values[kWidth];
  load(x.row(map.tokens[row]) + column, values);
#pragma unroll
  for (float& value : values) value *= scale;
  if (positions.data != nullptr) positions.add_to(map.positions[row] + offset, column, values);
  if (types.data != nullptr) types.add_to(map.types != nullptr ? map.types[row] : 0, column, values);
  store(y.row(row) + column, values);
}

void enqueue_sums(const EmbedArgs& args, CudaStream& stream) {
  const MatrixRef& y = args.y;
  const std::int64_t rows = args.map.rows;
  if (rows == 0 || y.columns == 0) return;
  const auto fits = [](const MatrixRef& table) { return table.data == nullptr || takes_vectors(table); };
  with_width(takes_vectors(args.table) && takes_vectors(y) && fits(args.positions) && fits(args.types),
             [&](auto width) {
               constexpr int kWidth = decltype(width)::value;
               const RowGrid grid(rows, y.columns / kWidth);
               with_type(args.table.dtype, "an embedding table", [&](auto from) {
                 with_type(y.dtype, "y", [&](auto to) {
                   using X = decltype(from);
                   using Y = decltype(to);
                   launch(stream, grid.grid, grid.block, 0, Overlap::yes, sum_rows<kWidth, X, Y>,
                          Rows<const X>(args.table), args.map, args.scale, Table(args.positions), args.position_offset,
                          Table(args.types), Rows<Y>(y), y.columns);
                 });
               });
             });
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
  if (args.positions.data != nullptr || args.types.data != nullptr) {
    if (args.positions.data != nullptr)
      check_shape(args.positions, 1, args.table.columns, "embed", "the table of positions");
    if (args.types.data != nullptr) check_shape(args.types, 1, args.table.columns, "embed", "the table of types");
    enqueue_sums(args, stream);
    return;
  }
  enqueue(args.table, args.map.tokens, args.scale, args.y, args.map.rows, "an embedding table", stream);
}

void gather_rows(const MatrixRef& x, const std::int32_t* indices, const MatrixRef& y, CudaStream& stream) {
  check_activation(x, "gather_rows", "x");
  check_shape(y, y.rows, x.columns, "gather_rows", "y");
  enqueue(x, indices, 1, y, y.rows, "x", stream);
}

}  // namespace nibble::cuda
