// Copies of a thread's own from global to shared memory, in the background (cp.async).
#pragma once

#include <cstdint>

namespace nibble {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Starts copying 16 bytes; both ends aligned to 16.
__device__ __forceinline__ void copy_16(void* to_shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)), "l"(from) : "memory");
}

/// The same, zeros instead where `wanted` is false (nothing is read then).
__device__ __forceinline__ void copy_16(void* to_shared, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from),
               "r"(wanted ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until all but the last `Pending` groups of this thread's copies have landed.
template <int Pending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// Waits until all of this thread's copies have landed, in a group or not.
__device__ __forceinline__ void copies_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace nibble
