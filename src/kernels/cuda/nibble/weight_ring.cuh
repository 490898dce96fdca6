// A ring of stages in shared memory through which one warp streams its blocks of weights: filled by bulk copies of the
// copy engine on compute capability 9.0, by cp.async of each lane before that. No other warp takes part, so there is no
// barrier of the block in the stream.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::gpu {

constexpr int kStages = 4;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/// Tells a barrier of one arrival to expect the bytes, and copies them; both multiples of 16, aligned to 16.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const std::byte* from, int bytes, std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

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
#endif

/// Sets up a barrier of one arrival (nothing before compute capability 9.0).
__device__ __forceinline__ void init_barrier(std::uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  static_cast<void>(barrier);
#endif
}

class WeightRing {
 public:
  /// `stages`: kStages * stage_bytes in shared memory; `barriers`: kStages words of 8 bytes there. All lanes call.
  __device__ WeightRing(std::byte* stages, std::uint64_t* barriers, int stage_bytes, int lane)
      : stages_(static_cast<std::uint32_t>(__cvta_generic_to_shared(stages))),
        barriers_(static_cast<std::uint32_t>(__cvta_generic_to_shared(barriers))),
        memory_(stages),
        stage_bytes_(stage_bytes),
        lane_(lane) {
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      for (int i = 0; i < kStages; ++i) init_barrier(barriers_ + 8 * i);
    }
    __syncwarp();
#endif
  }

  /// Starts filling the next stage with `first_bytes` from `first`, and behind them `second_bytes` from `second` (both
  /// multiples of 16, aligned to 16). Calls with 0 bytes keep the count of stages.
  __device__ void fill(const std::byte* first, int first_bytes, const std::byte* second, int second_bytes) {
    const std::uint32_t to = stages_ + static_cast<std::uint32_t>(fill_ * stage_bytes_);
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0 && first_bytes > 0) {
      const std::uint32_t barrier = barriers_ + 8 * fill_;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(first_bytes + second_bytes)
                   : "memory");
      copy(to, first, first_bytes, barrier);
      if (second_bytes > 0) copy(to + first_bytes, second, second_bytes, barrier);
    }
#else
    for (int i = lane_ * 16; i < first_bytes; i += 32 * 16) copy(to + i, first + i);
    for (int i = lane_ * 16; i < second_bytes; i += 32 * 16) copy(to + first_bytes + i, second + i);
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    fill_ = fill_ + 1 == kStages ? 0 : fill_ + 1;
  }

  /// Waits for the oldest stage that is not released, and returns it.
  __device__ const std::byte* wait() {
#if __CUDA_ARCH__ >= 900
    wait_barrier(barriers_ + 8 * read_, parity_);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    __syncwarp();
#endif
    return memory_ + read_ * stage_bytes_;
  }

  /// All lanes have read the stage that wait() gave: it may be filled again.
  __device__ void release() {
    __syncwarp();
    if (++read_ == kStages) {
      read_ = 0;
      parity_ ^= 1u;
    }
  }

 private:
#if __CUDA_ARCH__ >= 900
  static __device__ void copy(std::uint32_t to, const std::byte* from, int bytes, std::uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
  }
#else
  static __device__ void copy(std::uint32_t to, const std::byte* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }
#endif

  std::uint32_t stages_;
  std::uint32_t barriers_;
  const std::byte* memory_;
  int stage_bytes_;
  int lane_;
  int fill_ = 0;
  int read_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace nibble::gpu
