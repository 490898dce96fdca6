// The same as self_attention_wgmma.cu for many rows: blocks stay, one on each multiprocessor. A team of two warpgroups
// takes 128 rows of one sequence and one head after another; two teams share a block, with a warp for each that copies
// tiles of q, k and v as far ahead as there are stages, the next rows' among them.
#include "core/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tma.cuh"
#include "ops/cuda/attention_rows.cuh"
#include "ops/cuda/row_tiles.cuh"
#include "ops/cuda/self_attention_parts.h"

#include <algorithm>

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble::cuda {
namespace {

constexpr int kGroups = 2;  // of a team
static_assert(kTeamRows == 64 * kGroups);
constexpr int kTeams = 2;
constexpr int kTeamThreads = 128 * kGroups;
constexpr int kAttend = kTeams * kTeamThreads;
constexpr int kThreads = kAttend + 128;  // the last warpgroup copies, a warp for each team
// Of a thread. A multiprocessor has 65536: 102 for each, of which 96, a multiple of 8, are given at the launch.
constexpr int kLaunchRegisters = 96;
constexpr int kAttendRegisters = 112;
constexpr int kCopyRegisters = 32;
static_assert(kAttend * kAttendRegisters + 128 * kCopyRegisters <= kThreads * kLaunchRegisters);

constexpr int kTurns = 2;  // tiles of q
constexpr int kStages = 4;
constexpr int kStageAt = kTurns * kGroups * kRowTileBytes;  // k, then v
constexpr int kTeamBytes = kStageAt + kStages * 2 * kRowTileBytes;
constexpr int kItemBytes = 32;
constexpr int kControlBytes = kTurns * kItemBytes + 16 * (kStages + kTurns);  // of a team, behind all tiles
constexpr int kBytes = kTeams * (kTeamBytes + kControlBytes) + kTileAlign;

// Rows that a team attends with, of one head: what its warps have to know of them.
struct Item {
  int keys;
  int first;  // of the rows, in their sequence
  int rows;   // 0: there are no more items
  int row;    // where they begin
  int column;
};

template <typename T>
class Attention {
 public:
  __device__ Attention(const AttentionOfRows& p, std::uint32_t shared)
      : p_(p), tiles_(shared + team() * kTeamBytes), control_(shared + kTeams * kTeamBytes + team() * kControlBytes) {}

  static __device__ bool attends() { return threadIdx.x < kAttend; }
  static __device__ bool copies() { return !attends() && team() < kTeams; }

  // By one thread of each team.
  __device__ void init() const {
    for (int i = 0; i < kTurns; ++i) {
      barrier_init(q_full(i), 1);
      barrier_init(q_empty(i), kTeamThreads / 32);
    }
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kTeamThreads / 32);
    }
    barriers_ready_in_block();
  }

  // The copying warp. From the last rows to the first: the product ahead wrote the last ones last, and of many rows
  // only those are still in the second cache. Heads go fastest, so that rows are read together.
  __device__ void copy(const CUtensorMap* q, const CUtensorMap* k, const CUtensorMap* v, int items) const {
    SequenceTileFinder tiles(p_.row_begin, p_.sequences, kTeamRows);
    int turns = 0;
    int done = 0;  // tiles of keys
    const int blocks = static_cast<int>(gridDim.x);
    for (int i = items - 1 - static_cast<int>(blockIdx.x) - team() * blocks; i >= 0; i -= kTeams * blocks) {
      const SequenceTile tile = tiles.find(i / p_.heads);
      if (tile.rows == 0) continue;
      const int column = i % p_.heads * kHeadWidth;
      const int first = tile.row - tile.begin;
      int keys = tile.length;
      if (p_.valid != nullptr) keys = min(keys, p_.valid[tile.sequence]);
      if (p_.causal) keys = min(keys, first + tile.rows);
      const int turn = turns % kTurns;
      barrier_wait(q_empty(turn), (turns / kTurns & 1) ^ 1);
      ++turns;
      if (lane() == 0) {
        tell(turn, {keys, first, tile.rows, tile.row, column});
        barrier_expect(q_full(turn), kGroups * kRowTileBytes);
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
          copy_tile(q_at(turn) + group * kRowTileBytes, q, q_full(turn), column, tile.row + 64 * group);
      }
#pragma unroll 1
      for (int key = 0; key < keys; key += kKeyTile, ++done) {
        const int stage = done % kStages;
        barrier_wait(empty(stage), (done / kStages & 1) ^ 1);
        if (lane() == 0) {
          barrier_expect(full(stage), 2 * kRowTileBytes);
          copy_tile(keys_at(stage), k, full(stage), column, tile.begin + key);
          copy_tile(keys_at(stage) + kRowTileBytes, v, full(stage), column, tile.begin + key);
        }
        __syncwarp();  // lanes that lag could miss a barrier's phases
      }
    }
    const int turn = turns % kTurns;
    barrier_wait(q_empty(turn), (turns / kTurns & 1) ^ 1);
    if (lane() == 0) {
      tell(turn, {});
      barrier_arrive(q_full(turn));
    }
  }

  __device__ void attend() const {
    int done = 0;  // tiles of keys
    for (int turns = 0;; ++turns) {
      const int turn = turns % kTurns;
      barrier_wait(q_full(turn), turns / kTurns & 1);
      const Item item = told(turn);
      if (item.rows == 0) return;
      AttendedRows<T> rows;
      for (int key0 = 0; key0 < item.keys; key0 += kKeyTile, ++done) {
        const int stage = done % kStages;
        const std::uint32_t at = keys_at(stage);
        barrier_wait(full(stage), done / kStages & 1);
        if (key0 + kKeyTile > item.keys) {
          clear_values(at + kRowTileBytes, item.keys - key0, static_cast<int>(threadIdx.x) % kTeamThreads,
                       kTeamThreads);
          meet(1 + team(), kTeamThreads);
        }
        Scores scores;
        rows.enqueue_scores(scores, q_at(turn) + warp() / 4 * kRowTileBytes, at);
        wgmma_wait<0>();
        if (key0 > 0) release(done - 1);
        const int own = item.first + warp() * 16;  // the warp's first row in the sequence
        if (key0 + kKeyTile > item.keys || (p_.causal && key0 + kKeyTile - 1 > own))
          mask(scores, key0, item.keys, p_.causal, own + lane() / 4);
        rows.soften(scores, p_.scale);
        rows.enqueue_values(scores, at + kRowTileBytes);
      }
      wgmma_wait<0>();
      if (item.keys > 0) release(done - 1);
      write(rows, turn);
    }
  }

 private:
  static __device__ __forceinline__ int team() {
    const int thread = static_cast<int>(threadIdx.x);
    return thread < kAttend ? thread / kTeamThreads : (thread - kAttend) / 32;
  }
  // In the team.
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) % kTeamThreads / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ void meet(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
  }

  __device__ std::uint32_t q_at(int turn) const { return tiles_ + turn * kGroups * kRowTileBytes; }
  __device__ std::uint32_t keys_at(int stage) const { return tiles_ + kStageAt + stage * 2 * kRowTileBytes; }
  __device__ std::uint32_t item_at(int turn) const { return control_ + turn * kItemBytes; }
  __device__ std::uint32_t q_full(int turn) const { return control_ + kTurns * kItemBytes + 16 * turn; }
  __device__ std::uint32_t q_empty(int turn) const { return q_full(turn) + 8; }
  __device__ std::uint32_t full(int stage) const { return q_full(kTurns + stage); }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }

  // The barrier of the turn's q orders what is told with what reads it.
  __device__ void tell(int turn, const Item& item) const {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\nst.shared.u32 [%0 + 16], %5;" ::"r"(item_at(turn)),
                 "r"(item.keys), "r"(item.first), "r"(item.rows), "r"(item.row), "r"(item.column)
                 : "memory");
  }
  __device__ Item told(int turn) const {
    Item item;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%5];\nld.shared.u32 %4, [%5 + 16];"
                 : "=r"(item.keys), "=r"(item.first), "=r"(item.rows), "=r"(item.row), "=r"(item.column)
                 : "r"(item_at(turn))
                 : "memory");
    return item;
  }

  // Gives back the stage of the tile of keys `done`.
  __device__ void release(int done) const {
    if (lane() == 0) barrier_arrive(empty(done % kStages));
  }

  __device__ void write(const AttendedRows<T>& rows, int turn) const {
    // All warps of the group have read q, where the rows go through.
    meet(1 + kTeams + static_cast<int>(threadIdx.x) / 128, 128);
    const Item item = told(turn);  // again: registers are for sums
    T* const y = static_cast<T*>(p_.y) + (item.row + warp() * 16) * p_.y_stride + item.column;
    rows.write(q_at(turn) + warp() * 16 * kHeadWidth * 2, y, p_.y_stride, item.rows - warp() * 16);
    // The next q there is the copy engine's.
    fence_writes();
    __syncwarp();
    if (lane() == 0) barrier_arrive(q_empty(turn));
  }

  const AttentionOfRows& p_;
  const std::uint32_t tiles_;    // q, then k and v
  const std::uint32_t control_;  // items and barriers
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    self_teams_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                      const __grid_constant__ CUtensorMap v, const __grid_constant__ AttentionOfRows p, int items) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::uint8_t memory[];
  using A = Attention<T>;
  const A attention(p, (shared_address(memory) + kTileAlign - 1) / kTileAlign * kTileAlign);
  if (A::copies() && threadIdx.x % 32 == 0) {
    prefetch_map(&q);
    prefetch_map(&k);
    prefetch_map(&v);
    attention.init();
  }
  __syncthreads();
  pdl_wait();
  pdl_launch();
  if (A::attends()) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kAttendRegisters));
    attention.attend();
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCopyRegisters));
    if (A::copies()) attention.copy(&q, &k, &v, items);
  }
#endif
}

template <typename T>
void launch_teams(const SelfAttentionArgs& args, const AttentionOfRows& p, int multiprocessors, CudaStream& stream) {
  constexpr auto kKernel = self_teams_kernel<T>;
  allow_shared_memory<kKernel>(kBytes);
  const auto map = [&](const MatrixRef& m) { return matrix_map(m.data, m.dtype, m.rows, m.columns, m.stride, 64); };
  // Each sequence can leave one tile unfilled.
  const int items = static_cast<int>(args.map.rows / kTeamRows + p.sequences) * p.heads;
  launch(stream, dim3(static_cast<unsigned>(std::min(items, multiprocessors))), dim3(kThreads), kBytes, Overlap::yes,
         kKernel, map(args.q), map(args.k), map(args.v), p, items);
}

}  // namespace

void self_attend_teams(const SelfAttentionArgs& args, const AttentionOfRows& p, int multiprocessors,
                       CudaStream& stream) {
  if (args.q.dtype == DType::f16) {
    launch_teams<__half>(args, p, multiprocessors, stream);
  } else {
    launch_teams<__nv_bfloat16>(args, p, multiprocessors, stream);
  }
}

}  // namespace nibble::cuda
