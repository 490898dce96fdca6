// Thread blocks of a cluster, and barriers in shared memory (compute capability 9.0; before that nothing here does
// anything, and kernels use blocks by themselves). Blocks exchange by st.async: a store into another block's memory
// whose bytes that block's barrier counts. It costs a fifth of a cluster barrier with release and acquire, which waits
// for writes to global memory too.
//
// The order of things: init_barrier() and expect_bytes() by a thread, cluster_arrive() by all, ..., cluster_wait() by
// all before the first send(), wait_barrier() by all that read what came. cluster_wait() takes a microsecond even where
// all have arrived: it empties the level-1 cache. So it belongs where the block waits for something else anyway. A
// block leaves only after it has waited for its own barrier: what is on its way must not find the memory another's.
#pragma once

#include "core/cuda/async_copy.cuh"

#include <cstddef>
#include <cstdint>

namespace nibble {

/// Sets up a barrier of one arrival.
__device__ __forceinline__ void init_barrier(std::uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  static_cast<void>(barrier);
#endif
}

/// The blocks of the cluster have started and set up their barriers once all have come here.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Tells a barrier of one arrival to expect bytes, from a copy or from others.
__device__ __forceinline__ void expect_bytes(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Waits until the barrier's phase of this parity has completed. What it counted lies in this block's shared memory,
/// which no cache stands before: so the scope is the block even where others have sent it (that of the cluster would
/// empty the level-1 cache each time).
__device__ __forceinline__ void wait_barrier(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

/// Tells a barrier of one arrival to expect the bytes, and copies them; both multiples of 16, aligned to 16.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const std::byte* from, int bytes, std::uint32_t barrier) {
  expect_bytes(barrier, bytes);
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

/// A policy of the level-2 cache for data that nobody reads again soon: it is thrown out before all else is, such as
/// the next kernels' code.
__device__ __forceinline__ std::uint64_t passing_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// As bulk_copy(), with a policy.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const std::byte* from, int bytes, std::uint32_t barrier,
                                          std::uint64_t policy) {
  expect_bytes(barrier, bytes);
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

/// The address of `here` in the shared memory of another block of the cluster.
__device__ __forceinline__ std::uint32_t remote_address(const void* here, int rank) {
  std::uint32_t address = shared_address(here);
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
  return address;
}

#endif

/// Sends to a block of the cluster, to the place that `here` is in this one; its barrier counts the bytes.
__device__ __forceinline__ void send(const void* here, int rank, const std::uint64_t* barrier, float4 v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   remote_address(here, rank)),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(remote_address(barrier, rank))
               : "memory");
#endif
}

__device__ __forceinline__ void send(const void* here, int rank, const std::uint64_t* barrier, float2 v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                   remote_address(here, rank)),
               "f"(v.x), "f"(v.y), "r"(remote_address(barrier, rank))
               : "memory");
#endif
}

__device__ __forceinline__ void send(const void* here, int rank, const std::uint64_t* barrier, float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   remote_address(here, rank)),
               "f"(v), "r"(remote_address(barrier, rank))
               : "memory");
#endif
}

}  // namespace nibble
