// The ops of encoders of images: cutting patches, and placing their rows behind those of the model's own tokens.
#include "core/checked.h"
#include "core/error.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"
#include "ops/cuda/table.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// What a thread makes: kWidth columns of a row. Rows are short, so that a block goes across several.
struct Piece {
  std::int64_t row;
  int column;
  bool there;
};
template <int kWidth>
__device__ __forceinline__ Piece own_piece(std::int64_t rows, int columns) {
  const int pieces = columns / kWidth;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = index / pieces;
  return {row, static_cast<int>(index - row * pieces) * kWidth, row < rows};
}
unsigned blocks_for(std::int64_t rows, std::int64_t columns, int width) {
  return static_cast<unsigned>(ceil_div(rows * (columns / width), std::int64_t{kThreads}));
}

struct PatchShape {
  int channels;
  int size;
  int patch;
  int side;  // patches side by side
};

template <int kWidth, typename Y>
__global__ void __launch_bounds__(kThreads)
    cut_kernel(const float* pixels, PatchShape s, Rows<Y> y, std::int64_t rows, int columns) {
  pdl_wait();
  pdl_launch();
  const Piece own = own_piece<kWidth>(rows, columns);
  if (!own.there) return;
  const int within = own.column % (s.patch * s.patch);
  const std::int64_t image = own.row / (s.side * s.side);
  const int place = static_cast<int>(own.row - image * (s.side * s.side));
  const std::int64_t line =
      (image * s.channels + own.column / (s.patch * s.patch)) * s.size + place / s.side * s.patch + within / s.patch;
  float values[kWidth];
  load(pixels + line * s.size + place % s.side * s.patch + within % s.patch, values);
  store(y.row(own.row) + own.column, values);
}

template <int kWidth, typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    place_kernel(Table first, Table second, int leading, Table positions, int length, Rows<const X> x, Rows<Y> y,
                 std::int64_t rows, int columns) {
  pdl_wait();
  pdl_launch();
  const Piece own = own_piece<kWidth>(rows, columns);
  if (!own.there) return;
  const std::int64_t image = own.row / length;
  const int place = static_cast<int>(own.row - image * length);
  float values[kWidth];
  float position[kWidth];
  positions.read(place, own.column, position);
  if (place >= leading) {
    load(x.row(image * (length - leading) + place - leading) + own.column, values);
  } else {
    (place == 0 ? first : second).read(0, own.column, values);
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[i] += position[i];
  store(y.row(own.row) + own.column, values);
}

}  // namespace

void cut_patches(const PatchArgs& args, CudaStream& stream) {
  const std::int64_t side = args.size / args.patch;
  const std::int64_t columns = args.channels * args.patch * args.patch;
  const std::int64_t rows = args.images * side * side;
  check_shape(args.y, rows, columns, "cut_patches", "y");
  if (rows == 0) return;
  const PatchShape shape{static_cast<int>(args.channels), static_cast<int>(args.size), static_cast<int>(args.patch),
                         static_cast<int>(side)};
  // A piece is a part of one line of pixels, and begins at a multiple of four of them.
  const bool vectors =
      args.patch % kVector == 0 && args.size % 4 == 0 && takes_vectors(args.pixels) && takes_vectors(args.y);
  with_type(args.y.dtype, "y", [&](auto type) {
    with_width(vectors, [&](auto width) {
      using Y = decltype(type);
      constexpr int kWidth = decltype(width)::value;
      launch(stream, dim3(blocks_for(rows, columns, kWidth)), dim3(kThreads), 0, Overlap::yes, cut_kernel<kWidth, Y>,
             args.pixels, shape, Rows<Y>(args.y), rows, static_cast<int>(columns));
    });
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
  // What is not there has no columns, and fits.
  const bool vectors = takes_vectors(args.x) && takes_vectors(args.y) && takes_vectors(args.positions) &&
                       takes_vectors(args.leading[0]) && takes_vectors(args.leading[1]);
  with_type(args.x.dtype, "x", [&](auto from) {
    with_type(args.y.dtype, "y", [&](auto to) {
      with_width(vectors, [&](auto width) {
        using X = decltype(from);
        using Y = decltype(to);
        constexpr int kWidth = decltype(width)::value;
        launch(stream, dim3(blocks_for(rows, columns, kWidth)), dim3(kThreads), 0, Overlap::yes,
               place_kernel<kWidth, X, Y>, Table(args.leading[0]), Table(args.leading[1]), leading,
               Table(args.positions), static_cast<int>(length), Rows<const X>(args.x), Rows<Y>(args.y), rows,
               static_cast<int>(columns));
      });
    });
  });
}

}  // namespace nibble::cuda
