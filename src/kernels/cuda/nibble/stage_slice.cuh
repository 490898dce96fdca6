// How a thread block of the product of few rows gets the inputs of its slice: it stages them itself, as they lie or
// picked by a table of order out of whole rows, or takes what stage_small_rows() has left.
//
// While weights come at the speed of memory, any other read takes some two microseconds. So there is one such wait:
// what no kernel writes (norms, orders) is asked for before the weights, and weights beyond the first stages only after
// the inputs.
#pragma once

#include "core/cuda/async_copy.cuh"
#include "core/cuda/cluster.cuh"
#include "kernels/cuda/nibble/small_rows.h"
#include "kernels/cuda/nibble/stage_chunk.cuh"

namespace nibble::gpu {

// Chunks of inputs that a lane has under way while it stages. With two tiles of tokens it has many, and each round
// takes a latency; with one, more would only be more code.
template <int TILES>
constexpr int kChunksAtOnce = TILES == 1 ? 2 : 5;

// The fixed part of a thread block's memory.
struct Shared {
  std::uint64_t rings[kSmallWarps][kMostStages];
  std::uint64_t inputs;                          // what a kernel before this one has staged
  std::uint64_t pieces;                          // of the cluster's thread blocks
  float squares[kSmallWarps];                    // of what each warp has staged
  float all_squares[kMostCluster][kMostTokens];  // of each thread block's slice
  int first_pair[kSmallWarps];                   // of which a warp has a piece
  int last_pair[kSmallWarps];
  std::uint8_t first_warp[kMostPairs];  // that has a piece of a pair
  std::uint8_t last_warp[kMostPairs];
};
static_assert(sizeof(Shared) <= kSmallFixedBytes);

// What a thread block keeps beside its inputs while it stages them: the norm's weights of its slice; or where inputs
// are picked, all the norm's weights and whole rows of inputs, and what to pick for its slice's places.
struct Tables {
  float* norm;
  std::int32_t* order;
  std::byte* rows;

  __device__ __forceinline__ Tables(const SmallRowsArgs& a, std::byte* memory)
      : norm(reinterpret_cast<float*>(memory)),
        order(reinterpret_cast<std::int32_t*>(norm + a.norm_inputs)),
        rows(reinterpret_cast<std::byte*>(order + a.slice_inputs)) {}

  // Starts copying what no kernel writes.
  __device__ __forceinline__ void ask(const SmallRowsArgs& a, int first_block, int blocks) const {
    const int first = first_block * kBlockInputs;
    const int places = blocks * kBlockInputs;
    const int thread = static_cast<int>(threadIdx.x) * 4;
    if (a.order != nullptr)
      for (int i = thread; i < places; i += kSmallThreads * 4) copy_16(order + i, a.order + first + i);
    if (a.norm_weight != nullptr) {
      const float* from = a.norm_weight + (a.order != nullptr ? 0 : first);
      const int count = a.order != nullptr ? a.inputs : places;
      for (int i = thread; i < count; i += kSmallThreads * 4) copy_16(norm + i, from + i);
    }
  }

  // Starts copying the rows.
  __device__ __forceinline__ void ask_for_rows(const SmallRowsArgs& a) const {
    const int pieces = a.row_bytes / 16;
    for (int token = 0; token < a.rows; ++token) {
      const auto* from = static_cast<const std::byte*>(a.x) + token * a.x_stride * (a.x_dtype == DType::f32 ? 4 : 2);
      for (int i = static_cast<int>(threadIdx.x); i < pieces; i += kSmallThreads)
        copy_16(rows + token * a.row_bytes + i * 16, from + i * 16);
    }
  }

  // Waits for all that was asked for.
  __device__ static __forceinline__ void copies_done() {
    copies_wait_all();
    __syncthreads();
  }
};

// 8 inputs as they lie in memory: f32, or two 16-bit values a word.
struct RawChunk {
  uint4 word[2];
};

__device__ __forceinline__ RawChunk load_raw(const SmallRowsArgs& a, int token, int chunk) {
  RawChunk out;
  const std::int64_t at = token * a.x_stride + chunk * kChunkInputs;
  if (a.x_dtype == DType::f32) {
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const float*>(a.x) + at);
    out.word[0] = __ldcg(from);
    out.word[1] = __ldcg(from + 1);
  } else {
    out.word[0] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(a.x) + at));
    out.word[1] = make_uint4(0, 0, 0, 0);
  }
  return out;
}

// The same of a chunk of the slice by the table of order.
__device__ __forceinline__ RawChunk pick_raw(const SmallRowsArgs& a, const Tables& tables, int token, int chunk) {
  const std::byte* row = tables.rows + token * a.row_bytes;
  const auto* order = reinterpret_cast<const int4*>(tables.order + chunk * kChunkInputs);
  const int4 p = order[0];
  const int4 q = order[1];
  const int from[kChunkInputs] = {p.x, p.y, p.z, p.w, q.x, q.y, q.z, q.w};
  std::uint32_t words[kChunkInputs] = {};
  if (a.x_dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < kChunkInputs; ++i)
      words[i] = from[i] < 0 ? 0u : reinterpret_cast<const std::uint32_t*>(row)[from[i]];
  } else {
    const auto half = [&](int i) -> std::uint32_t {
      return from[i] < 0 ? 0u : reinterpret_cast<const std::uint16_t*>(row)[from[i]];
    };
#pragma unroll
    for (int i = 0; i < kChunkInputs / 2; ++i) words[i] = half(2 * i) | half(2 * i + 1) << 16;
  }
  return {{make_uint4(words[0], words[1], words[2], words[3]), make_uint4(words[4], words[5], words[6], words[7])}};
}

__device__ __forceinline__ void widen(const SmallRowsArgs& a, const RawChunk& raw, float (&v)[kChunkInputs]) {
  const uint4 p = raw.word[0];
  const uint4 q = raw.word[1];
  const std::uint32_t words[kChunkInputs] = {p.x, p.y, p.z, p.w, q.x, q.y, q.z, q.w};
  if (a.x_dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < kChunkInputs; ++i) v[i] = __uint_as_float(words[i]);
  } else {
    const bool half = a.x_dtype == DType::f16;
#pragma unroll
    for (int i = 0; i < kChunkInputs; ++i) v[i] = widen_half(words[i / 2] >> (i % 2 * 16) & 0xffffu, half);
  }
}

// The norm's weights of a chunk of the slice.
__device__ __forceinline__ void multiply_norm(const SmallRowsArgs& a, const Tables& tables, int chunk,
                                              float (&v)[kChunkInputs]) {
  if (a.order != nullptr) {
#pragma unroll
    for (int i = 0; i < kChunkInputs; ++i) v[i] *= tables.norm[max(tables.order[chunk * kChunkInputs + i], 0)];
    return;
  }
  const auto* weights = reinterpret_cast<const float4*>(tables.norm + chunk * kChunkInputs);
  const float4 p = weights[0];
  const float4 q = weights[1];
  v[0] *= p.x, v[1] *= p.y, v[2] *= p.z, v[3] *= p.w, v[4] *= q.x, v[5] *= q.y, v[6] *= q.z, v[7] *= q.w;
}

// What this thread block stages itself: the warps are divided among the tokens. `meanwhile` runs after the first inputs
// were asked for, which take long to come while weights do.
template <int BITS, int TILES, int SETS, typename Meanwhile>
__device__ __forceinline__ void stage_slice(const SmallRowsArgs& a, Shared& shared, const Tables& tables,
                                            int first_block, int blocks, std::byte* inputs, float* sums, float* factors,
                                            const Meanwhile& meanwhile) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int log_tokens = 32 - __clz(a.rows - 1);  // of a power of two
  const int ways = kSmallWarps >> log_tokens;
  const int token = warp >> (4 - log_tokens);
  constexpr int kAtOnce = kChunksAtOnce<TILES>;
  if (a.order != nullptr) tables.ask_for_rows(a);
  float squares = 0;
  bool asked = false;
  // A warp takes two blocks at a time. All go round once, for the barrier.
  int pair = warp & (ways - 1);
#pragma unroll 1
  do {
    RawChunk raw[kAtOnce];
    const auto load = [&](const auto& load_one) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int chunk = (pair + u * ways) * 32 + lane;
        if (token < a.rows && chunk < blocks * kBlockChunks) raw[u] = load_one(chunk);
      }
    };
    if (a.order == nullptr) load([&](int chunk) { return load_raw(a, token, first_block * kBlockChunks + chunk); });
    if (!asked) {
      asked = true;
      meanwhile();
      Tables::copies_done();
    }
    if (a.order != nullptr) load([&](int chunk) { return pick_raw(a, tables, token, chunk); });
    // One copy of the code for all chunks: a kernel of ten microseconds waits for its instructions.
#pragma unroll 1
    for (int u = 0; u < kAtOnce && token < a.rows && 2 * pair < blocks; ++u, pair += ways) {
      const int block = 2 * pair + lane / kBlockChunks;
      const bool active = block < blocks;
      const int chunk = lane % kBlockChunks;
      float v[kChunkInputs];
      widen(a, raw[0], v);
      if (!active) {
#pragma unroll
        for (int i = 0; i < kChunkInputs; ++i) v[i] = 0;
      }
#pragma unroll
      for (int i = 0; i < kChunkInputs; ++i) squares += v[i] * v[i];
      if (a.norm_weight != nullptr && active) multiply_norm(a, tables, block * kBlockChunks + chunk, v);
      stage_chunk(v, chunk, BITS, SETS, a.rows, token, active, inputs + block * 4 * staged_pair_bytes(a.rows),
                  sums + block * SETS * staged_tokens(a.rows), factors + block * staged_tokens(a.rows));
#pragma unroll
      for (int next = 1; next < kAtOnce; ++next) raw[next - 1] = raw[next];
    }
  } while (token < a.rows && 2 * pair < blocks);
  squares = warp_sum(squares);
  if (lane == 0) shared.squares[warp] = squares;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < a.rows) {
    float sum = 0;
    for (int w = 0; w < ways; ++w) sum += shared.squares[static_cast<int>(threadIdx.x) * ways + w];
    shared.all_squares[blockIdx.x & ((1u << a.shares.log_cluster) - 1u)][threadIdx.x] = sum;
  }
}

// What a kernel before this one has staged.
template <int SETS>
__device__ __forceinline__ void load_slice(const SmallRowsArgs& a, Shared& shared, int first_block, int blocks,
                                           std::byte* inputs, float* sums, float* factors) {
  const int block_bytes = 4 * staged_pair_bytes(a.rows);
  const std::byte* from = a.staged.inputs + static_cast<std::int64_t>(first_block) * block_bytes;
  const int bytes = blocks * block_bytes;
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) bulk_copy(shared_address(inputs), from, bytes, shared_address(&shared.inputs));
#else
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kSmallThreads * 16)
    *reinterpret_cast<uint4*>(inputs + i) = __ldcg(reinterpret_cast<const uint4*>(from + i));
#endif
  const int tokens = staged_tokens(a.rows);
  const int first = first_block * tokens;
  for (int i = static_cast<int>(threadIdx.x); i < blocks * SETS * tokens; i += kSmallThreads)
    sums[i] = __ldcg(a.staged.sums + first * SETS + i);
  for (int i = static_cast<int>(threadIdx.x); i < blocks * tokens; i += kSmallThreads)
    factors[i] = __ldcg(a.staged.factors + first + i);
  if (a.norm_weight != nullptr && static_cast<int>(threadIdx.x) < a.rows) {
    float sum = 0;
    for (int part = 0; part < a.staged_parts; ++part) sum += __ldcg(a.staged.squares + part * a.rows + threadIdx.x);
    shared.all_squares[0][threadIdx.x] = sum;
  }
#if __CUDA_ARCH__ >= 900
  wait_barrier(shared_address(&shared.inputs), 0);
#endif
}

}  // namespace nibble::gpu
