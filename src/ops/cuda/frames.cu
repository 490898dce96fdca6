// The ops around convolutions over time: spectrograms as rows, and the tokens that are made of frames.
#include "core/checked.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

// The sequences of a trim, in device memory.
struct Trims {
  const std::int32_t* x_begin;
  const std::int32_t* kept;
  const std::int32_t* y_begin;
  int sequences;
};

template <typename X, typename Y>
__global__ void trim_kernel(Rows<const X> x, Rows<Y> y, int columns, Trims at) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit();
  if (column >= columns) return;
  const int row = static_cast<int>(blockIdx.x);
  int low = 0;
  int high = at.sequences;  // rows behind the last sequence
  while (low < high) {
    const int middle = (low + high) / 2;
    if (at.y_begin[middle + 1] <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int own = low < at.sequences ? row - at.y_begin[low] : 0;
  const bool kept = low < at.sequences && own < at.kept[low];
  y.row(row)[column] = from_float<Y>(kept ? to_float(x.row(at.x_begin[low] + own)[column]) : 0.0f);
}

constexpr int kSide = 32;  // of a transposed tile
constexpr int kLines = 8;  // of it at a time

template <typename Y>
__global__ void transpose_kernel(Rows<const float> x, Rows<Y> y, std::int64_t rows, std::int64_t columns) {
  __shared__ float tile[kSide][kSide + 1];
  pdl_wait();
  pdl_launch();
  const int own = static_cast<int>(threadIdx.x);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSide;  // of y
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kSide;
  for (int line = static_cast<int>(threadIdx.y); line < kSide; line += kLines) {
    if (column + line < columns && row + own < rows) tile[line][own] = x.row(column + line)[row + own];
  }
  __syncthreads();
  for (int line = static_cast<int>(threadIdx.y); line < kSide; line += kLines) {
    if (row + line < rows && column + own < columns) y.row(row + line)[column + own] = from_float<Y>(tile[own][line]);
  }
}

}  // namespace

void transpose(const MatrixRef& x, const MatrixRef& y, CudaStream& stream) {
  check_shape(x, y.columns, y.rows, "transpose", "x");
  check_shape(y, y.rows, x.rows, "transpose", "y");
  if (x.dtype != DType::f32) fail("transpose: x of {}, expected f32", name_of(x.dtype));
  if (y.rows == 0 || y.columns == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(y.rows, std::int64_t{kSide})),
                  static_cast<unsigned>(ceil_div(y.columns, std::int64_t{kSide})));
  with_type(y.dtype, "y", [&](auto to) {
    using Y = decltype(to);
    launch(stream, grid, dim3(kSide, kLines), 0, Overlap::yes, transpose_kernel<Y>, Rows<const float>(x), Rows<Y>(y),
           y.rows, y.columns);
  });
}

void trim_frames(const TrimArgs& args, CudaStream& stream) {
  check_shape(args.x, args.x.rows, args.y.columns, "trim_frames", "x");
  check_shape(args.y, args.y.rows, args.y.columns, "trim_frames", "y");
  if (args.y.rows == 0) return;
  const RowGrid grid(args.y.rows, args.y.columns);
  with_type(args.x.dtype, "x", [&](auto from) {
    with_type(args.y.dtype, "y", [&](auto to) {
      using X = decltype(from);
      using Y = decltype(to);
      launch(stream, grid.grid, grid.block, 0, Overlap::yes, trim_kernel<X, Y>, Rows<const X>(args.x), Rows<Y>(args.y),
             static_cast<int>(args.y.columns),
             Trims{args.x_begin, args.kept, args.y_begin, static_cast<int>(args.sequences)});
    });
  });
}

}  // namespace nibble::cuda
