#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/elementwise_activation.h"

namespace nibble {
namespace {

template <typename T>
__global__ void activate_kernel(ActivationKind kind, T* y, std::int64_t stride, std::int64_t columns) {
  pdl_wait();
  pdl_launch();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  T* const at = y + blockIdx.x * stride + column;
  *at = from_float<T>(activate(kind, to_float(*at)));
}

}  // namespace

void activate_rows(ActivationKind kind, const MatrixRef& y, CudaStream& stream) {
  if (y.rows == 0 || y.columns == 0) return;
  constexpr std::int64_t kThreads = 256;
  const dim3 grid(static_cast<unsigned>(y.rows), static_cast<unsigned>(ceil_div(y.columns, kThreads)));
  with_type(y.dtype, "y", [&](auto type) {
    using T = decltype(type);
    launch(stream, grid, dim3(kThreads), 0, Overlap::yes, activate_kernel<T>, kind, static_cast<T*>(y.data), y.stride,
           y.columns);
  });
}

}  // namespace nibble
