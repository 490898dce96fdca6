// The ops around convolutions over time: spectrograms as rows, the norm of each channel over a sequence's frames, and
// the tokens that are made of frames.
#include "core/checked.h"
#include "kernels/cuda/activation_16.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

#include <array>

namespace nibble::cuda {
namespace {

constexpr int kMostSequences = 64;  // of a launch
constexpr int kThreads = 512;
constexpr int kColumns = 32;  // normed by a block: 64 or 128 bytes of each row

// Rows of some sequences.
struct Spans {
  int count = 0;
  std::array<std::int64_t, kMostSequences> from, rows, to, all;  // rows that there are; where they go; rows of y
};

struct NormParameters {
  const float* weight;
  const float* bias;
  float eps;
  int columns;
  bool active;
  ActivationKind activation;
};

// A block norms kColumns columns of one sequence: threads in a row take kWidth columns each, the sums of each are added
// up in the same order every time. In f64, since variances are differences of sums of squares.
template <int kWidth, typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    instance_norm_kernel(Rows<const X> x, Rows<Y> y, NormParameters p, const __grid_constant__ Spans spans) {
  constexpr int kAcross = kColumns / kWidth;
  constexpr int kTogether = kThreads / kAcross;  // rows
  constexpr int kWarps = kThreads / 32;
  __shared__ double sums[2][kWarps][kColumns];
  __shared__ float factors[4][kColumns];
  pdl_wait();
  pdl_launch();
  const int s = static_cast<int>(blockIdx.y);
  const int across = static_cast<int>(threadIdx.x) % kAcross;
  const int line = static_cast<int>(threadIdx.x) / kAcross;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kColumns + across * kWidth;
  const std::int64_t begin = spans.from.data()[s];
  const std::int64_t rows = spans.rows.data()[s];
  const bool there = first < p.columns;
  const std::int64_t counted = there ? rows : 0;

  double sum[kWidth] = {};
  double squares[kWidth] = {};
  for (std::int64_t row = line; row < counted; row += kTogether) {
    float values[kWidth];
    load(x.row(begin + row) + first, values);
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      const double value = static_cast<double>(values[c]);
      sum[c] += value;
      squares[c] = fma(value, value, squares[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < kWidth; ++c) {
#pragma unroll
    for (int lanes = kAcross; lanes < 32; lanes *= 2) {
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], lanes);
      squares[c] += __shfl_xor_sync(0xffffffffu, squares[c], lanes);
    }
    if (threadIdx.x % 32 < kAcross) {
      sums[0][threadIdx.x / 32][across * kWidth + c] = sum[c];
      sums[1][threadIdx.x / 32][across * kWidth + c] = squares[c];
    }
  }
  __syncthreads();
  double totals[2] = {};
  if (threadIdx.x < kColumns) {
    for (int warp = 0; warp < kWarps; ++warp) {
      totals[0] += sums[0][warp][threadIdx.x];
      totals[1] += sums[1][warp][threadIdx.x];
    }
  }
  if (threadIdx.x < kColumns && static_cast<int>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x) < p.columns) {
    const int column = static_cast<int>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x);
    const double mean = totals[0] / static_cast<double>(rows);
    const double variance = fmax(totals[1] / static_cast<double>(rows) - mean * mean, 0.0);
    const double factor = static_cast<double>(p.weight[column]) / sqrt(variance + static_cast<double>(p.eps));
    factors[0][threadIdx.x] = static_cast<float>(factor);
    factors[1][threadIdx.x] = static_cast<float>(mean);
    factors[2][threadIdx.x] = p.bias[column];
    // What f32 rounds off the mean: frames that hardly differ, far from 0, differ by little more.
    factors[3][threadIdx.x] = static_cast<float>(mean - static_cast<double>(static_cast<float>(mean)));
  }
  __syncthreads();
  for (std::int64_t row = line; row < counted; row += kTogether) {
    float values[kWidth];
    load(x.row(begin + row) + first, values);
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      const int column = across * kWidth + c;
      // The difference first: what is left of a mean far from 0 would be lost in a sum.
      values[c] = fmaf(values[c] - factors[1][column] - factors[3][column], factors[0][column], factors[2][column]);
      if (p.active) values[c] = activate_for<Y>(p.activation, values[c]);
    }
    store(y.row(begin + row) + first, values);
  }
}

template <typename X, typename Y>
__global__ void trim_kernel(Rows<const X> x, Rows<Y> y, int columns, const __grid_constant__ Spans spans) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = column_unit();
  const int s = static_cast<int>(blockIdx.z);
  if (column >= columns) return;
  for (std::int64_t row = blockIdx.x; row < spans.all.data()[s]; row += gridDim.x) {
    const bool kept = row < spans.rows.data()[s];
    y.row(spans.to.data()[s] + row)[column] =
        from_float<Y>(kept ? to_float(x.row(spans.from.data()[s] + row)[column]) : 0.0f);
  }
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

void instance_norm(const InstanceNormArgs& args, CudaStream& stream) {
  check_shape(args.x, args.begin.back(), args.x.columns, "instance_norm", "x");
  check_shape(args.y, args.begin.back(), args.x.columns, "instance_norm", "y");
  NormParameters parameters{args.weight,
                            args.bias,
                            args.eps,
                            static_cast<int>(args.x.columns),
                            args.activation.has_value(),
                            args.activation.value_or(ActivationKind::relu)};
  const std::size_t sequences = args.begin.size() - 1;
  const auto blocks = static_cast<unsigned>(ceil_div(args.x.columns, std::int64_t{kColumns}));
  for (std::size_t first = 0; first < sequences; first += kMostSequences) {
    Spans spans;
    spans.count = static_cast<int>(std::min<std::size_t>(sequences - first, kMostSequences));
    for (int i = 0; i < spans.count; ++i) {
      const std::size_t s = first + static_cast<std::size_t>(i);
      const std::int64_t all = args.begin[s + 1] - args.begin[s];
      const auto at = static_cast<std::size_t>(i);
      spans.from[at] = args.begin[s];
      spans.rows[at] = args.rows.empty() ? all : args.rows[s];
      if (spans.rows[at] > all)
        fail("instance_norm: {} rows are said to be in {} of sequence {}", spans.rows[at], all, s);
    }
    with_type(args.x.dtype, "x", [&](auto from) {
      with_type(args.y.dtype, "y", [&](auto to) {
        with_width(takes_vectors(args.x) && takes_vectors(args.y), [&](auto width) {
          using X = decltype(from);
          using Y = decltype(to);
          launch(stream, dim3(blocks, static_cast<unsigned>(spans.count)), dim3(kThreads), 0, Overlap::yes,
                 instance_norm_kernel<decltype(width)::value, X, Y>, Rows<const X>(args.x), Rows<Y>(args.y), parameters,
                 spans);
        });
      });
    });
  }
}

void trim_frames(const TrimArgs& args, CudaStream& stream) {
  check_shape(args.x, args.x_begin.back(), args.y.columns, "trim_frames", "x");
  check_shape(args.y, args.y_begin.back(), args.y.columns, "trim_frames", "y");
  for (std::size_t first = 0; first < args.kept.size(); first += kMostSequences) {
    Spans spans;
    spans.count = static_cast<int>(std::min<std::size_t>(args.kept.size() - first, kMostSequences));
    std::int64_t most = 0;
    for (int i = 0; i < spans.count; ++i) {
      const std::size_t s = first + static_cast<std::size_t>(i);
      const auto at = static_cast<std::size_t>(i);
      spans.from[at] = args.x_begin[s];
      spans.to[at] = args.y_begin[s];
      spans.rows[at] = args.kept[s];
      spans.all[at] = args.y_begin[s + 1] - args.y_begin[s];
      const std::int64_t there = args.x_begin[s + 1] - args.x_begin[s];
      if (spans.rows[at] > there || spans.rows[at] > spans.all[at])
        fail("trim_frames: {} rows are kept of {} for {} of sequence {}", spans.rows[at], there, spans.all[at], s);
      most = std::max(most, spans.all[at]);
    }
    if (most == 0) continue;
    RowGrid grid(most, args.y.columns);
    grid.grid.z = static_cast<unsigned>(spans.count);
    with_type(args.x.dtype, "x", [&](auto from) {
      with_type(args.y.dtype, "y", [&](auto to) {
        using X = decltype(from);
        using Y = decltype(to);
        launch(stream, grid.grid, grid.block, 0, Overlap::yes, trim_kernel<X, Y>, Rows<const X>(args.x),
               Rows<Y>(args.y), static_cast<int>(args.y.columns), spans);
      });
    });
  }
}

}  // namespace nibble::cuda
