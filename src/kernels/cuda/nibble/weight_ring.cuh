// A ring of stages in shared memory through which one warp streams its blocks of weights: filled by bulk copies of the
// copy engine on compute capability 9.0, by cp.async of each lane before that. No other warp takes part, so there is no
// barrier of the block in the stream.
#pragma once

#include "core/cuda/cluster.cuh"

#include <cstddef>
#include <cstdint>

namespace nibble::gpu {

class WeightRing {
 public:
  /// `memory`: count * bytes in shared memory; `barriers`: `count` words there, init_barrier() of each done and seen by
  /// all; `count`: 2 to 4 stages of `bytes` each, a multiple of 16. All lanes call.
  __device__ WeightRing(std::byte* memory, std::uint64_t* barriers, int count, int bytes, int lane)
      : stages_(static_cast<std::uint32_t>(__cvta_generic_to_shared(memory))),
        barriers_(static_cast<std::uint32_t>(__cvta_generic_to_shared(barriers))),
        memory_(memory),
        count_(count),
        bytes_(bytes),
        lane_(lane) {}

  /// Starts filling the next stage, from memory aligned to 16; or with nothing, which the count of copies in flight
  /// wants to know.
  __device__ __forceinline__ void fill(const std::byte* from, bool any) {
    const std::uint32_t to = stages_ + static_cast<std::uint32_t>(fill_ * bytes_);
#if __CUDA_ARCH__ >= 900
    if (any && lane_ == 0) bulk_copy(to, from, bytes_, barriers_ + 8 * fill_, passing_policy());
#else
    for (int i = lane_ * 16; any && i < bytes_; i += 32 * 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    fill_ = fill_ + 1 == count_ ? 0 : fill_ + 1;
  }

  /// Waits for the oldest stage that is not released, and returns it.
  __device__ const std::byte* wait() {
#if __CUDA_ARCH__ >= 900
    wait_barrier(barriers_ + 8 * read_, parity_);
#else
    if (count_ == 4) {
      asm volatile("cp.async.wait_group 3;" ::: "memory");
    } else if (count_ == 3) {
      asm volatile("cp.async.wait_group 2;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    }
    __syncwarp();
#endif
    return memory_ + read_ * bytes_;
  }

  /// All lanes have read the stage that wait() gave: it may be filled again.
  __device__ void release() {
    __syncwarp();
    if (++read_ == count_) {
      read_ = 0;
      parity_ ^= 1u;
    }
  }

 private:
  std::uint32_t stages_;
  std::uint32_t barriers_;
  const std::byte* memory_;
  int count_;
  int bytes_;
  int lane_;
  int fill_ = 0;
  int read_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace nibble::gpu
