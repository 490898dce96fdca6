// The ops of encoders of images: cutting patches, and placing their rows behind those of the model's own tokens.
#include "core/error.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

struct PatchShape {
  int channels;
  int size;
  int patch;
  int side;  // patches side by side
};

template <typename Y>
__global__ void cut_kernel(const float* pixels, PatchShape s, Rows<Y> y, std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit();
  if (column >= columns) return;
  const auto i = static_cast<int>(column);
  const int within = i % (s.patch * s.patch);
  const std::int64_t row = blockIdx.x;
  const int place = static_cast<int>(row % (s.side * s.side));
  const std::int64_t image = row / (s.side * s.side);
  const std::int64_t line =
      (image * s.channels + i / (s.patch * s.patch)) * s.size + place / s.side * s.patch + within / s.patch;
  y.row(row)[column] = from_float<Y>(pixels[line * s.size + place % s.side * s.patch + within % s.patch]);
}

// One of the tables a model keeps for this, each of its own type.
struct Table {
  const void* data;
  std::int64_t stride;
  DType type;

  explicit Table(const MatrixRef& m) : data(m.data), stride(m.stride), type(m.dtype) {}
  __device__ __forceinline__ float at(std::int64_t row, std::int64_t column) const {
    const std::int64_t index = row * stride + column;
    if (type == DType::f32) return static_cast<const float*>(data)[index];
    if (type == DType::f16) return to_float(static_cast<const __half*>(data)[index]);
    return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
  }
};

template <typename X, typename Y>
__global__ void place_kernel(Table first, Table second, int leading, Table positions, int length, Rows<const X> x,
                             Rows<Y> y, std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit();
  if (column >= columns) return;
  const std::int64_t row = blockIdx.x;
  const int place = static_cast<int>(row % length);
  const std::int64_t image = row / length;
  const float own = place >= leading ? to_float(x.row(image * (length - leading) + place - leading)[column])
                    : place == 0     ? first.at(0, column)
                                     : second.at(0, column);
  y.row(row)[column] = from_float<Y>(own + positions.at(place, column));
}

}  // namespace

void cut_patches(const PatchArgs& args, CudaStream& stream) {
  const std::int64_t side = args.size / args.patch;
  const std::int64_t columns = args.channels * args.patch * args.patch;
  const std::int64_t rows = args.images * side * side;
  check_shape(args.y, rows, columns, "cut_patches", "y");
  if (rows == 0) return;
  const RowGrid grid(rows, columns);
  const PatchShape shape{static_cast<int>(args.channels), static_cast<int>(args.size), static_cast<int>(args.patch),
                         static_cast<int>(side)};
  with_type(args.y.dtype, "y", [&](auto type) {
    using Y = decltype(type);
    launch(stream, grid.grid, grid.block, 0, Overlap::yes, cut_kernel<Y>, args.pixels, shape, Rows<Y>(args.y), columns);
  });
}

void place_patches(const PlaceArgs& args, CudaStream& stream) {
  const std::int64_t columns = args.positions.columns;
  const std::int64_t length = args.positions.rows;
  const int leading = (args.leading[0].data != nullptr ? 1 : 0) + (args.leading[1].data != nullptr ? 1 : 0);
  if (args.leading[0].data == nullptr && leading > 0)
    fail("place_patches: the second leading row came without a first");
  const std::int64_t rows = args.images * length;
  check_shape(args.x, args.images * (length - leading), columns, "place_patches", "x");
  check_shape(args.y, rows, columns, "place_patches", "y");
  check_activation(args.positions, "place_patches", "positions");
  if (rows == 0) return;
  const RowGrid grid(rows, columns);
  with_type(args.x.dtype, "x", [&](auto from) {
    with_type(args.y.dtype, "y", [&](auto to) {
      using X = decltype(from);
      using Y = decltype(to);
      launch(stream, grid.grid, grid.block, 0, Overlap::yes, place_kernel<X, Y>, Table(args.leading[0]),
             Table(args.leading[1]), leading, Table(args.positions), static_cast<int>(length), Rows<const X>(args.x),
             Rows<Y>(args.y), columns);
    });
  });
}

}  // namespace nibble::cuda
