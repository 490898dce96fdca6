// The norm of each channel over a sequence's frames.
#include "core/checked.h"
#include "core/cuda/cluster.cuh"
#include "kernels/cuda/activation_16.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

#include <array>

namespace nibble::cuda {
namespace {

constexpr int kMostSequences = 64;  // of a launch
constexpr int kThreads = 256;
constexpr int kColumns = 32;   // normed by a block: 64 or 128 bytes of each row
constexpr int kMostParts = 8;  // blocks that a cluster can have everywhere
constexpr int kBatch = 4;      // rows of a thread on their way at a time

// Rows of some sequences.
struct Spans {
  int count = 0;
  std::array<std::int64_t, kMostSequences> from, rows;
};

struct NormParameters {
  const float* weight;
  const float* bias;
  float eps;
  int columns;
  int parts;  // blocks that share the rows of a sequence: a cluster
  bool active;
  ActivationKind activation;
};

struct Shared {
  double sums[2][kThreads / 32][kColumns];
  float factors[4][kColumns];
  float4 totals[kMostParts][kColumns];  // of each block: the sum, and that of squares, two halves of a double each
  std::uint64_t all_received;
};

__device__ __forceinline__ float4 halves_of(double a, double b) {
  return make_float4(__int_as_float(__double2hiint(a)), __int_as_float(__double2loint(a)),
                     __int_as_float(__double2hiint(b)), __int_as_float(__double2loint(b)));
}
__device__ __forceinline__ double whole_of(float high, float low) {
  return __hiloint2double(__float_as_int(high), __float_as_int(low));
}

// Calls body(row, values) for a thread's rows, of which some are read ahead.
template <int kTogether, int kWidth, typename X, typename Body>
__device__ __forceinline__ void for_rows(const Rows<const X>& x, std::int64_t first, std::int64_t from, std::int64_t to,
                                         const Body& body) {
  for (std::int64_t row = from; row < to; row += kTogether * kBatch) {
    float values[kBatch][kWidth];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i * kTogether < to) load(x.row(row + i * kTogether) + first, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i * kTogether < to) body(row + i * kTogether, values[i]);
    }
  }
}

// A block norms kColumns columns of one sequence, of which it has all rows or a part: threads in a row take kWidth
// columns each, the sums of each are added up in the same order every time. In f64, since variances are differences of
// sums of squares.
template <int kWidth, typename X, typename Y>
__global__ void __launch_bounds__(kThreads, 2)
    instance_norm_kernel(Rows<const X> x, Rows<Y> y, NormParameters p, const __grid_constant__ Spans spans) {
  constexpr int kAcross = kColumns / kWidth;
  constexpr int kTogether = kThreads / kAcross;  // rows
  constexpr int kWarps = kThreads / 32;
  __shared__ Shared m;
  const int tid = static_cast<int>(threadIdx.x);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (p.parts > 1) {
    if (tid == 0) {
      init_barrier(shared_address(&m.all_received));
      expect_bytes(shared_address(&m.all_received), p.parts * kColumns * static_cast<int>(sizeof(float4)));
    }
    cluster_arrive();
  }
#endif
  pdl_wait();
  pdl_launch();
  const int s = static_cast<int>(blockIdx.y);
  const int part = static_cast<int>(blockIdx.x) % p.parts;
  const int column0 = static_cast<int>(blockIdx.x) / p.parts * kColumns;
  const int across = tid % kAcross;
  const std::int64_t first = column0 + across * kWidth;
  const std::int64_t rows = spans.rows.data()[s];
  // Of this thread: none of columns that there are not.
  const std::int64_t begin = spans.from.data()[s] + rows * part / p.parts + tid / kAcross;
  const std::int64_t end = first < p.columns ? spans.from.data()[s] + rows * (part + 1) / p.parts : begin;

  double sum[kWidth] = {};
  double squares[kWidth] = {};
  for_rows<kTogether, kWidth>(x, first, begin, end, [&](std::int64_t, const float(&values)[kWidth]) {
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      const double value = static_cast<double>(values[c]);
      sum[c] += value;
      squares[c] = fma(value, value, squares[c]);
    }
  });
#pragma unroll
  for (int c = 0; c < kWidth; ++c) {
#pragma unroll
    for (int lanes = kAcross; lanes < 32; lanes *= 2) {
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], lanes);
      squares[c] += __shfl_xor_sync(0xffffffffu, squares[c], lanes);
    }
    if (tid % 32 < kAcross) {
      m.sums[0][tid / 32][across * kWidth + c] = sum[c];
      m.sums[1][tid / 32][across * kWidth + c] = squares[c];
    }
  }
  if (p.parts > 1) cluster_wait();
  __syncthreads();
  double totals[2] = {};
  if (tid < kColumns) {
    for (int warp = 0; warp < kWarps; ++warp) {
      totals[0] += m.sums[0][warp][tid];
      totals[1] += m.sums[1][warp][tid];
    }
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (p.parts > 1 && tid < kColumns) {
    for (int to = 0; to < p.parts; ++to)
      send(&m.totals[part][tid], to, &m.all_received, halves_of(totals[0], totals[1]));
    wait_barrier(shared_address(&m.all_received), 0);
    totals[0] = totals[1] = 0;
    for (int from = 0; from < p.parts; ++from) {
      const float4 other = m.totals[from][tid];
      totals[0] += whole_of(other.x, other.y);
      totals[1] += whole_of(other.z, other.w);
    }
  }
#endif
  if (tid < kColumns && column0 + tid < p.columns) {
    const int column = column0 + tid;
    const double mean = totals[0] / static_cast<double>(rows);
    const double variance = fmax(totals[1] / static_cast<double>(rows) - mean * mean, 0.0);
    const double factor = static_cast<double>(p.weight[column]) / sqrt(variance + static_cast<double>(p.eps));
    m.factors[0][tid] = static_cast<float>(factor);
    m.factors[1][tid] = static_cast<float>(mean);
    m.factors[2][tid] = p.bias[column];
    // What f32 rounds off the mean: frames that hardly differ, far from 0, differ by little more.
    m.factors[3][tid] = static_cast<float>(mean - static_cast<double>(static_cast<float>(mean)));
  }
  __syncthreads();
  float factor[kWidth], mean[kWidth], shift[kWidth], rest[kWidth];
#pragma unroll
  for (int c = 0; c < kWidth; ++c) {
    factor[c] = m.factors[0][across * kWidth + c];
    mean[c] = m.factors[1][across * kWidth + c];
    shift[c] = m.factors[2][across * kWidth + c];
    rest[c] = m.factors[3][across * kWidth + c];
  }
  for_rows<kTogether, kWidth>(x, first, begin, end, [&](std::int64_t row, float(&values)[kWidth]) {
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      // The difference first: what is left of a mean far from 0 would be lost in a sum.
      values[c] = fmaf(values[c] - mean[c] - rest[c], factor[c], shift[c]);
      if (p.active) values[c] = activate_for<Y>(p.activation, values[c]);
    }
    store(y.row(row) + first, values);
  });
}

// Blocks that share a sequence's rows: as many as the GPU has room for, where it has clusters.
int parts_of(std::int64_t blocks, std::int64_t rows, const CudaDevice& device) {
  constexpr int kHopper = 90;
  constexpr std::int64_t kOfMultiprocessor = 4;
  constexpr std::int64_t kFewestRows = 256;
  if (device.capability() < kHopper) return 1;
  int parts = 1;
  while (parts < kMostParts && 2 * parts * blocks <= kOfMultiprocessor * device.multiprocessors() &&
         rows >= 2 * parts * kFewestRows) {
    parts *= 2;
  }
  return parts;
}

template <int kWidth, typename X, typename Y>
void launch_norm(const InstanceNormArgs& args, const NormParameters& p, const Spans& spans, CudaStream& stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(p.columns, kColumns));
  launch(stream, dim3(blocks * static_cast<unsigned>(p.parts), static_cast<unsigned>(spans.count)), dim3(kThreads), 0,
         Overlap::yes, Share::as_needed, static_cast<unsigned>(p.parts), instance_norm_kernel<kWidth, X, Y>,
         Rows<const X>(args.x), Rows<Y>(args.y), p, spans);
}

}  // namespace

void instance_norm(const InstanceNormArgs& args, const CudaDevice& device, CudaStream& stream) {
  check_shape(args.x, args.begin.back(), args.x.columns, "instance_norm", "x");
  check_shape(args.y, args.begin.back(), args.x.columns, "instance_norm", "y");
  NormParameters parameters{args.weight,
                            args.bias,
                            args.eps,
                            static_cast<int>(args.x.columns),
                            1,
                            args.activation.has_value(),
                            args.activation.value_or(ActivationKind::relu)};
  const std::size_t sequences = args.begin.size() - 1;
  for (std::size_t first = 0; first < sequences; first += kMostSequences) {
    Spans spans;
    spans.count = static_cast<int>(std::min<std::size_t>(sequences - first, kMostSequences));
    std::int64_t most = 0;
    for (int i = 0; i < spans.count; ++i) {
      const std::size_t s = first + static_cast<std::size_t>(i);
      const std::int64_t all = args.begin[s + 1] - args.begin[s];
      const auto at = static_cast<std::size_t>(i);
      spans.from[at] = args.begin[s];
      spans.rows[at] = args.rows.empty() ? all : args.rows[s];
      if (spans.rows[at] > all)
        fail("instance_norm: {} rows are said to be in {} of sequence {}", spans.rows[at], all, s);
      most = std::max(most, spans.rows[at]);
    }
    parameters.parts = parts_of(ceil_div(args.x.columns, std::int64_t{kColumns}) * spans.count, most, device);
    with_type(args.x.dtype, "x", [&](auto from) {
      with_type(args.y.dtype, "y", [&](auto to) {
        with_width(takes_vectors(args.x) && takes_vectors(args.y), [&](auto width) {
          launch_norm<decltype(width)::value, decltype(from), decltype(to)>(args, parameters, spans, stream);
        });
      });
    });
  }
}

}  // namespace nibble::cuda
