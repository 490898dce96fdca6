// A product for shapes that the library refuses, and small helpers around products.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/gemm_lt.h"

namespace nibble {
namespace {

constexpr int kTile = 16;

// One thread an output, tiles of 16 x 16 through shared memory.
template <typename X, typename Y>
__global__ void plain_kernel(const X* x, std::int64_t x_stride, const X* w, std::int64_t w_stride, bool w_is_kn, Y* y,
                             std::int64_t y_stride, const float* bias, const Y* same_bias, bool accumulate,
                             std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t x_step, std::int64_t w_step,
                             std::int64_t y_step) {
  pdl_wait();
  pdl_launch();
  x += blockIdx.z * x_step;
  w += blockIdx.z * w_step;
  y += blockIdx.z * y_step;
  __shared__ float xs[kTile][kTile + 1];
  __shared__ float ws[kTile][kTile + 1];
  const int tx = threadIdx.x;
  const int ty = threadIdx.y;
  const std::int64_t column0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  // Rows go over a grid-stride loop: the grid's second dimension ends at 65535.
  for (std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * kTile; row0 < m;
       row0 += static_cast<std::int64_t>(gridDim.y) * kTile) {
    float sum = 0;
    for (std::int64_t k0 = 0; k0 < k; k0 += kTile) {
      const std::int64_t row = row0 + ty;
      const std::int64_t column = column0 + ty;
      const std::int64_t kk = k0 + tx;
      xs[ty][tx] = row < m && kk < k ? to_float(x[row * x_stride + kk]) : 0.0f;
      ws[ty][tx] =
          column < n && kk < k ? to_float(w_is_kn ? w[kk * w_stride + column] : w[column * w_stride + kk]) : 0.0f;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kTile; ++i) sum += xs[ty][i] * ws[tx][i];
      __syncthreads();
    }
    const std::int64_t row = row0 + ty;
    const std::int64_t column = column0 + tx;
    if (row < m && column < n) {
      Y* to = y + row * y_stride + column;
      if (accumulate) sum += to_float(*to);
      if (bias != nullptr) sum += bias[column];
      if (same_bias != nullptr) sum += to_float(same_bias[column]);
      *to = from_float<Y>(sum);
    }
  }
}

template <typename Y>
__global__ void bias_kernel(Y* y, std::int64_t stride, std::int64_t m, std::int64_t n, const float* bias) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= n) return;
  const float b = bias[column];
  for (std::int64_t row = blockIdx.y; row < m; row += gridDim.y) {
    Y* to = y + row * stride + column;
    *to = from_float<Y>(to_float(*to) + b);
  }
}

unsigned grid_rows(std::int64_t count) { return static_cast<unsigned>(std::min<std::int64_t>(count, 4096)); }

}  // namespace

void gemm_plain(const GemmArgs& a, CudaStream& stream) {
  constexpr std::int64_t kMostAtOnce = 65535;
  if (a.batch > kMostAtOnce) {
    const auto moved = [](const void* p, std::int64_t elements, DType type) {
      return static_cast<const std::byte*>(p) + static_cast<std::size_t>(elements) * bytes_of(type);
    };
    for (std::int64_t first = 0; first < a.batch; first += kMostAtOnce) {
      GemmArgs some = a;
      some.batch = std::min(kMostAtOnce, a.batch - first);
      some.x = moved(a.x, first * a.x_step, a.operands);
      some.w = moved(a.w, first * a.w_step, a.operands);
      some.y = const_cast<std::byte*>(moved(a.y, first * a.y_step, a.y_dtype));
      gemm_plain(some, stream);
    }
    return;
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(a.n, std::int64_t{kTile})),
                  grid_rows(ceil_div(a.m, std::int64_t{kTile})), static_cast<unsigned>(a.batch));
  with_type(a.operands, "a product", [&](auto operand) {
    using X = decltype(operand);
    with_type(a.y_dtype, "a product", [&](auto result) {
      using Y = decltype(result);
      launch(stream, grid, dim3(kTile, kTile), 0, Overlap::yes, plain_kernel<X, Y>, static_cast<const X*>(a.x),
             a.x_stride, static_cast<const X*>(a.w), a.w_stride, a.w_is_kn, static_cast<Y*>(a.y), a.y_stride, a.bias,
             static_cast<const Y*>(a.same_bias), a.accumulate, a.m, a.n, a.k, a.x_step, a.w_step, a.y_step);
    });
  });
}

void add_bias(void* y, DType dtype, std::int64_t stride, std::int64_t m, std::int64_t n, const float* bias,
              CudaStream& stream) {
  constexpr int kThreads = 256;
  const dim3 grid(static_cast<unsigned>(ceil_div(n, std::int64_t{kThreads})), grid_rows(m));
  with_type(dtype, "a bias's target", [&](auto type) {
    using Y = decltype(type);
    launch(stream, grid, dim3(kThreads), 0, Overlap::yes, bias_kernel<Y>, static_cast<Y*>(y), stride, m, n, bias);
  });
}

}  // namespace nibble
