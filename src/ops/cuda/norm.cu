// RMS and layer norm. A part (a row, or one of its groups) is normed by a warp where it is short, as heads are, else by
// a block; statistics are sums of f32 in a fixed order.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/op_checks.h"

namespace nibble::cuda {
namespace {

constexpr int kWarp = 32;
// Up to so many accesses of a thread, a warp norms a part alone: to meet at barriers costs more than a second access.
constexpr std::int64_t kAccessesOfWarp = 2;
// Parts a block where a warp norms one.
constexpr int kWarpsPerBlock = 4;
constexpr std::int64_t kMaxThreads = 1024;

struct NormShape {
  std::int64_t width;  // of a part
  std::uint32_t groups;
  std::uint32_t parts;  // of all rows
  float eps;
};

// The sum over the threads that norm one part, in all of them: a warp, or the whole block.
__device__ __forceinline__ float sum_over_part(float value) {
  value = warp_sum(value);
  if (blockDim.x == kWarp) return value;
  __shared__ float sums[kMaxThreads / kWarp];
  const unsigned lane = threadIdx.x % kWarp;
  __syncthreads();  // all have read the sums of the call before
  if (lane == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_sum(lane < blockDim.x / kWarp ? sums[lane] : 0.0f);
}

template <NormKind kKind, int kWidth, typename X, typename Y>
__global__ void __launch_bounds__(kMaxThreads)
    norm_kernel(Rows<const X> x, const float* weight, const float* bias, NormShape shape, Rows<Y> y) {
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  // The weight is constant, and a pass over the model's other weights has driven it out of the cache: its way from
  // memory can be made while the kernel before this one still runs.
  if (weight != nullptr && first < shape.width) asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + first));
  pdl_wait();
  pdl_launch();
  const std::uint32_t part = blockIdx.x * blockDim.y + threadIdx.y;
  if (part >= shape.parts) return;  // whole warps, in blocks that do not meet at barriers
  const std::uint32_t row = part / shape.groups;
  const std::int64_t begin = static_cast<std::int64_t>(part % shape.groups) * shape.width;
  const X* from = x.row(row) + begin;
  Y* to = y.row(row) + begin;

  // The first access of each thread is kept, mostly it is the only one; what comes after is read again from the cache.
  // It is this thread that writes the same elements, so that y may be x.
  float held[kWidth] = {};
  float scale[kWidth];
#pragma unroll
  for (float& s : scale) s = 1;
  if (first < shape.width) {
    load(from + first, held);
    if (weight != nullptr) load(weight + first, scale);
  }

  float sum = 0;
  const auto count = [&sum](const float(&values)[kWidth]) {
#pragma unroll
    for (const float v : values) sum += kKind == NormKind::rms ? v * v : v;
  };
  count(held);
  for (std::int64_t c = first + step; c < shape.width; c += step) {
    float values[kWidth];
    load(from + c, values);
    count(values);
  }
  const float width = static_cast<float>(shape.width);
  float mean = 0;
  float square = sum_over_part(sum) / width;
  if constexpr (kKind == NormKind::layer) {
    // A second look instead of E[x^2] - mean^2: that would be the difference of two large numbers where the mean is
    // large.
    mean = square;
    sum = 0;
    const auto deviate = [&sum, mean](const float(&values)[kWidth]) {
#pragma unroll
      for (const float v : values) sum += (v - mean) * (v - mean);
    };
    if (first < shape.width) deviate(held);
    for (std::int64_t c = first + step; c < shape.width; c += step) {
      float values[kWidth];
      load(from + c, values);
      deviate(values);
    }
    square = sum_over_part(sum) / width;
  }
  const float factor = 1 / sqrtf(square + shape.eps);

  const auto write = [&](std::int64_t c, float(&values)[kWidth]) {
    float shift[kWidth] = {};
    if (kKind == NormKind::layer && bias != nullptr) load(bias + c, shift);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = (values[i] - mean) * factor * scale[i] + shift[i];
    store(to + c, values);
  };
  if (first < shape.width) write(first, held);
  for (std::int64_t c = first + step; c < shape.width; c += step) {
    float values[kWidth];
    load(from + c, values);
    if (weight != nullptr) load(weight + c, scale);
    write(c, values);
  }
}

}  // namespace

void norm(const NormArgs& args, CudaStream& stream) {
  const MatrixRef& x = args.x;
  const MatrixRef& y = args.y;
  check_activation(x, "norm", "x");
  check_shape(y, x.rows, x.columns, "norm", "y");
  if (args.groups <= 0 || x.columns % args.groups != 0) {
    fail("norm: rows of {} elements do not divide into {} groups", x.columns, args.groups);
  }
  if (x.rows == 0 || x.columns == 0) return;
  constexpr std::int64_t kMaxParts = 0x7fffffff;
  if (args.groups > kMaxParts / x.rows)
    fail("norm: {} rows of {} groups are more than a grid holds", x.rows, args.groups);
  const NormShape shape{x.columns / args.groups, static_cast<std::uint32_t>(args.groups),
                        static_cast<std::uint32_t>(x.rows * args.groups), args.eps};
  const bool vectors = takes_vectors(x) && takes_vectors(y) && shape.width % kVector == 0 &&
                       takes_vectors(args.weight) && takes_vectors(args.bias);
  // A block a row waits at barriers for sums that a warp has in its registers.
  constexpr std::int64_t kMostOfWarp = 1024;
  if (args.kind == NormKind::layer && args.groups == 1 && vectors && x.dtype == y.dtype &&
      shape.width > kWarp * kAccessesOfWarp * kVector && shape.width <= kMostOfWarp) {
    return add_norm(args, stream);
  }
  with_width(vectors, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const std::int64_t accesses = shape.width / kWidth;
    dim3 block(kWarp, kWarpsPerBlock);
    if (accesses > kWarp * kAccessesOfWarp) {
      block = dim3(static_cast<unsigned>(std::min(kMaxThreads, (accesses + kWarp - 1) / kWarp * kWarp)));
    }
    const dim3 grid((shape.parts + block.y - 1) / block.y);
    with_type(x.dtype, "x", [&](auto of_x) {
      with_type(y.dtype, "y", [&](auto of_y) {
        using X = decltype(of_x);
        using Y = decltype(of_y);
        const auto kernel = args.kind == NormKind::rms ? norm_kernel<NormKind::rms, kWidth, X, Y>
                                                       : norm_kernel<NormKind::layer, kWidth, X, Y>;
        launch(stream, grid, block, 0, Overlap::yes, kernel, Rows<const X>(x), args.weight, args.bias, shape,
               Rows<Y>(y));
      });
    });
  });
}

}  // namespace nibble::cuda
