// The rotation of queries and keys by their position. Each pair is read and written by one thread, in place.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

// Pairs of one thread where they lie so that it can be done: interleaved they are the kVector elements of one access.
constexpr int kPairs = kVector / 2;

struct RotaryShape {
  std::uint32_t units_per_head;  // pieces of work
  std::int64_t units;            // of a row
  std::int64_t head_dim;
  std::int64_t dims;
};

template <int kCount, bool kInterleaved, typename T>
__global__ void rotate(Rows<T> x, const std::int32_t* positions, const float* table, RotaryShape shape) {
  pdl_wait();
  pdl_launch();
  const std::int64_t unit = column_unit();
  if (unit >= shape.units) return;
  const std::int64_t head = static_cast<std::uint32_t>(unit) / shape.units_per_head;
  const std::int64_t pair = static_cast<std::int64_t>(static_cast<std::uint32_t>(unit) % shape.units_per_head) * kCount;
  const std::int64_t pairs = shape.dims / 2;
  const float* turn = table + positions[blockIdx.x] * shape.dims + pair;
  float cosine[kCount];
  float sine[kCount];
  load(turn, cosine);
  load(turn + pairs, sine);
  T* at = x.row(blockIdx.x) + head * shape.head_dim;
  float a[kCount];
  float b[kCount];
  if constexpr (!kInterleaved) {
    load(at + pair, a);
    load(at + pair + pairs, b);
  } else if constexpr (kCount == 1) {
    a[0] = to_float(at[2 * pair]);
    b[0] = to_float(at[2 * pair + 1]);
  } else {
    float both[2 * kCount];
    load(at + 2 * pair, both);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      a[i] = both[2 * i];
      b[i] = both[2 * i + 1];
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float turned = a[i] * cosine[i] - b[i] * sine[i];
    b[i] = b[i] * cosine[i] + a[i] * sine[i];
    a[i] = turned;
  }
  if constexpr (!kInterleaved) {
    store(at + pair, a);
    store(at + pair + pairs, b);
  } else if constexpr (kCount == 1) {
    at[2 * pair] = from_float<T>(a[0]);
    at[2 * pair + 1] = from_float<T>(b[0]);
  } else {
    float both[2 * kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      both[2 * i] = a[i];
      both[2 * i + 1] = b[i];
    }
    store(at + 2 * pair, both);
  }
}

}  // namespace

void rotary(const RotaryArgs& args, CudaStream& stream) {
  const MatrixRef& x = args.x;
  check_shape(x, args.map.rows, args.heads * args.head_dim, "rotary", "x");
  if (args.dims <= 0 || args.dims % 2 != 0 || args.dims > args.head_dim) {
    fail("rotary: cannot rotate {} dimensions of a head of {}; expected an even number of at most that", args.dims,
         args.head_dim);
  }
  if (args.map.rows == 0 || args.heads == 0) return;
  const bool vectors =
      takes_vectors(x) && takes_vectors(args.table) && args.dims % kVector == 0 && args.head_dim % kVector == 0;
  with_width(vectors, [&](auto width) {
    constexpr int kCount = decltype(width)::value == kVector ? kPairs : 1;
    const std::int64_t units_per_head = args.dims / 2 / kCount;
    const RotaryShape shape{static_cast<std::uint32_t>(units_per_head), args.heads * units_per_head, args.head_dim,
                            args.dims};
    const RowGrid grid(args.map.rows, shape.units);
    with_type(x.dtype, "x", [&](auto of_x) {
      using T = decltype(of_x);
      const auto kernel = args.interleaved ? rotate<kCount, true, T> : rotate<kCount, false, T>;
      launch(stream, grid.grid, grid.block, 0, Overlap::yes, kernel, Rows<T>(x), args.map.positions, args.table, shape);
    });
  });
}

}  // namespace nibble::cuda
