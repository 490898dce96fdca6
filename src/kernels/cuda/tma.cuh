// Barriers in shared memory and copies of tiles by the tensor memory accelerator (compute capability 9.0).
#pragma once

#include "core/cuda/cluster.cuh"

#include <cuda.h>

#include <cstdint>

namespace nibble {

/// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ std::uint32_t in_cluster(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t out;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(address), "r"(rank));
  return out;
}

__device__ __forceinline__ std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// As cluster_arrive(), when everything before has happened.
__device__ __forceinline__ void cluster_arrive_last() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers known to the copy engine and to the cluster.
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}
/// Orders what this thread wrote to shared memory before what the copy engine and the tensor cores read or write there,
/// once a barrier has passed it on.
__device__ __forceinline__ void fence_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// As barriers_ready() for a block that is no cluster's.
__device__ __forceinline__ void barriers_ready_in_block() { fence_writes(); }
/// Arrives, and lets the phase wait for so many bytes of copies, too.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// `barrier` is an address from in_cluster(). Orders what the copy engine and the tensor cores read and write, not a
/// thread's own accesses: cluster scope would make each arrival wait for all memory.
__device__ __forceinline__ void barrier_arrive_in_cluster(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Waits until the phase of that parity has ended.
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\n"
      "bra again;\n"
      "ready:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Brings the tile of a matrix that begins at (column, row) to the second-level cache.
__device__ __forceinline__ void prefetch_tile(const CUtensorMap* map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row)
               : "memory");
}
/// Copies the tile of a matrix that begins at (column, row); zeros for what lies outside of it.
__device__ __forceinline__ void copy_tile(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier, int column,
                                          int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}
/// The same to the same place in every block of the cluster that has its bit in `blocks`.
__device__ __forceinline__ void copy_tile_to_all(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier,
                                                 int column, int row, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
      : "memory");
}

/// Copies a tile from shared memory to (column, row) of a matrix, less what lies outside of it. What threads wrote
/// there they fence first, fence_writes().
__device__ __forceinline__ void store_tile(const CUtensorMap* map, std::uint32_t from, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\ncp.async.bulk.commit_group;" ::"l"(
          map),
      "r"(from), "r"(column), "r"(row)
      : "memory");
}
/// Waits until what this thread stored so has been read from shared memory.
__device__ __forceinline__ void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

}  // namespace nibble
