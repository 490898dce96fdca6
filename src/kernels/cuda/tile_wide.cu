// Products of many rows: a persistent kernel for Hopper whose two warpgroups multiply 64 rows each of a tile of 128 x
// 256 or 192 (wgmma), while one thread copies tiles of x and w (TMA, a ring of stages guarded by barriers). Two blocks
// of a cluster have tiles one below the other and share the tile of w. Sums leave their registers rounded to 16 bits,
// and the next tile's products begin at once; while the tensor cores work on its first steps, the warps finish the tile
// before, eight columns a product, and store it by the copy engine: a load and a store of each thread's own would take
// 3% of the time from the products.
#include "core/checked.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_kernels.h"
#include "kernels/cuda/tile_parts.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <algorithm>

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble::tile {
namespace {

constexpr int kRows = 128;
constexpr int kGroups = 2;
constexpr int kMultiplyWarps = 4 * kGroups;
constexpr int kThreads = 128 * (kGroups + 1);  // the last warpgroup copies
constexpr int kShare = 2;                      // blocks of a cluster
constexpr int kXBytes = kRows * kDepth * 2;
constexpr int kStepProducts = kDepth / 16;
// Columns of a warp's 16 rows that are stored at a time: 128 bytes, the width of the swizzle.
constexpr int kStored = 64;
constexpr int kStoredBytes = 16 * kStored * 2;

template <int kColumns>
struct Shape {
  static constexpr int kStages = kColumns == 256 ? 4 : 5;
  static constexpr int kStageBytes = kXBytes + kColumns * kDepth * 2;
  static constexpr int kStores = kStages * kStageBytes;  // where what the warps store begins
  static constexpr int kBiasBytes = kColumns * 4;        // of a warp
  static constexpr int kBiases = kStores + kMultiplyWarps * kStoredBytes;
  static constexpr int kBarriers = kBiases + kMultiplyWarps * kBiasBytes;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8 + kAlign;
  static constexpr int kParts = kColumns / (8 * kStepProducts);  // steps that finish a tile
  static_assert(kParts <= kWideLeastSteps);
};

// Of a thread: 65536 among 256 that multiply and 128 that copy, which are launched with 168 each.
constexpr int kMultiplyRegisters = 232;
constexpr int kCopyRegisters = 40;

struct Parameters {
  Output out;
  int steps = 0;    // of k
  int columns = 0;  // tiles side by side
  int tiles = 0;    // of a cluster: two tiles one below the other count as one
};

template <typename T, int kColumns, typename Activation>
class Product {
  using S = Shape<kColumns>;
  static constexpr int kStages = S::kStages;
  static constexpr int kStageBytes = S::kStageBytes;
  static constexpr int kParts = S::kParts;
  static constexpr int kSums = kColumns / 2;  // of a thread

 public:
  __device__ Product(const Parameters& p, std::uint32_t shared) : p_(p), shared_(shared) {}

  __device__ void init() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kMultiplyWarps * kShare);
    }
    barriers_ready();
  }

  __device__ bool copies() const { return warp() >= kMultiplyWarps; }

  // The copying thread. Weights are constant: the first stages' come before the kernels ahead have ended.
  __device__ void copy(const CUtensorMap* x, const CUtensorMap* w) const {
    const int ahead = min(kStages, p_.steps);
    for (int i = 0; i < ahead; ++i) {
      barrier_expect(full(i), kStageBytes);
      copy_w(w, i, column_of(first_tile()), i);
    }
    pdl_wait();
    for (int i = 0; i < ahead; ++i) copy_x(x, i, row_of(first_tile()), i);
    int done = ahead;
    for (int tile = first_tile(); tile < p_.tiles; tile += clusters()) {
      const int row = row_of(tile);
      const int column = column_of(tile);
      for (int step = tile == first_tile() ? ahead : 0; step < p_.steps; ++step, ++done) {
        const int stage = done % kStages;
        barrier_wait(empty(stage), (done / kStages & 1) ^ 1);
        barrier_expect(full(stage), kStageBytes);
        copy_w(w, stage, column, step);
        copy_x(x, stage, row, step);
      }
    }
  }

  __device__ void multiply(const CUtensorMap* y) const {
    const Activation activation = activation_of<Activation>(p_.out);
    float sums[kSums];
    unsigned former[kSums / 2];  // of the tile before, as pairs of columns, rounded
#pragma unroll
    for (unsigned& pair : former) pair = 0;
    int former_row = p_.out.m;  // there is none
    int former_column = 0;
    int done = 0;
    for (int tile = first_tile(); tile < p_.tiles; tile += clusters()) {
#pragma unroll
      for (int part = 0; part < kParts; ++part, ++done) {
        unsigned pairs[2][2];
        step(sums, part > 0, done,
             [&](int i) { finish(y, former, part * kStepProducts + i, former_row, former_column, activation, pairs); });
        if (part == 0) bring_bias<T, kColumns>(p_.out, biases(), column_of(tile));
      }
#pragma unroll 1
      for (int i = kParts; i < p_.steps; ++i, ++done) step(sums, true, done, [](int) {});
      wgmma_wait<0>();
      release((done - 1) % kStages);
      former_row = row_of(tile) + warp() * 16;
      former_column = column_of(tile);
      round(sums, former);
    }
#pragma unroll
    for (int i = 0; i < kColumns / 8; i += 2) {
      unsigned pairs[2][2];
      finish(y, former, i, former_row, former_column, activation, pairs);
      finish(y, former, i + 1, former_row, former_column, activation, pairs);
    }
    if (lane() == 0) bulk_wait_read();
    __syncwarp();
  }

 private:
  // Computed where they are needed: registers are for sums.
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int rank() { return static_cast<int>(cluster_rank()); }
  static __device__ __forceinline__ int first_tile() { return static_cast<int>(blockIdx.x) / kShare; }
  static __device__ __forceinline__ int clusters() { return static_cast<int>(gridDim.x) / kShare; }

  __device__ std::uint32_t full(int stage) const { return shared_ + S::kBarriers + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ std::uint32_t biases() const { return shared_ + S::kBiases + warp() * S::kBiasBytes; }
  __device__ std::uint32_t stage_at(int stage) const { return shared_ + stage * kStageBytes; }
  __device__ int row_of(int tile) const { return (tile / p_.columns * kShare + rank()) * kRows; }
  __device__ int column_of(int tile) const { return tile % p_.columns * kColumns; }

  __device__ void copy_x(const CUtensorMap* x, int stage, int row, int step) const {
    copy_tile(stage_at(stage), x, full(stage), step * kDepth, row);
  }
  __device__ void copy_w(const CUtensorMap* w, int stage, int column, int step) const {
    constexpr int kPart = kColumns / kShare;
    copy_tile_to_all(stage_at(stage) + kXBytes + rank() * kPart * kDepth * 2, w, full(stage), step * kDepth,
                     column + rank() * kPart, (1 << kShare) - 1);
  }

  // Enqueues the products of one step, each a group by itself, with what else is to be done in between: tiles of 256
  // columns take 1% less so than with all of it behind a step, of 192 3 to 5%. The stage of the step before is
  // released.
  template <typename Between>
  __device__ __forceinline__ void step(float (&sums)[kSums], bool accumulate, int done, const Between& between) const {
    const int stage = done % kStages;
    barrier_wait(full(stage), done / kStages & 1);
    const std::uint64_t x = wgmma_operand(stage_at(stage) + warp() / 4 * (kXBytes / kGroups));
    const std::uint64_t w = wgmma_operand(stage_at(stage) + kXBytes);
#pragma unroll
    for (int i = 0; i < kStepProducts; ++i) {
      wgmma_begin();
      wgmma<T, kColumns>(sums, x + 2 * i, w + 2 * i, accumulate || i > 0);
      wgmma_commit();
      between(i);
      if (i > 0 || !accumulate) continue;
      wgmma_wait<1>();
      release((done - 1) % kStages);
    }
  }

  // A stage may be written again when all warps that read it, those of the blocks that share it among them, have.
  __device__ void release(int stage) const {
    if (lane() < kShare) barrier_arrive_in_cluster(in_cluster(empty(stage), lane()));
  }

  __device__ __forceinline__ void round(const float (&sums)[kSums], unsigned (&to)[kSums / 2]) const {
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
      const float2 bias = bias_of(biases(), j * 8 + lane() % 4 * 2);
      to[2 * j] = pack(sums[4 * j] + bias.x, sums[4 * j + 1] + bias.y, T{});
      to[2 * j + 1] = pack(sums[4 * j + 2] + bias.x, sums[4 * j + 3] + bias.y, T{});
    }
  }

  // Columns [8 i, 8 i + 8) of the tile before. `pairs` holds those of an even i for the next one, with which they are
  // arranged; kStored columns are stored at a time.
  __device__ __forceinline__ void finish(const CUtensorMap* y, const unsigned (&former)[kSums / 2], int i, int row0,
                                         int column0, const Activation& activation, unsigned (&pairs)[2][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned pair = former[2 * i + half];
      if constexpr (std::is_same_v<Activation, Identity>) {
        pairs[i % 2][half] = pair;
      } else if constexpr (std::is_same_v<Activation, Gelu>) {
        pairs[i % 2][half] = short_gelu(pair, T{});
      } else {
        const float2 x = values_of(pair, T{});
        pairs[i % 2][half] = pack(activation(x.x), activation(x.y), T{});
      }
    }
    if (i % 2 == 0) return;
    constexpr int kPieces = kStored / 8;  // of 16 bytes
    const int piece = i % kPieces;
    const std::uint32_t stored = shared_ + S::kStores + warp() * kStoredBytes;
    if (piece == 1) {
      if (lane() == 0) bulk_wait_read();
      __syncwarp();
    }
    // As stmatrix wants them: rows 0-15 of eight columns, then of the next eight; pieces swizzled as the copy engine
    // does it.
    const int row = lane() % 16;
    store_matrices(stored + row * kStored * 2 + ((piece - 1 + lane() / 16) ^ row % 8) * 16, pairs[0][0], pairs[0][1],
                   pairs[1][0], pairs[1][1]);
    if (piece + 1 < kPieces) return;
    fence_writes();
    __syncwarp();
    if (lane() == 0) store_tile(y, stored, column0 + i / kPieces * kStored, row0);
  }

  const Parameters& p_;
  std::uint32_t shared_;
};

template <typename T, int kColumns, typename Activation>
__global__ void __launch_bounds__(kThreads, 1)
    wide_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                const __grid_constant__ CUtensorMap y, const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::uint8_t memory[];
  const std::uint32_t shared = (shared_address(memory) + kAlign - 1) / kAlign * kAlign;
  const Product<T, kColumns, Activation> product(p, shared);
  product.init();
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  if (product.copies()) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCopyRegisters));
    if (threadIdx.x == 32 * kMultiplyWarps) {
      prefetch_map(&x);
      prefetch_map(&w);
      product.copy(&x, &w);
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMultiplyRegisters));
    pdl_wait();
    pdl_launch();
    product.multiply(&y);
  }
  // Barriers that other blocks arrive at live until all have.
  cluster_arrive_last();
  cluster_wait();
#endif
}

template <typename T, int kColumns, typename Activation>
void launch_wide(const TileGemm& g, int multiprocessors, CudaStream& stream) {
  constexpr int kSharedBytes = Shape<kColumns>::kSharedBytes;
  constexpr auto kKernel = wide_kernel<T, kColumns, Activation>;
  allow_shared_memory<kKernel>(kSharedBytes);
  Parameters p;
  p.out = output_of(g);
  p.steps = static_cast<int>(ceil_div(g.k, std::int64_t{kDepth}));
  p.columns = static_cast<int>(ceil_div(g.n, std::int64_t{kColumns}));
  p.tiles = static_cast<int>(ceil_div(g.m, std::int64_t{kRows} * kShare)) * p.columns;
  const TileMaps maps = maps_of(g, kRows, kColumns / kShare);
  const int clusters = std::min(p.tiles, multiprocessors / kShare);
  launch(stream, dim3(static_cast<unsigned>(clusters * kShare)), dim3(kThreads), kSharedBytes, Overlap::yes,
         Share::as_needed, kShare, kKernel, maps.x, maps.w, matrix_map(g.y, g.type, g.m, g.n, g.y_stride, 16), p);
}

template <typename T, int kColumns>
void launch_form(const TileGemm& g, int multiprocessors, CudaStream& stream) {
  if (!g.activation) {
    launch_wide<T, kColumns, Identity>(g, multiprocessors, stream);
  } else if (*g.activation == ActivationKind::gelu) {
    launch_wide<T, kColumns, Gelu>(g, multiprocessors, stream);
  } else {
    launch_wide<T, kColumns, OtherActivation>(g, multiprocessors, stream);
  }
}

}  // namespace

void enqueue_wide(const TileGemm& g, const TilePlan& plan, int multiprocessors, CudaStream& stream) {
  const auto with = [&](auto type) {
    using T = decltype(type);
    if (plan.columns == 256) return launch_form<T, 256>(g, multiprocessors, stream);
    launch_form<T, 192>(g, multiprocessors, stream);
  };
  if (g.type == DType::f16) {
    with(__half{});
  } else {
    with(__nv_bfloat16{});
  }
}

}  // namespace nibble::tile
