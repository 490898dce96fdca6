// What the attention kernels on Hopper's tensor cores share: what they are told, and what a warp does with its 16 rows
// and a tile of keys. A warpgroup has 64 rows of one sequence and one head; heads have 64 elements.
#pragma once

#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "ops/cuda/kv_cache.cuh"
#include "ops/cuda/mma.cuh"

#include <cstdint>

namespace nibble::cuda {

constexpr int kHeadWidth = 64;
constexpr int kKeyTile = 64;
/// Of 64 rows of q, k or v: rows of 128 bytes in the order that the copy engine and the tensor cores agree on.
constexpr int kRowTileBytes = 64 * kHeadWidth * 2;
constexpr int kTileAlign = 1024;  // of tiles: a block of the swizzle

struct AttentionOfRows {
  void* y = nullptr;
  std::int64_t y_stride = 0;
  const std::int32_t* row_begin = nullptr;
  const std::int32_t* valid = nullptr;
  int sequences = 0;
  int heads = 1;
  float scale = 1;  // of scores in base 2
  bool causal = false;
};

/// Rows behind the last key belong to others: their weights are 0, but they may hold what is no number. By `threads`
/// threads, which have to meet before the tile of values is multiplied.
__device__ __forceinline__ void clear_values(std::uint32_t values, int from, int thread, int threads) {
  for (int i = from * 8 + thread; i < kKeyTile * 8; i += threads)
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(values + i * 16), "r"(0) : "memory");
  fence_writes();
}

/// Scores of a warp's rows: scores[4 j + 2 h + e] is row lane / 4 + 8 h, key 8 j + lane % 4 * 2 + e of the tile.
using Scores = float[kKeyTile / 2];

/// Takes out keys from `keys` on, and where `causal` those behind each row; `row` is this thread's first in the
/// sequence, `key0` the tile's first key.
__device__ __forceinline__ void mask(Scores& scores, int key0, int keys, bool causal, int row) {
#pragma unroll
  for (int i = 0; i < kKeyTile / 2; ++i) {
    const int key = key0 + i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
    if (key >= keys || (causal && key > row + i / 2 % 2 * 8)) scores[i] = -INFINITY;
  }
}

/// What a thread has of its warp's rows: sums of values, and of weights, relative to the largest score so far.
template <typename T>
class AttendedRows {
 public:
  /// Scores to come, of the group's rows of q and a tile of keys.
  static __device__ __forceinline__ void enqueue_scores(Scores& scores, std::uint32_t q, std::uint32_t keys) {
    const std::uint64_t q_rows = wgmma_operand(q);
    const std::uint64_t k_rows = wgmma_operand(keys);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kHeadWidth / 16; ++i) wgmma<T, kKeyTile>(scores, q_rows + 2 * i, k_rows + 2 * i, i > 0);
    wgmma_commit();
  }

  /// Turns scores to weights; what was summed before is brought to the largest score, too.
  __device__ __forceinline__ void soften(Scores& scores, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest_[half];
#pragma unroll
      for (int j = 0; j < kKeyTile / 8; ++j)
        most = fmaxf(most, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
      // The four lanes of a row lie side by side.
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 2));
      const float offset = as_offset(most) * scale;
      const float shrink = exp2_fast(fmaf(largest_[half], scale, -offset));
      largest_[half] = most;
      float sum = total_[half] * shrink;
#pragma unroll
      for (int j = 0; j < kKeyTile / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[4 * j + 2 * half + e];
          score = exp2_fast(fmaf(score, scale, -offset));
          sum += score;
        }
      }
      total_[half] = sum;
#pragma unroll
      for (int j = 0; j < kHeadWidth / 8; ++j) {
        out_[4 * j + 2 * half] *= shrink;
        out_[4 * j + 2 * half + 1] *= shrink;
      }
    }
  }

  /// Adds the tile's values to come, by weight.
  __device__ __forceinline__ void enqueue_values(const Scores& scores, std::uint32_t values) {
    const std::uint64_t v_rows = wgmma_operand(values);
    unsigned weights[kKeyTile / 16][4];
#pragma unroll
    for (int i = 0; i < kKeyTile / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i][j] = pack(scores[8 * i + 2 * j], scores[8 * i + 2 * j + 1], T{});
    }
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kKeyTile / 16; ++i) wgmma_values<T>(out_, weights[i], v_rows + i * (16 * kHeadWidth * 2 / 16));
    wgmma_commit();
  }

  /// Writes `count` rows, 16 or less, to y; they go through `room`, 16 rows of shared memory of the warp's own, in
  /// pieces of 16 bytes whose order spreads them over the banks.
  __device__ __forceinline__ void write(std::uint32_t room, T* y, std::int64_t stride, int count) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total_[half];
      sum += __shfl_xor_sync(kAll, sum, 1);
      sum += __shfl_xor_sync(kAll, sum, 2);
      const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
      const int row = lane / 4 + 8 * half;
#pragma unroll
      for (int j = 0; j < kHeadWidth / 8; ++j) {
        const unsigned pair = pack(out_[4 * j + 2 * half] * inverse, out_[4 * j + 2 * half + 1] * inverse, T{});
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(room + row * 128 + (j ^ row % 8) * 16 + lane % 4 * 4), "r"(pair)
                     : "memory");
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i * 4 + lane / 8;
      const int piece = lane % 8;
      uint4 eight;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                   : "r"(room + row * 128 + (piece ^ row % 8) * 16)
                   : "memory");
      if (row < count) *reinterpret_cast<uint4*>(y + row * stride + piece * 8) = eight;
    }
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  float out_[kHeadWidth / 2] = {};
  float largest_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0, 0};
};

}  // namespace nibble::cuda
