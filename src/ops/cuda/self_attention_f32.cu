// Attention of the rows of a sequence to one another in float arithmetic.
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

// Any heads: a block takes 16 rows of one sequence and one head, each warp four of them, and walks through the keys 32
// at a time. A lane has a key while scores are computed, and dimensions while values are added up.
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

// Heads of up to 64: a block takes some rows of one sequence and one head, and walks through the keys 64 at a time. A
// thread has 8 or 4 rows by 4 keys of the scores, then the same rows by some dimensions of the sums, as products of
// matrices have them; weights go from one to the other through shared memory.
template <int kDim, int kRowsOfBlock>
struct Blocked {
  static constexpr int kRows = kRowsOfBlock;
  static constexpr int kOwnRows = kRows == 128 ? 8 : 4;
  static constexpr int kThreads = 16 * (kRows / kOwnRows);
  // Accesses of a thread to keys that are under way at a time: more where the registers of few threads hold them.
  static constexpr int kAhead = kThreads == 128 ? 4 : 2;
  static constexpr int kBlocks = kThreads == 128 ? 3 : 2;  // of a multiprocessor
  static constexpr int kKeys = 64;
  static constexpr int kOwnKeys = kKeys / 16;
  static constexpr int kOwnDims = kDim / 16;
  // [dimension or key][row or key]: four more floats than an even number of banks.
  static constexpr int kRowStride = kRows + 4;
  static constexpr int kKeyStride = kKeys + 4;
  float q[kDim][kRowStride];
  float k[kDim][kKeyStride];
  float v[kKeys][kDim];
  float weights[kKeys][kRowStride];
};

template <int kDim, int kRowsOfBlock>
__global__ void __launch_bounds__(Blocked<kDim, kRowsOfBlock>::kThreads, Blocked<kDim, kRowsOfBlock>::kBlocks)
    self_f32_blocked_kernel(const __grid_constant__ Parameters p) {
  using B = Blocked<kDim, kRowsOfBlock>;
  extern __shared__ float4 memory[];
  B& m = *reinterpret_cast<B*>(memory);
  pdl_wait();
  pdl_launch();
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const SequenceTile tile =
      find_sequence_tile<B::kRows>(p.row_begin, p.sequences, static_cast<int>(blockIdx.x) / p.heads);
  if (tile.rows == 0) return;
  const int tid = static_cast<int>(threadIdx.x);
  const int across = tid % 16;
  const int row0 = tid / 16 * B::kOwnRows;
  const std::int64_t column = static_cast<std::int64_t>(head) * p.head_dim;
  const int keys = p.valid != nullptr ? min(tile.length, p.valid[tile.sequence]) : tile.length;
  const int first = tile.row - tile.begin + row0;  // of the thread, in the sequence
  const int seen = p.causal ? min(keys, tile.row - tile.begin + tile.rows) : keys;

  // Four elements of a row, zeros for what is not there.
  const auto fetch = [&](const Rows<const float>& x, int row, bool wanted, int d) {
    float4 four = make_float4(0, 0, 0, 0);
    if (wanted && d < p.head_dim) four = *reinterpret_cast<const float4*>(x.row(row) + column + d);
    return four;
  };
#pragma unroll 1
  for (int i = tid; i < B::kRows * (kDim / 4); i += B::kThreads) {
    const int row = i % B::kRows;
    const int d = i / B::kRows * 4;
    const float4 four = fetch(p.q, tile.row + row, row < tile.rows, d);
    m.q[d][row] = four.x, m.q[d + 1][row] = four.y, m.q[d + 2][row] = four.z, m.q[d + 3][row] = four.w;
  }
  float out[B::kOwnRows][B::kOwnDims] = {};
  float largest[B::kOwnRows];
  float total[B::kOwnRows] = {};
#pragma unroll
  for (float& value : largest) value = -INFINITY;
  for (int key0 = 0; key0 < seen; key0 += B::kKeys) {
    __syncthreads();
#pragma unroll B::kAhead
    for (int i = tid; i < B::kKeys * (kDim / 4); i += B::kThreads) {
      const int row = i % B::kKeys;
      const int d = i / B::kKeys * 4;
      const float4 four = fetch(p.k, tile.begin + key0 + row, key0 + row < keys, d);
      m.k[d][row] = four.x, m.k[d + 1][row] = four.y, m.k[d + 2][row] = four.z, m.k[d + 3][row] = four.w;
    }
#pragma unroll B::kAhead
    for (int i = tid; i < B::kKeys * (kDim / 4); i += B::kThreads) {
      const int row = i / (kDim / 4);
      const int d = i % (kDim / 4) * 4;
      *reinterpret_cast<float4*>(&m.v[row][d]) = fetch(p.v, tile.begin + key0 + row, key0 + row < keys, d);
    }
    __syncthreads();
    float scores[B::kOwnRows][B::kOwnKeys] = {};
#pragma unroll 2
    for (int d = 0; d < kDim; ++d) {
      float q[B::kOwnRows];
      float k[B::kOwnKeys];
      load(&m.q[d][row0], q);
      load(&m.k[d][across * B::kOwnKeys], k);
#pragma unroll
      for (int r = 0; r < B::kOwnRows; ++r) {
#pragma unroll
        for (int j = 0; j < B::kOwnKeys; ++j) scores[r][j] = fmaf(q[r], k[j], scores[r][j]);
      }
    }
    if (p.bias != nullptr) {
      const float* const bias = p.bias + static_cast<std::int64_t>(head) * (2 * p.bias_reach + 1) + p.bias_reach;
#pragma unroll
      for (int r = 0; r < B::kOwnRows; ++r) {
#pragma unroll
        for (int j = 0; j < B::kOwnKeys; ++j) {
          const int distance = key0 + across * B::kOwnKeys + j - first - r;
          scores[r][j] = fmaf(scores[r][j], p.scale, bias[max(-p.bias_reach, min(p.bias_reach, distance))]);
        }
      }
    } else {
#pragma unroll
      for (int r = 0; r < B::kOwnRows; ++r) {
#pragma unroll
        for (float& score : scores[r]) score *= p.scale;
      }
    }
    if (key0 + B::kKeys > keys || p.causal) {
#pragma unroll
      for (int r = 0; r < B::kOwnRows; ++r) {
#pragma unroll
        for (int j = 0; j < B::kOwnKeys; ++j) {
          const int key = key0 + across * B::kOwnKeys + j;
          if (key >= keys || (p.causal && key > first + r)) scores[r][j] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < B::kOwnRows; ++r) {
      float most = largest[r];
#pragma unroll
      for (const float score : scores[r]) most = fmaxf(most, score);
      // The threads of a row are half a warp.
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
      const float offset = most == -INFINITY ? 0.0f : most;
      const float shrink = expf(largest[r] - offset);
      largest[r] = most;
      total[r] *= shrink;
#pragma unroll
      for (float& value : out[r]) value *= shrink;
#pragma unroll
      for (float& score : scores[r]) total[r] += score = expf(score - offset);
    }
#pragma unroll
    for (int j = 0; j < B::kOwnKeys; ++j) {
      float weights[B::kOwnRows];
#pragma unroll
      for (int r = 0; r < B::kOwnRows; ++r) weights[r] = scores[r][j];
      store(&m.weights[16 * j + across][row0], weights);
    }
    // Weights are read by the half warp that wrote them.
    __syncwarp();
#pragma unroll 2
    for (int j = 0; j < B::kKeys; ++j) {
      float weights[B::kOwnRows];
      float values[4];
      load(&m.weights[j][row0], weights);
      const int key = j % 16 * B::kOwnKeys + j / 16;
      if constexpr (B::kOwnDims == 4) {
        load(&m.v[key][across * 4], values);
      } else {
        const float2 two = *reinterpret_cast<const float2*>(&m.v[key][across * 2]);
        values[0] = two.x, values[1] = two.y;
      }
#pragma unroll
      for (int d = 0; d < B::kOwnDims; ++d) {
#pragma unroll
        for (int r = 0; r < B::kOwnRows; ++r) out[r][d] = fmaf(weights[r], values[d], out[r][d]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < B::kOwnRows; ++r) {
    float sum = total[r];
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    if (row0 + r >= tile.rows) continue;
#pragma unroll
    for (int d = 0; d < B::kOwnDims; ++d) {
      const int at = across * B::kOwnDims + d;
      if (at < p.head_dim) p.y.row(tile.row + row0 + r)[column + at] = out[r][d] * inverse;
    }
  }
}

template <int kDim, int kRowsOfBlock>
void launch_blocked(const Parameters& p, std::int64_t rows, CudaStream& stream) {
  using B = Blocked<kDim, kRowsOfBlock>;
  constexpr auto kKernel = self_f32_blocked_kernel<kDim, kRowsOfBlock>;
  constexpr std::size_t kBytes = sizeof(B);
  allow_shared_memory<kKernel>(kBytes);
  const std::int64_t tiles = rows / B::kRows + p.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * p.heads)), dim3(B::kThreads), kBytes, Overlap::yes, kKernel, p);
}

// Large blocks read keys and values from memory less often; small ones are enough for all multiprocessors where there
// are few rows.
template <int kDim>
void launch_blocked(const Parameters& p, std::int64_t rows, int multiprocessors, CudaStream& stream) {
  const auto fills = [&](std::int64_t rows_of_block) {
    return rows * p.heads >= 2 * rows_of_block * multiprocessors;  // two of a multiprocessor
  };
  if (fills(128)) return launch_blocked<kDim, 128>(p, rows, stream);
  if (fills(64)) return launch_blocked<kDim, 64>(p, rows, stream);
  launch_blocked<kDim, 32>(p, rows, stream);
}

bool takes_fours(const MatrixRef& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0; }

}  // namespace

void self_attend_f32(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
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
  if (dim <= 64 && dim % 4 == 0 && takes_fours(args.q) && takes_fours(args.k) && takes_fours(args.v)) {
    if (dim <= 32) return launch_blocked<32>(p, args.map.rows, device.multiprocessors(), stream);
    return launch_blocked<64>(p, args.map.rows, device.multiprocessors(), stream);
  }
  const int bytes = (kRows + 2 * kKeys) * (dim | 1) * static_cast<int>(sizeof(float));
  check_cuda(cudaFuncSetAttribute(self_f32_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "asking for shared memory for attention");
  const std::int64_t tiles = args.map.rows / kRows + args.map.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * args.heads)), dim3(kThreads), static_cast<std::size_t>(bytes),
         Overlap::yes, self_f32_kernel, p);
}

}  // namespace nibble::cuda
