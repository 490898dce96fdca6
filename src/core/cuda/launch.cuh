// Launching kernels, and what device code of all kernels shares: programmatic dependent launch, typed loads and stores.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/dtype.h"
#include "core/error.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>

namespace nibble {

/// Whether a kernel may start while the one before it in the stream still runs (programmatic dependent launch,
/// compute capability 9.0). A kernel launched so must call pdl_wait() in every thread before it writes anything,
/// scratch included, and before it reads what the kernel before it writes; and it must not call pdl_launch() before
/// pdl_wait(). That way all kernels but the one right before it have completed when a kernel starts, and it may read
/// what those wrote.
enum class Overlap { no, yes };

/// How a multiprocessor's memory should be divided between cache and shared memory while the kernel runs: as its blocks
/// need, or mostly shared memory. It changes only while a multiprocessor is idle, so that a kernel without shared
/// memory may have to wait there behind one with much, and the next one behind it.
enum class Share { as_needed, most };

/// Lets blocks of a kernel have up to `bytes` of shared memory on the device in use; to be called before each launch
/// that may need more than 48 KiB, always with the same number.
template <auto kKernel>
void allow_shared_memory(std::size_t bytes) {
  static std::atomic<std::uint64_t> allowed{0};  // a bit a device; those beyond its bits are set each time
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device in use");
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return;
  check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "asking for shared memory");
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

/// `cluster` blocks, a divisor of the grid's width, form a cluster (compute capability 9.0); 1: none.
template <typename... Parameters, typename... Args>
void launch(CudaStream& stream, dim3 grid, dim3 block, std::size_t shared_bytes, Overlap overlap, Share share,
            unsigned cluster, void (*kernel)(Parameters...), Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle();
  std::array<cudaLaunchAttribute, 3> attributes{};
  if (overlap == Overlap::yes && stream.overlaps()) {
    cudaLaunchAttribute& one = attributes[config.numAttrs++];
    one.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    one.val.programmaticStreamSerializationAllowed = 1;
  }
  if (share == Share::most) {
    cudaLaunchAttribute& one = attributes[config.numAttrs++];
    one.id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    one.val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
  // A GPU without clusters is not to be asked for one of 1.
  if (cluster > 1) {
    cudaLaunchAttribute& one = attributes[config.numAttrs++];
    one.id = cudaLaunchAttributeClusterDimension;
    one.val.clusterDim = {cluster, 1, 1};
  }
  config.attrs = attributes.data();
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Args>(args))...),
             "launching a kernel");
}

template <typename... Parameters, typename... Args>
void launch(CudaStream& stream, dim3 grid, dim3 block, std::size_t shared_bytes, Overlap overlap,
            void (*kernel)(Parameters...), Args&&... args) {
  launch(stream, grid, block, shared_bytes, overlap, Share::as_needed, 1, kernel, std::forward<Args>(args)...);
}

/// Waits until the kernels before this one have completed and their writes are visible.
__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel start its part before pdl_wait(); a hint only. After pdl_wait(), see Overlap.
__device__ __forceinline__ void pdl_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

/// A value of the C++ type of an activation: f32, f16 or bf16. with_type(dtype, [&](auto type) { using T =
/// decltype(type); ... }) picks it; Error for others.
template <typename Body>
void with_type(DType dtype, const char* what, const Body& body) {
  switch (dtype) {
    case DType::f32:
      body(float{});
      break;
    case DType::f16:
      body(__half{});
      break;
    case DType::bf16:
      body(__nv_bfloat16{});
      break;
    default:
      fail("{} of type {} is not supported on the GPU; use f32, f16 or bf16", what, name_of(dtype));
  }
}

/// 2^x within 2 units in the last place; numbers below the least normal one are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The sum of `value` over the 32 lanes of a warp, in every lane; the same order each time.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

}  // namespace nibble
