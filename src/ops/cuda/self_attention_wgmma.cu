// Attention of the rows of a sequence to one another on Hopper's tensor cores, heads of 64, few rows: a block, one
// warpgroup, takes 64 rows of one sequence and one head and walks through the keys 64 at a time. Tiles of q, k and v
// come by the tensor memory accelerator, as many ahead as there are stages. Scores stay in registers, relative to the
// largest so far, and are the left operand of the product with v.
#include "core/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tma.cuh"
#include "ops/cuda/attention_rows.cuh"
#include "ops/cuda/row_tiles.cuh"
#include "ops/cuda/self_attention_parts.h"

#include <numbers>

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble::cuda {
namespace {

constexpr int kRows = 64;
constexpr int kThreads = 128;
constexpr int kBlocks = 3;  // of a multiprocessor, by their memory
constexpr int kStages = 4;
constexpr int kStageAt = kRowTileBytes;  // k, then v
constexpr int kBarrierAt = kStageAt + kStages * 2 * kRowTileBytes;
constexpr int kBytes = kBarrierAt + 8 * (2 * kStages + 1) + kTileAlign;

template <typename T>
class Attention {
 public:
  __device__ Attention(const AttentionOfRows& p, std::uint32_t shared)
      : p_(p), shared_(shared), head_(block() % p.heads) {}

  __device__ void init() const {
    if (threadIdx.x != 0) return;
    barrier_init(q_full(), 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kThreads / 32);
    }
    barriers_ready_in_block();
  }

  __device__ void run(const CUtensorMap* q, const CUtensorMap* k, const CUtensorMap* v) {
    tile_ = find_sequence_tile<kRows>(p_.row_begin, p_.sequences, block() / p_.heads);
    if (tile_.rows == 0) return;
    const int first = tile_.row - tile_.begin;  // in the sequence
    int keys = tile_.length;
    if (p_.valid != nullptr) keys = min(keys, p_.valid[tile_.sequence]);
    if (p_.causal) keys = min(keys, first + tile_.rows);
    const int tiles = (keys + kKeyTile - 1) / kKeyTile;
    if (threadIdx.x == 0 && tiles > 0) {
      barrier_expect(q_full(), kRowTileBytes);
      copy_tile(shared_, q, q_full(), head_ * kHeadWidth, tile_.row);
      for (int i = 0; i < min(tiles, kStages); ++i) copy_keys(k, v, i, i);
    }
    if (tiles > 0) barrier_wait(q_full(), 0);
    AttendedRows<T> rows;
    const int own = first + warp() * 16;  // the warp's first row in the sequence
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % kStages;
      const std::uint32_t at = shared_ + kStageAt + stage * 2 * kRowTileBytes;
      const int key0 = tile * kKeyTile;
      barrier_wait(full(stage), tile / kStages & 1);
      if (key0 + kKeyTile > keys) {
        clear_values(at + kRowTileBytes, keys - key0, static_cast<int>(threadIdx.x), kThreads);
        __syncthreads();
      }
      Scores scores;
      rows.enqueue_scores(scores, shared_, at);
      wgmma_wait<0>();
      if (tile > 0) refill(k, v, tile - 1, tiles);
      if (key0 + kKeyTile > keys || (p_.causal && key0 + kKeyTile - 1 > own))
        mask(scores, key0, keys, p_.causal, own + lane() / 4);
      rows.soften(scores, p_.scale);
      rows.enqueue_values(scores, at + kRowTileBytes);
    }
    wgmma_wait<0>();
    if (tiles > 0) __syncthreads();  // all warps have read q, where the rows go through
    T* const y = static_cast<T*>(p_.y) + (tile_.row + warp() * 16) * p_.y_stride + head_ * kHeadWidth;
    rows.write(shared_ + warp() * 16 * kHeadWidth * 2, y, p_.y_stride, tile_.rows - warp() * 16);
  }

 private:
  // From the last rows to the first: the product ahead wrote the last ones last, and of many rows only those are still
  // in the second cache.
  static __device__ __forceinline__ int block() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ std::uint32_t q_full() const { return shared_ + kBarrierAt; }
  __device__ std::uint32_t full(int stage) const { return shared_ + kBarrierAt + 8 + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }

  __device__ void copy_keys(const CUtensorMap* k, const CUtensorMap* v, int stage, int tile) const {
    const std::uint32_t to = shared_ + kStageAt + stage * 2 * kRowTileBytes;
    barrier_expect(full(stage), 2 * kRowTileBytes);
    copy_tile(to, k, full(stage), head_ * kHeadWidth, tile_.begin + tile * kKeyTile);
    copy_tile(to + kRowTileBytes, v, full(stage), head_ * kHeadWidth, tile_.begin + tile * kKeyTile);
  }

  // Gives the stage of `tile`, which all warps have multiplied by then, to a later one.
  __device__ void refill(const CUtensorMap* k, const CUtensorMap* v, int tile, int tiles) const {
    const int next = tile + kStages;
    if (next >= tiles) return;
    const int stage = tile % kStages;
    if (lane() == 0) barrier_arrive(empty(stage));
    if (threadIdx.x != 0) return;
    barrier_wait(empty(stage), tile / kStages & 1);
    copy_keys(k, v, stage, next);
  }

  const AttentionOfRows& p_;
  const std::uint32_t shared_;
  const int head_;
  SequenceTile tile_;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    self_wgmma_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                      const __grid_constant__ CUtensorMap v, const __grid_constant__ AttentionOfRows p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::uint8_t memory[];
  Attention<T> attention(p, (shared_address(memory) + kTileAlign - 1) / kTileAlign * kTileAlign);
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

template <typename T>
void launch_few(const SelfAttentionArgs& args, const AttentionOfRows& p, CudaStream& stream) {
  constexpr auto kKernel = self_wgmma_kernel<T>;
  allow_shared_memory<kKernel>(kBytes);
  const auto map = [&](const MatrixRef& m) { return matrix_map(m.data, m.dtype, m.rows, m.columns, m.stride, kRows); };
  // Each sequence can leave one tile unfilled. Heads go fastest, so that rows of activations are read together.
  const std::int64_t tiles = args.map.rows / kRows + p.sequences;
  launch(stream, dim3(static_cast<unsigned>(tiles * p.heads)), dim3(kThreads), kBytes, Overlap::yes, kKernel,
         map(args.q), map(args.k), map(args.v), p);
}

bool aligned(const MatrixRef& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0; }

}  // namespace

bool takes_wgmma(const SelfAttentionArgs& args, const CudaDevice& device) {
  constexpr int kHopper = 90;
  return device.capability() == kHopper && args.q.dtype != DType::f32 && args.q.columns == args.heads * kHeadWidth &&
         args.bias == nullptr && aligned(args.q) && aligned(args.k) && aligned(args.v) && aligned(args.y);
}

void self_attend_wgmma(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream) {
  AttentionOfRows p;
  p.y = args.y.data;
  p.y_stride = args.y.stride;
  p.row_begin = args.map.row_begin;
  p.valid = args.valid;
  p.sequences = static_cast<int>(args.map.sequences);
  p.heads = static_cast<int>(args.heads);
  p.scale = args.scale * std::numbers::log2e_v<float>;
  p.causal = args.causal;
  // Teams take 128 rows, which reads keys half as often; blocks of 64 keep more multiprocessors busy where there are
  // few rows, and leave less empty of sequences of 64 rows or fewer on average.
  const std::int64_t large = args.map.rows / kTeamRows * p.heads;
  if (large >= device.multiprocessors() && args.map.rows > kRows * args.map.sequences) {
    self_attend_teams(args, p, device.multiprocessors(), stream);
  } else if (args.q.dtype == DType::f16) {
    launch_few<__half>(args, p, stream);
  } else {
    launch_few<__nv_bfloat16>(args, p, stream);
  }
}

}  // namespace nibble::cuda
