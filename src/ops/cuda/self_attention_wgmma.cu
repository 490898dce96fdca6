// Attention of the rows of a sequence to one another on Hopper's tensor cores, heads of 64: a warpgroup takes 64 rows
// of one sequence and one head, a block one or two of them, and walks through the keys 64 at a time. Tiles of q, k and
// v come by the tensor memory accelerator, as many ahead as there are stages. Scores stay in registers, relative to the
// largest so far, and are the left operand of the product with v.
#include "core/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "ops/cuda/kv_cache.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/row_tiles.cuh"
#include "ops/cuda/self_attention_parts.h"

#include <numbers>

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWidth = 64;
constexpr int kKeys = 64;  // of a tile
constexpr int kTileBytes = 64 * kWidth * 2;
constexpr int kAlign = 1024;  // of tiles: a block of the swizzle

struct Parameters {
  void* y = nullptr;
  std::int64_t y_stride = 0;
  const std::int32_t* row_begin = nullptr;
  const std::int32_t* valid = nullptr;
  int sequences = 0;
  int heads = 1;
  float scale = 1;  // of scores in base 2
  bool causal = false;
};

template <int kGroups>
struct Shape {
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * kGroups;
  static constexpr int kStages = 4;
  static constexpr int kStageAt = kGroups * kTileBytes;  // k, then v
  static constexpr int kBarrierAt = kStageAt + kStages * 2 * kTileBytes;
  static constexpr int kBytes = kBarrierAt + 8 * (2 * kStages + 1) + kAlign;
  static constexpr int kBlocks = kGroups == 1 ? 4 : 2;  // of a multiprocessor
};

template <typename T, int kGroups>
class Attention {
  using S = Shape<kGroups>;

 public:
  __device__ Attention(const Parameters& p, std::uint32_t shared) : p_(p), shared_(shared), head_(block() % p.heads) {}

  __device__ void init() const {
    if (threadIdx.x != 0) return;
    barrier_init(q_full(), 1);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), 4 * kGroups);
    }
    barriers_ready_in_block();
  }

  __device__ void run(const CUtensorMap* q, const CUtensorMap* k, const CUtensorMap* v) {
    tile_ = find_sequence_tile<S::kRows>(p_.row_begin, p_.sequences, block() / p_.heads);
    if (tile_.rows == 0) return;
    const int first = tile_.row - tile_.begin;  // in the sequence
    int keys = tile_.length;
    if (p_.valid != nullptr) keys = min(keys, p_.valid[tile_.sequence]);
    if (p_.causal) keys = min(keys, first + tile_.rows);
    const int tiles = (keys + kKeys - 1) / kKeys;
    if (threadIdx.x == 0 && tiles > 0) {
      barrier_expect(q_full(), kGroups * kTileBytes);
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        copy_tile(shared_ + i * kTileBytes, q, q_full(), head_ * kWidth, tile_.row + 64 * i);
      for (int i = 0; i < min(tiles, S::kStages); ++i) copy_keys(k, v, i, i);
    }
    float out[kWidth / 2];
#pragma unroll
    for (float& value : out) value = 0;
    float largest[2] = {-INFINITY, -INFINITY};
    float total[2] = {0, 0};
    const int own = first + warp() * 16 + lane() / 4;  // this thread's row in the sequence, and another 8 behind
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % S::kStages;
      const std::uint32_t at = shared_ + S::kStageAt + stage * 2 * kTileBytes;
      barrier_wait(full(stage), tile / S::kStages & 1);
      if (tile == 0) barrier_wait(q_full(), 0);
      if (tile + 1 == tiles && keys % kKeys != 0) clear_values(at + kTileBytes, keys % kKeys);
      float scores[kKeys / 2];
      const std::uint64_t q_rows = wgmma_operand(shared_ + warp() / 4 * kTileBytes);
      const std::uint64_t k_rows = wgmma_operand(at);
      wgmma_begin();
#pragma unroll
      for (int i = 0; i < kWidth / 16; ++i) wgmma<T, kKeys>(scores, q_rows + 2 * i, k_rows + 2 * i, i > 0);
      wgmma_commit();
      wgmma_wait<0>();
      if (tile > 0) refill(k, v, tile - 1, tiles);
      const int key0 = tile * kKeys;
      if (key0 + kKeys > keys || (p_.causal && key0 + kKeys - 1 > first + warp() * 16)) mask(scores, key0, keys, own);
      soften(scores, out, largest, total);
      const std::uint64_t v_rows = wgmma_operand(at + kTileBytes);
      unsigned weights[kKeys / 16][4];
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) weights[i][j] = pack(scores[8 * i + 2 * j], scores[8 * i + 2 * j + 1], T{});
      }
      wgmma_begin();
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) wgmma_values<T>(out, weights[i], v_rows + i * (16 * kWidth * 2 / 16));
      wgmma_commit();
    }
    wgmma_wait<0>();
    write(out, total, tiles > 0);
  }

 private:
  // From the last rows to the first: the product ahead wrote the last ones last, and of many rows only those are still
  // in the second cache.
  static __device__ __forceinline__ int block() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ std::uint32_t q_full() const { return shared_ + S::kBarrierAt; }
  __device__ std::uint32_t full(int stage) const { return shared_ + S::kBarrierAt + 8 + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }

  __device__ void copy_keys(const CUtensorMap* k, const CUtensorMap* v, int stage, int tile) const {
    const std::uint32_t to = shared_ + S::kStageAt + stage * 2 * kTileBytes;
    barrier_expect(full(stage), 2 * kTileBytes);
    copy_tile(to, k, full(stage), head_ * kWidth, tile_.begin + tile * kKeys);
    copy_tile(to + kTileBytes, v, full(stage), head_ * kWidth, tile_.begin + tile * kKeys);
  }

  // Gives the stage of `tile`, which all warps have multiplied by then, to a later one.
  __device__ void refill(const CUtensorMap* k, const CUtensorMap* v, int tile, int tiles) const {
    const int next = tile + S::kStages;
    if (next >= tiles) return;
    const int stage = tile % S::kStages;
    if (lane() == 0) barrier_arrive(empty(stage));
    if (threadIdx.x != 0) return;
    barrier_wait(empty(stage), tile / S::kStages & 1);
    copy_keys(k, v, stage, next);
  }

  // Rows behind the last key belong to others: their weights are 0, but they may hold what is no number.
  __device__ void clear_values(std::uint32_t values, int from) const {
    for (int i = from * 8 + static_cast<int>(threadIdx.x); i < kKeys * 8; i += S::kThreads)
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(values + i * 16), "r"(0) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  }

  // scores[4 j + 2 h + e] is row own + 8 h, key key0 + 8 j + lane % 4 * 2 + e.
  __device__ __forceinline__ void mask(float (&scores)[kKeys / 2], int key0, int keys, int own) const {
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int key = key0 + i / 4 * 8 + lane() % 4 * 2 + i % 2;
      if (key >= keys || (p_.causal && key > own + i / 2 % 2 * 8)) scores[i] = -INFINITY;
    }
  }

  // Scores to weights relative to the largest score so far; what was summed before is brought to it, too.
  __device__ __forceinline__ void soften(float (&scores)[kKeys / 2], float (&out)[kWidth / 2], float (&largest)[2],
                                         float (&total)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        most = fmaxf(most, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
      // The four lanes of a row lie side by side.
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 2));
      const float offset = as_offset(most) * p_.scale;
      const float shrink = exp2_fast(fmaf(largest[half], p_.scale, -offset));
      largest[half] = most;
      float sum = total[half] * shrink;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[4 * j + 2 * half + e];
          score = exp2_fast(fmaf(score, p_.scale, -offset));
          sum += score;
        }
      }
      total[half] = sum;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        out[4 * j + 2 * half] *= shrink;
        out[4 * j + 2 * half + 1] *= shrink;
      }
    }
  }

  // A warp's results go through its own rows of q, pieces of 16 bytes in an order that spreads them over the banks.
  __device__ void write(const float (&out)[kWidth / 2], const float (&total)[2], bool any) const {
    const std::uint32_t rows = shared_ + warp() * 16 * kWidth * 2;
    // All warps of the group have read their q.
    if (any) asm volatile("bar.sync %0, 128;" ::"r"(warp() / 4 + 1) : "memory");
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[half];
      sum += __shfl_xor_sync(kAll, sum, 1);
      sum += __shfl_xor_sync(kAll, sum, 2);
      const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
      const int row = lane() / 4 + 8 * half;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        const unsigned pair = pack(out[4 * j + 2 * half] * inverse, out[4 * j + 2 * half + 1] * inverse, T{});
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(rows + row * 128 + (j ^ row % 8) * 16 + lane() % 4 * 4), "r"(pair)
                     : "memory");
      }
    }
    __syncwarp();
    T* const y = static_cast<T*>(p_.y) + static_cast<std::int64_t>(head_) * kWidth;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i * 4 + lane() / 8;
      const int piece = lane() % 8;
      uint4 eight;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                   : "r"(rows + row * 128 + (piece ^ row % 8) * 16)
                   : "memory");
      if (warp() * 16 + row < tile_.rows)
        *reinterpret_cast<uint4*>(y + (tile_.row + warp() * 16 + row) * p_.y_stride + piece * 8) = eight;
    }
  }

  const Parameters& p_;
  const std::uint32_t shared_;
  const int head_;
  SequenceTile tile_;
};

template <typename T, int kGroups>
__global__ void __launch_bounds__(Shape<kGroups>::kThreads, Shape<kGroups>::kBlocks)
    self_wgmma_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                      const __grid_constant__ CUtensorMap v, const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::uint8_t memory[];
  Attention<T, kGroups> attention(p, (shared_address(memory) + kAlign - 1) / kAlign * kAlign);
  if (threadIdx.x == 0) {
    prefetch_map(&q);
    prefetch_map(&k);
    prefetch_map(&v);
  }
  attention.init();
  __syncthreads();
  pdl_wait();
  pdl_launch();
  attention.run(&q, &k, &v);
#endif
}

template <typename T, int kGroups>
void launch_groups(const SelfAttentionArgs& args, const Parameters& p, CudaStream& stream) {
  using S = Shape<kGroups>;
  const auto kernel = self_wgmma_kernel<T, kGroups>;
  static const bool configured = [&] {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes),
               "asking for shared memory for attention");
    return true;
  }();
  static_cast<void>(configured);
  const auto map = [&](const MatrixRef& m) { return matrix_map(m.data, m.dtype, m.rows, m.columns, m.stride, 64); };
  // Each sequence can leave one tile unfilled. Heads go fastest, so that rows of activations are read together.
  const std::int64_t tiles = args.map.rows / S::kRows + p.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * p.heads)), dim3(S::kThreads), S::kBytes, Overlap::yes, kernel,
         map(args.q), map(args.k), map(args.v), p);
}

template <typename T>
void launch_type(const SelfAttentionArgs& args, const Parameters& p, int multiprocessors, CudaStream& stream) {
  // Blocks of 128 rows read keys half as often; blocks of 64 keep more multiprocessors busy where there are few rows.
  const std::int64_t large = args.map.rows / Shape<2>::kRows * p.heads;
  if (large < multiprocessors || args.map.rows <= Shape<1>::kRows * static_cast<std::int64_t>(p.sequences)) {
    launch_groups<T, 1>(args, p, stream);
  } else {
    launch_groups<T, 2>(args, p, stream);
  }
}

bool aligned(const MatrixRef& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0; }

}  // namespace

bool takes_wgmma(const SelfAttentionArgs& args, const CudaDevice& device) {
  constexpr int kHopper = 90;
  return device.capability() == kHopper && args.q.dtype != DType::f32 && args.q.columns == args.heads * kWidth &&
         args.bias == nullptr && aligned(args.q) && aligned(args.k) && aligned(args.v) && aligned(args.y);
}

void self_attend_wgmma(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
  Parameters p;
  p.y = args.y.data;
  p.y_stride = args.y.stride;
  p.row_begin = args.map.row_begin;
  p.valid = args.valid;
  p.sequences = static_cast<int>(args.map.sequences);
  p.heads = static_cast<int>(args.heads);
  p.scale = args.scale * std::numbers::log2e_v<float>;
  p.causal = args.causal;
  if (args.q.dtype == DType::f16) {
    launch_type<__half>(args, p, device.multiprocessors(), stream);
  } else {
    launch_type<__nv_bfloat16>(args, p, device.multiprocessors(), stream);
  }
}

}  // namespace nibble::cuda
