// Attention of the rows of a sequence to one another in float arithmetic: a block takes 16 rows of one sequence and one
// head, each warp four of them, and walks through the keys 32 at a time. A lane has a key while scores are computed,
// and dimensions while values are added up.
#include "ops/cuda/elements.cuh"
#include "ops/cuda/row_tiles.cuh"
#include "ops/cuda/self_attention_parts.h"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRowsOfWarp = 4;
constexpr int kRows = kWarps * kRowsOfWarp;
constexpr int kKeys = 32;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostParts = 8;  // of 32 dimensions, a lane

struct Parameters {
  Rows<const float> q, k, v;
  Rows<float> y;
  const std::int32_t* row_begin;
  const std::int32_t* valid;
  const float* bias;
  int bias_reach;
  int sequences;
  int heads;
  int head_dim;
  float scale;
  bool causal;
};

__global__ void __launch_bounds__(kThreads) self_f32_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ float shared[];
  pdl_wait();
  pdl_launch();
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const SequenceTile tile = find_sequence_tile<kRows>(p.row_begin, p.sequences, static_cast<int>(blockIdx.x) / p.heads);
  if (tile.rows == 0) return;
  const int dim = p.head_dim;
  // Rows of an odd number of floats: lanes read the same dimension of 32 keys from different banks.
  const int stride = dim | 1;
  float* const q = shared;
  float* const k = q + kRows * stride;
  float* const v = k + kKeys * stride;
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid % 32;
  const std::int64_t column = static_cast<std::int64_t>(head) * dim;
  const int keys = p.valid != nullptr ? min(tile.length, p.valid[tile.sequence]) : tile.length;
  const int first = tile.row - tile.begin + tid / 32 * kRowsOfWarp;  // of the warp, in the sequence
  const int seen = p.causal ? min(keys, tile.row - tile.begin + tile.rows) : keys;

  for (int i = tid; i < kRows * dim; i += kThreads) {
    const int row = i / dim;
    q[row * stride + i % dim] = row < tile.rows ? p.q.row(tile.row + row)[column + i % dim] : 0.0f;
  }
  float sums[kRowsOfWarp][kMostParts] = {};
  float largest[kRowsOfWarp];
  float total[kRowsOfWarp] = {};
  for (float& value : largest) value = -INFINITY;
  for (int key0 = 0; key0 < seen; key0 += kKeys) {
    __syncthreads();
    for (int i = tid; i < kKeys * dim; i += kThreads) {
      const int row = i / dim;
      const bool wanted = key0 + row < keys;
      k[row * stride + i % dim] = wanted ? p.k.row(tile.begin + key0 + row)[column + i % dim] : 0.0f;
      v[row * stride + i % dim] = wanted ? p.v.row(tile.begin + key0 + row)[column + i % dim] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const float* const own = q + (tid / 32 * kRowsOfWarp + r) * stride;
      float score = 0;
      for (int d = 0; d < dim; ++d) score = fmaf(own[d], k[lane * stride + d], score);
      score *= p.scale;
      const int key = key0 + lane;
      if (p.bias != nullptr) {
        const int distance = max(-p.bias_reach, min(p.bias_reach, key - first - r));
        score += p.bias[static_cast<std::int64_t>(head) * (2 * p.bias_reach + 1) + distance + p.bias_reach];
      }
      if (key >= keys || (p.causal && key > first + r)) score = -INFINITY;
      const float most = fmaxf(largest[r], warp_max(score));
      const float offset = most == -INFINITY ? 0.0f : most;
      const float shrink = expf(largest[r] - offset);
      const float weight = expf(score - offset);
      largest[r] = most;
      total[r] = total[r] * shrink + warp_sum(weight);
#pragma unroll
      for (int part = 0; part < kMostParts; ++part) sums[r][part] *= shrink;
      for (int j = 0; j < kKeys; ++j) {
        const float w = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
        for (int part = 0; part < kMostParts; ++part) {
          const int d = part * 32 + lane;
          if (d < dim) sums[r][part] = fmaf(w, v[j * stride + d], sums[r][part]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int row = tid / 32 * kRowsOfWarp + r;
    if (row >= tile.rows) continue;
    const float inverse = total[r] > 0 ? 1.0f / total[r] : 0.0f;
#pragma unroll
    for (int part = 0; part < kMostParts; ++part) {
      const int d = part * 32 + lane;
      if (d < dim) p.y.row(tile.row + row)[column + d] = sums[r][part] * inverse;
    }
  }
}

}  // namespace

void self_attend_f32(const SelfAttentionArgs& args, CudaStream& stream) {
  const int dim = static_cast<int>(args.q.columns / args.heads);
  const Parameters p{Rows<const float>(args.q),
                     Rows<const float>(args.k),
                     Rows<const float>(args.v),
                     Rows<float>(args.y),
                     args.map.row_begin,
                     args.valid,
                     args.bias,
                     static_cast<int>(args.bias_reach),
                     static_cast<int>(args.map.sequences),
                     static_cast<int>(args.heads),
                     dim,
                     args.scale,
                     args.causal};
  const int bytes = (kRows + 2 * kKeys) * (dim | 1) * static_cast<int>(sizeof(float));
  check_cuda(cudaFuncSetAttribute(self_f32_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "asking for shared memory for attention");
  const std::int64_t tiles = args.map.rows / kRows + args.map.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * args.heads)), dim3(kThreads), static_cast<std::size_t>(bytes),
         Overlap::yes, self_f32_kernel, p);
}

}  // namespace nibble::cuda
