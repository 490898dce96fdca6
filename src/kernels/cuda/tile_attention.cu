// q, k and v of short sequences, and their attention, in one kernel for Hopper: a thread block takes a tile of whole
// sequences, up to 64 rows, and 64 columns of each of q, k and v: a head of 64, or two of 32. It multiplies as
// tile_few.cu does, three slices of w beside each other; then q, k and v go to shared memory where stages were, scores
// stay in registers and are the left operand of the product with v. Every key of a row is in its tile, so that softmax
// needs one look at the scores.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "core/error.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_attention.h"
#include "kernels/cuda/tile_parts.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <numbers>

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble::tile {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kRows = static_cast<int>(SequenceTiles::kRows);
constexpr int kWidth = 64;  // columns of a block, of each of q, k and v
constexpr int kParts = 3;
constexpr int kMultiplyWarps = 4;
constexpr int kThreads = 32 * (kMultiplyWarps + 1);
constexpr int kSums = kParts * kWidth / 2;  // of a thread
constexpr int kTileBytes = 64 * kDepth * 2;
constexpr int kStageBytes = (1 + kParts) * kTileBytes;
constexpr int kRangeBytes = kRows * 4;

// As many as fit: a block has a multiprocessor to itself, and each k step brings 32 KB.
constexpr int kStages = 6;
constexpr int kBarriers = kStages * kStageBytes;
constexpr int kRanges = kBarriers + 16 * kStages;
constexpr int kSharedBytes = kRanges + kRangeBytes;

struct Parameters {
  void* y = nullptr;
  std::int64_t y_stride = 0;
  const void* bias = nullptr;  // [3 * width] or null
  const TileBegin* begin = nullptr;
  const std::int32_t* row_begin = nullptr;
  int least = 1;    // tiles that are not empty, at least
  int width = 0;    // of q, k and v
  int steps = 0;    // of k
  float scale = 1;  // of scores in base 2
  bool causal = false;
};

// Rows [begin, end) of a tile.
struct Range {
  int begin = 0;
  int end = 0;
};

template <typename T, int kHeadDim>
class Attention {
 public:
  __device__ Attention(const Parameters& p, std::uint32_t shared)
      : p_(p), shared_(shared), column0_(static_cast<int>(blockIdx.x) * kWidth) {}

  __device__ bool copies() const { return warp() == kMultiplyWarps; }
  __device__ bool copying_thread() const { return threadIdx.x == 32 * kMultiplyWarps; }

  // The copying thread, first of all: weights are constant, so that those of the first stages come before the kernels
  // ahead have ended. A tile that may be empty waits for what tables say.
  __device__ void start(const CUtensorMap* x, const CUtensorMap* w) const {
    prefetch_map(x);
    prefetch_map(w);
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kMultiplyWarps);
    }
    barriers_ready_in_block();
    if (surely_there()) copy_first_weights(w);
  }

  // Which rows and sequences the tile has; false: none. No kernel writes tables.
  __device__ __forceinline__ bool find() {
    const TileBegin begin = p_.begin[blockIdx.y];
    const TileBegin end = p_.begin[blockIdx.y + 1];
    first_ = begin.sequence;
    sequences_ = end.sequence - begin.sequence;
    row0_ = begin.row;
    rows_ = min(end.row - begin.row, kRows);
    return rows_ > 0;
  }

  // The copying thread.
  __device__ void copy(const CUtensorMap* x, const CUtensorMap* w) const {
    const int ahead = min(kStages, p_.steps);
    if (!surely_there()) copy_first_weights(w);
    // The other weights are on their way to the second cache: a share of them for each of the tiles.
#pragma unroll 1
    for (int i = ahead + static_cast<int>(blockIdx.y); i < p_.steps; i += p_.least) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) prefetch_tile(w, i * kDepth, part * p_.width + column0_);
    }
    pdl_wait();
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) copy_tile(x_at(i), x, full(i), i * kDepth, row0_);
    int stage = 0;
    std::uint32_t parity = 0;
#pragma unroll 1
    for (int i = ahead; i < p_.steps; ++i) {
      barrier_wait(empty(stage), parity);
      barrier_expect(full(stage), kStageBytes);
      copy_weights(w, stage, i);
      copy_tile(x_at(stage), x, full(stage), i * kDepth, row0_);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }

  // What a thread needs of tables and biases, which no kernel writes: it comes before the kernels ahead have ended.
  __device__ __forceinline__ void prepare(unsigned (&bias)[kSums / 4]) const {
    Output out;
    out.bias = p_.bias;
    out.n = kParts * p_.width;
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j)
      bias[j] = bias_at<T>(out, j / 8 * p_.width + column0_ + j % 8 * 8 + lane() % 4 * 2);
    for (int s = static_cast<int>(threadIdx.x); s < sequences_; s += 32 * kMultiplyWarps) {
      const int begin = p_.row_begin[first_ + s] - row0_;
      const int end = min(p_.row_begin[first_ + s + 1] - row0_, kRows);
      for (int row = begin; row < end; ++row) store_word(range_at(row), static_cast<unsigned>(begin | end << 16));
    }
    const int behind = rows_ + static_cast<int>(threadIdx.x);
    if (behind < kRows) store_word(range_at(behind), 0);
  }

  __device__ __forceinline__ void multiply(float (&sums)[kSums]) const {
    int stage = 0;
    std::uint32_t parity = 0;
#pragma unroll 1
    for (int step = 0; step < p_.steps; ++step) {
      barrier_wait(full(stage), parity);
      const std::uint64_t x = wgmma_operand(x_at(stage));
      const std::uint64_t w = wgmma_operand(w_at(stage));
      wgmma_begin();
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i) wgmma<T, kParts * kWidth>(sums, x + 2 * i, w + 2 * i, step > 0 || i > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (step > 0 && lane() == 0) barrier_arrive(empty(stage == 0 ? kStages - 1 : stage - 1));
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wgmma_wait<0>();
    // q, k and v go where stages were, which all warps have read.
    wait_for_warps();
  }

  __device__ __forceinline__ void attend(const float (&sums)[kSums], const unsigned (&bias)[kSums / 4]) const {
    put(sums, bias);
    const Range ranges[2] = {range_of(lane() / 4), range_of(lane() / 4 + 8)};
    fence_writes();
    wait_for_warps();
    constexpr int kHeads = kWidth / kHeadDim;
#pragma unroll
    for (int head = 0; head < kHeads; ++head) attend_head(head, ranges);
    store_rows();
  }

 private:
  static constexpr int kOutStride = kWidth * 2 + 16;  // bytes: eight rows lie in different banks
  static constexpr int kOutAt = kParts * kTileBytes;
  static_assert(kOutAt + kRows * kOutStride <= kStages * kStageBytes);

  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ std::uint32_t full(int stage) const { return shared_ + kBarriers + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ std::uint32_t x_at(int stage) const { return shared_ + stage * kStageBytes; }
  __device__ std::uint32_t w_at(int stage) const { return x_at(stage) + kTileBytes; }
  __device__ std::uint32_t range_at(int row) const { return shared_ + kRanges + 4 * row; }
  __device__ std::uint32_t part_at(int part) const { return shared_ + part * kTileBytes; }
  __device__ std::uint32_t out_at() const { return shared_ + kOutAt + warp() * 16 * kOutStride; }

  static __device__ __forceinline__ void wait_for_warps() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * kMultiplyWarps) : "memory");
  }
  static __device__ __forceinline__ void store_word(std::uint32_t to, unsigned value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
  }

  __device__ bool surely_there() const { return static_cast<int>(blockIdx.y) < p_.least; }

  __device__ void copy_first_weights(const CUtensorMap* w) const {
#pragma unroll 1
    for (int i = 0; i < min(kStages, p_.steps); ++i) {
      barrier_expect(full(i), kStageBytes);
      copy_weights(w, i, i);
    }
  }

  __device__ void copy_weights(const CUtensorMap* w, int stage, int step) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      copy_tile(w_at(stage) + part * kTileBytes, w, full(stage), step * kDepth, part * p_.width + column0_);
  }

  // The keys of a row of this warp's.
  __device__ Range range_of(int row) const {
    const int own = warp() * 16 + row;
    unsigned both;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(both) : "r"(range_at(own)) : "memory");
    const int end = static_cast<int>(both >> 16);
    return {static_cast<int>(both & 0xffff), p_.causal ? min(end, own + 1) : end};
  }

  // q, k and v with their biases, in 16 bits and swizzled as operands are. Rows behind the tile's are others': zeros
  // stand for them, because weights of 0 times what is no number would count.
  __device__ __forceinline__ void put(const float (&sums)[kSums], const unsigned (&bias)[kSums / 4]) const {
    const int row = warp() * 16 + (lane() & 15);  // whose 16 bytes this lane names to stmatrix
    const bool upper = warp() * 16 + lane() / 4 < rows_;
    const bool lower = warp() * 16 + lane() / 4 + 8 < rows_;
#pragma unroll
    for (int j = 0; j < kSums / 4; j += 2) {
      const std::uint32_t to =
          part_at(j / 8) + row * 128 + ((static_cast<unsigned>(j % 8 + lane() / 16) ^ (row & 7)) * 16);
      unsigned pairs[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 two = values_of(bias[j + i], T{});
        const float* const four = &sums[4 * (j + i)];
        pairs[i][0] = upper ? pack(four[0] + two.x, four[1] + two.y, T{}) : 0;
        pairs[i][1] = lower ? pack(four[2] + two.x, four[3] + two.y, T{}) : 0;
      }
      store_matrices(to, pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]);
    }
  }

  // Leaves the columns of one head in 16 bits at out_at().
  __device__ __forceinline__ void attend_head(int head, const Range (&ranges)[2]) const {
    float scores[kRows / 2];
    const std::uint64_t q = wgmma_operand(part_at(0));
    const std::uint64_t k = wgmma_operand(part_at(1));
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      const int at = 2 * (head * (kHeadDim / 16) + i);
      wgmma<T, kRows>(scores, q + at, k + at, i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    float inverse[2];
    soften(scores, ranges, inverse);
    unsigned weights[kRows / 16][4];
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i][j] = pack(scores[8 * i + 2 * j], scores[8 * i + 2 * j + 1], T{});
    }
    // Times all columns of v: those of another head are not used.
    float out[kWidth / 2];
#pragma unroll
    for (float& value : out) value = 0;
    const std::uint64_t v = wgmma_operand(part_at(2));
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) wgmma_values<T>(out, weights[i], v + i * (16 * kWidth * 2 / 16));
    wgmma_commit();
    wgmma_wait<0>();
    const std::uint32_t written = out_at() + (lane() & 15) * kOutStride + lane() / 16 * 16;
#pragma unroll
    for (int j = head * kHeadDim / 16; j < (head + 1) * kHeadDim / 16; ++j) {
      const float* const eight = &out[8 * j];
      store_matrices(written + j * 32, pack(eight[0] * inverse[0], eight[1] * inverse[0], T{}),
                     pack(eight[2] * inverse[1], eight[3] * inverse[1], T{}),
                     pack(eight[4] * inverse[0], eight[5] * inverse[0], T{}),
                     pack(eight[6] * inverse[1], eight[7] * inverse[1], T{}));
    }
  }

  // Scores to weights relative to the largest of a row, and one by the sum of these.
  __device__ __forceinline__ void soften(float (&scores)[kRows / 2], const Range (&ranges)[2],
                                         float (&inverse)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto keys = static_cast<unsigned>(ranges[half].end - ranges[half].begin);
      const int first = lane() % 4 * 2 - ranges[half].begin;
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[4 * j + 2 * half + e];
          if (static_cast<unsigned>(first + j * 8 + e) >= keys) score = -INFINITY;
          most = fmaxf(most, score);
        }
      }
      // The four lanes of a row lie side by side.
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 2));
      // A row of no sequence has no keys.
      const float offset = most == -INFINITY ? 0.0f : most * p_.scale;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[4 * j + 2 * half + e];
          score = exp2_fast(fmaf(score, p_.scale, -offset));
          sum += score;
        }
      }
      sum += __shfl_xor_sync(kAll, sum, 1);
      sum += __shfl_xor_sync(kAll, sum, 2);
      inverse[half] = sum > 0 ? 1.0f / sum : 0.0f;
    }
  }

  __device__ __forceinline__ void store_rows() const {
    __syncwarp();
    Output out;
    out.y = p_.y;
    out.y_stride = p_.y_stride;
    constexpr int kOfRow = kWidth / 8;  // pieces of 16 bytes
#pragma unroll
    for (int i = 0; i < 16 * kOfRow / 32; ++i) {
      const int piece = i * 32 + lane();
      const int row = piece / kOfRow;
      const int column = piece % kOfRow * 8;
      if (warp() * 16 + row < rows_)
        store_piece<T>(out, out_at() + row * kOutStride + column * 2, row0_ + warp() * 16 + row, column0_ + column);
    }
  }

  const Parameters& p_;
  const std::uint32_t shared_;
  const int column0_;
  int first_ = 0;
  int sequences_ = 0;
  int row0_ = 0;
  int rows_ = 0;
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                     const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(kAlign) std::uint8_t memory[];
  Attention<T, kHeadDim> attention(p, shared_address(memory));
  if (attention.copying_thread()) attention.start(&x, &w);
  const bool there = attention.find();
  __syncthreads();
  if (!there) return;
  if (attention.copies()) {
    if (attention.copying_thread()) attention.copy(&x, &w);
  } else {
    float sums[kSums];
    unsigned bias[kSums / 4];
    attention.prepare(bias);
    pdl_wait();
    pdl_launch();
    attention.multiply(sums);
    attention.attend(sums, bias);
  }
#endif
}

template <typename T, int kHeadDim>
void launch_attention(const TileAttention& a, CudaStream& stream) {
  constexpr auto kKernel = attention_kernel<T, kHeadDim>;
  allow_shared_memory<kKernel>(kSharedBytes);
  const std::int64_t width = a.attention.heads * a.head_dim;
  Parameters p;
  p.y = a.y;
  p.y_stride = a.y_stride;
  p.bias = a.bias;
  p.begin = a.attention.tiles.begin;
  p.row_begin = a.attention.tiles.row_begin;
  p.least = static_cast<int>(a.attention.tiles.least);
  p.width = static_cast<int>(width);
  p.steps = static_cast<int>(ceil_div(a.k, std::int64_t{kDepth}));
  p.scale = a.attention.scale * std::numbers::log2e_v<float>;
  p.causal = a.attention.causal;
  const dim3 grid(static_cast<unsigned>(width / kWidth), static_cast<unsigned>(a.attention.tiles.tiles));
  launch(stream, grid, dim3(kThreads), kSharedBytes, Overlap::yes, kKernel,
         matrix_map(a.x, a.type, a.rows, a.k, a.x_stride, kRows),
         matrix_map(a.w, a.type, kParts * width, a.k, a.k, kWidth), p);
}

template <typename T>
void launch_type(const TileAttention& a, CudaStream& stream) {
  if (a.head_dim == kWidth) {
    launch_attention<T, kWidth>(a, stream);
  } else {
    launch_attention<T, kWidth / 2>(a, stream);
  }
}

bool aligned(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

}  // namespace
}  // namespace nibble::tile

namespace nibble {

bool attends_in_tiles(std::int64_t inputs, std::int64_t heads, std::int64_t head_dim) {
  constexpr std::int64_t kMost = std::int64_t{1} << 24;  // what is counted in 32 bits stays far below
  return inputs > 0 && inputs % 8 == 0 && inputs < kMost && heads > 0 && heads < kMost / 64 &&
         (head_dim == 64 || (head_dim == 32 && heads % 2 == 0));
}

std::int64_t most_attended_tiles(std::int64_t inputs, std::int64_t width, int multiprocessors) {
  // Measured on an H100 with widths of 384 and 768: long sums want a multiprocessor for each block.
  constexpr std::int64_t kShortSum = 512;
  const int blocks = inputs <= kShortSum ? multiprocessors * 3 / 2 : multiprocessors;
  return blocks / (width / tile::kWidth);
}

void attend_in_tiles(const TileAttention& a, CudaStream& stream) {
  // A grid's second extent.
  constexpr std::int64_t kMostTiles = 65535;
  if (!attends_in_tiles(a.k, a.attention.heads, a.head_dim) || (a.type != DType::f16 && a.type != DType::bf16) ||
      !tile::aligned(a.x, a.x_stride) || !tile::aligned(a.w, a.k) || !tile::aligned(a.y, a.y_stride) ||
      a.attention.tiles.tiles > kMostTiles || a.attention.tiles.least < 1 || !(a.attention.scale > 0)) {
    fail(
        "attention behind q, k and v: {} tiles of {} inputs with {} heads of {} in {}, scaled by {}; expected up to {} "
        "of 16-bit types, heads of 64 or an even number of 32, scaled by more than 0, all rows at multiples of 16 "
        "bytes",
        a.attention.tiles.tiles, a.k, a.attention.heads, a.head_dim, name_of(a.type), a.attention.scale, kMostTiles);
  }
  if (a.rows == 0 || a.attention.tiles.tiles == 0) return;
  if (a.type == DType::f16) {
    tile::launch_type<__half>(a, stream);
  } else {
    tile::launch_type<__nv_bfloat16>(a, stream);
  }
}

}  // namespace nibble
