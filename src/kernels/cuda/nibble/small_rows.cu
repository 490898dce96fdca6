// Products of up to 16 rows with quantised weights, epilogue included, in one kernel that reads the weights once, at
// the speed of memory.
//
// Codes go to the tensor core as they are (fragments.cuh), and scale and zero point come after a set of inputs:
// sum s (q - z) x = s (sum q x - z sum x), with sums in f32. The inputs were staged before (stage_rows.cu).
//
// The kernel lives for some ten microseconds, with two warps a scheduler: what it does beside the weights is kept
// short, in instructions too, which are fetched anew each time.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/nibble/fragments.cuh"
#include "kernels/cuda/nibble/small_rows.h"
#include "kernels/cuda/nibble/weight_ring.cuh"

#include <algorithm>

namespace nibble::gpu {
namespace {

// Two blocks share a multiprocessor (228 KB on Hopper, 1 KB of each block is the system's).
constexpr std::size_t kSharedBytes = 113 * 1024;
// Places for the tokens' factors, the warps' pieces and barriers.
constexpr std::size_t kFixedBytes = 1024;
constexpr int kMostTokens = static_cast<int>(kMostSmallRows);

// What a warp has of strips that it does not have whole.
struct WarpPieces {
  int head = -1;  // strip, -1: none
  int tail = -1;
  bool head_begins = false;  // the head piece has the strip's first block of the slice
  bool head_ends = false;    // ... its last
};

struct Shared {
  float factor[kMostTokens];
  WarpPieces pieces[kSmallWarps];
  std::uint64_t barriers[kSmallWarps][kStages];
  std::uint64_t inputs_barrier;
};
static_assert(sizeof(Shared) <= kFixedBytes);

// A slice of the line of items, in blocks of weights.
struct Slice {
  int first_block;  // of a strip
  int blocks;
  int base;  // first item
};

__device__ __forceinline__ Slice slice_of(const SmallRowsArgs& a, int s) {
  Slice out;
  out.first_block = s * a.slice_blocks;
  out.blocks = min(a.slice_blocks, a.blocks - out.first_block);
  out.base = a.strips * out.first_block;
  return out;
}

// The thread block of an item.
__device__ __forceinline__ int block_of_item(const SmallRowsArgs& a, int item) {
  const int longer = a.remainder * (a.quotient + 1);
  return item < longer ? item / (a.quotient + 1) : a.remainder + (item - longer) / a.quotient;
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

// --- Products --------------------------------------------------------------------------------------------------------

// One block of weights with the staged inputs of its place: acc += s (sum q x - z sum x).
template <int BITS, int TILES, int SETS>
struct BlockProduct {
  static constexpr int kSteps = 8 / SETS;  // of a set
  LaneCodes<BITS> codes;
  float part[TILES][2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part[t][0][i] = part[t][1][i] = 0;
    }
  }

  template <int STEP>
  __device__ __forceinline__ void step(const SmallRowsArgs& a, const std::byte* block, const std::byte* staged,
                                       const float* sums, const int (&token_at)[TILES], int lane, uint4 (&b)[TILES],
                                       float (&acc)[TILES][4]) {
    if constexpr (STEP < 8) {
      if constexpr (STEP % kSteps == 0) clear();
      if constexpr (STEP % 2 == 0) {
#pragma unroll
        for (int t = 0; t < TILES; ++t)
          b[t] = *reinterpret_cast<const uint4*>(staged + STEP / 2 * a.rows * 64 + token_at[t]);
      }
      const FragmentA fragment = codes.template fragment<STEP>();
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        multiply_add(part[t][STEP % 2], fragment, STEP % 2 == 0 ? b[t].x : b[t].z, STEP % 2 == 0 ? b[t].y : b[t].w);
      }
      if constexpr (STEP % kSteps == kSteps - 1) finish_set<STEP / kSteps>(a, block, sums, lane, acc);
      step<STEP + 1>(a, block, staged, sums, token_at, lane, b, acc);
    }
  }

  template <int SET>
  __device__ __forceinline__ void finish_set(const SmallRowsArgs& a, const std::byte* block, const float* sums,
                                             int lane, float (&acc)[TILES][4]) {
    const int g = lane / 4;
    const int c = lane % 4;
    const auto* scales = reinterpret_cast<const __half2*>(block + BITS * 256);
    const float2 s = __half22float2(scales[SET * 8 + g]);
    float z0 = a.zero;
    float z1 = a.zero;
    if (a.zeros) {
      const uchar2 z = reinterpret_cast<const uchar2*>(block + BITS * 256 + SETS * 32)[SET * 8 + g];
      z0 = static_cast<float>(z.x);
      z1 = static_cast<float>(z.y);
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      // Tokens past the last repeat it; nobody reads their results.
      const float x0 = sums[SET * a.rows + min(8 * t + 2 * c, a.rows - 1)];
      const float x1 = sums[SET * a.rows + min(8 * t + 2 * c + 1, a.rows - 1)];
      acc[t][0] += s.x * (part[t][0][0] + part[t][1][0] - z0 * x0);
      acc[t][1] += s.x * (part[t][0][1] + part[t][1][1] - z0 * x1);
      acc[t][2] += s.y * (part[t][0][2] + part[t][1][2] - z1 * x0);
      acc[t][3] += s.y * (part[t][0][3] + part[t][1][3] - z1 * x1);
    }
  }
};

// --- Epilogue --------------------------------------------------------------------------------------------------------

__device__ float read(const void* p, DType dtype, std::int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(p)[i];
  if (dtype == DType::f16) return __half2float(static_cast<const __half*>(p)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
}

__device__ void write(void* p, DType dtype, std::int64_t i, float v) {
  if (dtype == DType::f32) {
    static_cast<float*>(p)[i] = v;
  } else if (dtype == DType::f16) {
    static_cast<__half*>(p)[i] = __float2half_rn(v);
  } else {
    static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(v);
  }
}

// Two tiles of sums of a lane, by value: in registers across a call.
struct Sums {
  float4 tile[2];
};

template <int TILES>
__device__ __forceinline__ Sums sums_of(const float (&v)[TILES][4]) {
  Sums out;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int from = t < TILES ? t : 0;
    out.tile[t] = make_float4(v[from][0], v[from][1], v[from][2], v[from][3]);
  }
  return out;
}

// The whole sums of a strip, in the order of matrix D: rows g (x, y) and g + 8 (z, w), tokens 8 t + 2 c and the next.
// Not inlined: one copy serves the places that finish strips.
__device__ __noinline__ void finish_strip(const SmallRowsArgs& a, const Shared& shared, int strip, int lane,
                                          Sums sums) {
  const int g = lane / 4;
  const int c = lane % 4;
  int part = 0;
  if (a.epilogue != EpilogueKind::gated) {
    while (part + 1 < a.parts && strip >= a.first_strip[part + 1]) ++part;
  }
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const int token = i / 2 * 8 + 2 * c + i % 2;
    const float4 tile = i / 2 == 0 ? sums.tile[0] : sums.tile[1];
    if (token >= a.rows) continue;
    const float factor = shared.factor[token];
    float low = (i % 2 == 0 ? tile.x : tile.y) * factor;
    float high = (i % 2 == 0 ? tile.z : tile.w) * factor;
    if (a.epilogue == EpilogueKind::gated) {
      const int output = strip * 8 + g;
      if (output >= a.outputs[0]) continue;
      if (a.bias != nullptr) {
        low += a.bias[a.bias_at[0] + output];
        high += a.bias[a.bias_at[1] + output];
      }
      write(a.y[0], a.y_dtype, token * a.y_stride[0] + output, activate(a.activation, low) * high);
      continue;
    }
#pragma unroll 1
    for (int h = 0; h < 2; ++h) {
      const int output = (strip - a.first_strip[part]) * kStripRows + g + 8 * h;
      if (output >= a.outputs[part]) continue;
      float v = h == 0 ? low : high;
      if (a.bias != nullptr) v += a.bias[a.bias_at[part] + output];
      if (a.epilogue == EpilogueKind::residual) v += read(a.residual, a.y_dtype, token * a.residual_stride + output);
      write(a.y[part], a.y_dtype, token * a.y_stride[part] + output, v);
    }
  }
}

// Leaves a piece of a strip in global memory.
template <int TILES>
__device__ void leave(const SmallRowsArgs& a, std::size_t slot, int lane, const float (&sum)[TILES][4]) {
  auto* pieces = reinterpret_cast<float4*>(a.pieces);
#pragma unroll
  for (int t = 0; t < TILES; ++t)
    __stcg(pieces + (slot * TILES + t) * 32 + lane, make_float4(sum[t][0], sum[t][1], sum[t][2], sum[t][3]));
}

// The thread blocks that have pieces of a strip in a slice, first and last.
__device__ int2 owners(const SmallRowsArgs& a, int strip, int s) {
  const Slice slice = slice_of(a, s);
  const int item = slice.base + strip * slice.blocks;
  return make_int2(block_of_item(a, item), block_of_item(a, item + slice.blocks - 1));
}

// Takes a ticket of a strip whose piece this thread block has left; true for the last that is expected. What all
// threads of the block have written before its last barrier is released with it.
__device__ bool last_to_arrive(const SmallRowsArgs& a, int strip) {
  std::uint32_t expected = 0;
  for (int s = 0; s < a.slices; ++s) {
    const int2 blocks = owners(a, strip, s);
    expected += static_cast<std::uint32_t>(blocks.y - blocks.x + 1);
  }
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(a.tickets + strip) : "memory");
  return before + 1 == expected;
}

// Adds all pieces of a strip, slice by slice and in each by thread block, and finishes it.
template <int TILES>
__device__ __forceinline__ void collect(const SmallRowsArgs& a, const Shared& shared, int strip, int lane) {
  const auto* pieces = reinterpret_cast<const float4*>(a.pieces);
  float sum[TILES][4] = {};
  for (int s = 0; s < a.slices; ++s) {
    const int2 blocks = owners(a, strip, s);
    for (int block = blocks.x; block <= blocks.y; ++block) {
      const std::size_t at = blocks.x == blocks.y ? 2 * static_cast<std::size_t>(gridDim.x) + s * a.strips + strip
                                                  : 2 * static_cast<std::size_t>(block) + (block == blocks.x ? 1 : 0);
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const float4 p = __ldcg(pieces + (at * TILES + t) * 32 + lane);
        sum[t][0] += p.x, sum[t][1] += p.y, sum[t][2] += p.z, sum[t][3] += p.w;
      }
    }
  }
  if (lane == 0) a.tickets[strip] = 0;
  finish_strip(a, shared, strip, lane, sums_of<TILES>(sum));
}

// --- The kernel ------------------------------------------------------------------------------------------------------

template <int BITS>
constexpr int kStageBlocks = BITS == 8 ? 1 : 2;

// A slice of the staged inputs into shared memory, by all threads.
template <int SETS>
__device__ __forceinline__ void load_slice(const SmallRowsArgs& a, const Slice& slice, Shared& shared,
                                           std::byte* inputs, float* sums, std::uint32_t parity) {
  const std::byte* from = a.staged.inputs + static_cast<std::int64_t>(slice.first_block) * a.rows * 256;
  const int bytes = slice.blocks * a.rows * 256;
#if __CUDA_ARCH__ >= 900
  const auto barrier = static_cast<std::uint32_t>(__cvta_generic_to_shared(&shared.inputs_barrier));
  if (threadIdx.x == 0) bulk_copy(static_cast<std::uint32_t>(__cvta_generic_to_shared(inputs)), from, bytes, barrier);
#else
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kSmallThreads * 16)
    *reinterpret_cast<uint4*>(inputs + i) = __ldcg(reinterpret_cast<const uint4*>(from + i));
#endif
  const int first = slice.first_block * SETS * a.rows;
  for (int i = static_cast<int>(threadIdx.x); i < slice.blocks * SETS * a.rows; i += kSmallThreads)
    sums[i] = __ldcg(a.staged.sums + first + i);
  if (static_cast<int>(threadIdx.x) < a.rows) shared.factor[threadIdx.x] = __ldcg(a.staged.factors + threadIdx.x);
#if __CUDA_ARCH__ >= 900
  wait_barrier(barrier, parity);
#endif
  __syncthreads();
}

template <int BITS, int TILES, int SETS>
__global__ __launch_bounds__(kSmallThreads, 2) void small_rows_kernel(const __grid_constant__ SmallRowsArgs a,
                                                                      int inputs_bytes) {
  extern __shared__ __align__(128) std::byte memory[];
  constexpr int kBlocksAStage = kStageBlocks<BITS>;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int stage_bytes = kBlocksAStage * a.block_bytes;
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  std::byte* ring_memory = memory + kFixedBytes;
  std::byte* inputs = ring_memory + kSmallWarps * kStages * stage_bytes;
  float* sums = reinterpret_cast<float*>(inputs + inputs_bytes);

  const int id = static_cast<int>(blockIdx.x);
  const int block_begin = id * a.quotient + min(id, a.remainder);
  const int block_end = block_begin + a.quotient + (id < a.remainder ? 1 : 0);
  WeightRing ring(ring_memory + warp * kStages * stage_bytes, shared.barriers[warp], stage_bytes, lane);
  if (threadIdx.x == 0) init_barrier(static_cast<std::uint32_t>(__cvta_generic_to_shared(&shared.inputs_barrier)));
  int token_at[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) token_at[t] = min(8 * t + lane / 4, a.rows - 1) * 64 + lane % 4 * 16;

  std::uint32_t segments = 0;
  int slice_index = 0;
#pragma unroll 1
  for (int begin = block_begin; begin < block_end; ++segments) {
    // The items of this thread block in one slice, and this warp's share of them.
    Slice slice = slice_of(a, slice_index);
    while (begin >= slice.base + a.strips * slice.blocks) slice = slice_of(a, ++slice_index);
    const int end = min(block_end, slice.base + a.strips * slice.blocks);
    const int count = end - begin;
    const int warp_begin = begin + count * warp / kSmallWarps;
    const int warp_end = begin + count * (warp + 1) / kSmallWarps;
    int strip = (warp_begin - slice.base) / slice.blocks;
    int block = warp_begin - slice.base - strip * slice.blocks;

    // What is fetched next. Blocks of two strips lie `gap` bytes apart.
    const int gap = (a.blocks - slice.blocks) * a.block_bytes;
    const std::byte* from =
        a.weights + (static_cast<std::int64_t>(strip) * a.blocks + slice.first_block + block) * a.block_bytes;
    int to_fetch = warp_end - warp_begin;
    int in_strip = slice.blocks - block;
    const auto fill = [&] {
      const int n = min(kBlocksAStage, to_fetch);
      const int here = gap == 0 ? n : min(n, in_strip);
      ring.fill(from, here * a.block_bytes, from + here * a.block_bytes + gap, (n - here) * a.block_bytes);
      from += n * a.block_bytes;
      to_fetch -= n;
      in_strip -= n;
      while (in_strip <= 0) {
        in_strip += slice.blocks;
        from += gap;
      }
    };
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) fill();
    if (segments == 0) {
      // The next kernel may come in and fetch its first weights; it waits for this one's results itself. The barrier
      // of the inputs is set up for all threads once they have met.
      pdl_launch();
      pdl_wait();
      __syncthreads();
    }
    load_slice<SETS>(a, slice, shared, inputs, sums, segments & 1u);

    WarpPieces mine;
    bool whole = block == 0;  // the strip at hand began in this warp
    const bool first_begins = whole;
    bool first = true;
    float acc[TILES][4] = {};
    float head[TILES][4] = {};
    const auto whole_slot = [&](int s) {
      return 2 * static_cast<std::size_t>(gridDim.x) + static_cast<std::size_t>(slice_index) * a.strips + s;
    };
#pragma unroll 1
    for (int at = warp_begin; at < warp_end; at += kBlocksAStage) {
      const std::byte* weights = ring.wait();
#pragma unroll 1
      for (int j = 0; j < kBlocksAStage && at + j < warp_end; ++j, weights += a.block_bytes) {
        BlockProduct<BITS, TILES, SETS> product;
        product.codes.load(weights, lane);
        uint4 b[TILES];
        product.template step<0>(a, weights, inputs + block * a.rows * 256, sums + block * SETS * a.rows, token_at,
                                 lane, b, acc);
        if (++block < slice.blocks) continue;
        // The strip ends here.
        if (!whole) {
          mine.head = strip;
          mine.head_ends = true;
#pragma unroll
          for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int i = 0; i < 4; ++i) head[t][i] = acc[t][i];
          }
        } else if (a.slices == 1) {
          finish_strip(a, shared, strip, lane, sums_of<TILES>(acc));
        } else {
          leave<TILES>(a, whole_slot(strip), lane, acc);
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0;
        block = 0;
        ++strip;
        whole = true;
        first = false;
      }
      ring.release();
      fill();
    }
    if (warp_begin < warp_end && block != 0) {
      // What is left is part of a strip; where it is all that the warp had, it is its head.
      if (first) {
        mine.head = strip;
        mine.head_begins = first_begins;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) head[t][i] = acc[t][i];
        }
      } else {
        mine.tail = strip;
      }
    }
    // The pieces of the warps take the place of the inputs, which all have read.
    __syncthreads();
    auto* pieces = reinterpret_cast<float4*>(inputs);
    if (lane == 0) shared.pieces[warp] = mine;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      if (mine.head >= 0)
        pieces[((warp * 2 + 0) * TILES + t) * 32 + lane] = make_float4(head[t][0], head[t][1], head[t][2], head[t][3]);
      if (mine.tail >= 0)
        pieces[((warp * 2 + 1) * TILES + t) * 32 + lane] = make_float4(acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
    }
    __syncthreads();
    // An earlier warp has items of this slice: then it has the first part of a strip that does not begin here.
    const bool before = warp_begin > begin;
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      const int piece = which == 0 ? mine.head : mine.tail;
      // The warp that has the first piece of a strip adds those of the warps behind it.
      if (piece < 0 || (which == 0 && !mine.head_begins && before)) continue;
      float sum[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[t][i] = which == 0 ? head[t][i] : acc[t][i];
      }
      const bool begins = which == 1 || mine.head_begins;
      bool ends = which == 0 && mine.head_ends;
#pragma unroll 1
      for (int w = warp + 1; w < kSmallWarps && !ends; ++w) {
        const WarpPieces theirs = shared.pieces[w];
        if (theirs.head != piece) continue;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          const float4 p = pieces[((w * 2 + 0) * TILES + t) * 32 + lane];
          sum[t][0] += p.x, sum[t][1] += p.y, sum[t][2] += p.z, sum[t][3] += p.w;
        }
        ends = theirs.head_ends;
      }
      if (begins && ends && a.slices == 1) {
        finish_strip(a, shared, piece, lane, sums_of<TILES>(sum));
      } else {
        const std::size_t slot =
            begins && ends ? whole_slot(piece) : 2 * static_cast<std::size_t>(blockIdx.x) + (begins ? 1 : 0);
        leave<TILES>(a, slot, lane, sum);
      }
    }
    // All pieces of this thread block are in their places, and the next slice's inputs may go where they were: those
    // come by another way than ordinary stores (the "proxy" of bulk copies), which a fence must order.
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    const int first_strip = (begin - slice.base) / slice.blocks;
    const int last_strip = (end - 1 - slice.base) / slice.blocks;
    const bool first_cut = begin != slice.base + first_strip * slice.blocks;
    const bool last_cut = end != slice.base + (last_strip + 1) * slice.blocks;
    // Each lane looks after one strip at a time, so that their tickets take the time of one.
#pragma unroll 1
    for (int base = first_strip; base <= last_strip; base += kSmallThreads) {
      const int mine_strip = base + lane * kSmallWarps + warp;
      const bool cut = (mine_strip == first_strip && first_cut) || (mine_strip == last_strip && last_cut);
      const bool left = mine_strip <= last_strip && (a.slices > 1 || cut);
      std::uint32_t complete = __ballot_sync(0xffffffffu, left && last_to_arrive(a, mine_strip));
      while (complete != 0) {
        const int bit = __ffs(static_cast<int>(complete)) - 1;
        complete &= complete - 1;
        collect<TILES>(a, shared, base + bit * kSmallWarps + warp, lane);
      }
    }
    begin = end;
    if (begin < block_end) __syncthreads();
  }
  // A thread block without work still takes part in the chain of dependencies.
  if (segments == 0) {
    pdl_launch();
    pdl_wait();
  }
}

using Kernel = void (*)(SmallRowsArgs, int);

template <int BITS, int TILES>
Kernel kernel_of_sets(int sets) {
  switch (sets) {
    case 1:
      return small_rows_kernel<BITS, TILES, 1>;
    case 2:
      return small_rows_kernel<BITS, TILES, 2>;
    case 4:
      return small_rows_kernel<BITS, TILES, 4>;
    default:
      return small_rows_kernel<BITS, TILES, 8>;
  }
}

template <int TILES>
Kernel kernel_of(int bits, int sets) {
  switch (bits) {
    case 2:
      return kernel_of_sets<2, TILES>(sets);
    case 3:
      return kernel_of_sets<3, TILES>(sets);
    case 4:
      return kernel_of_sets<4, TILES>(sets);
    default:
      return kernel_of_sets<8, TILES>(sets);
  }
}

}  // namespace

std::size_t SmallRowsPlan::workspace_bytes() const {
  return staged_bytes + pieces * static_cast<std::size_t>(tiles) * 512;
}

SmallRowsPlan plan_small_rows(const PackedLayout& layout, std::int64_t rows, int multiprocessors) {
  SmallRowsPlan plan;
  plan.tiles = rows <= 8 ? 1 : 2;
  plan.stage_blocks = layout.bits == 8 ? 1 : 2;
  const std::size_t ring = static_cast<std::size_t>(kSmallWarps * kStages * plan.stage_blocks * layout.block_bytes());
  // What the inputs of a block take: f16, and a sum a set.
  const std::size_t m = static_cast<std::size_t>(rows);
  const std::size_t block = m * kBlockInputs * 2;
  const std::size_t block_sums = m * static_cast<std::size_t>(layout.sets) * 4;
  const std::size_t warp_pieces =
      static_cast<std::size_t>(kSmallWarps) * 2 * static_cast<std::size_t>(plan.tiles) * 512;
  const std::size_t room = kSharedBytes - kFixedBytes - ring;
  const std::int64_t most = std::max<std::int64_t>(1, static_cast<std::int64_t>(room / (block + block_sums)));
  plan.slices = static_cast<int>(ceil_div(layout.blocks, most));
  plan.slice_blocks = static_cast<int>(ceil_div(layout.blocks, static_cast<std::int64_t>(plan.slices)));
  // Rounding up may leave nothing for the last.
  plan.slices = static_cast<int>(ceil_div(layout.blocks, static_cast<std::int64_t>(plan.slice_blocks)));
  plan.inputs_bytes = std::max(static_cast<std::size_t>(plan.slice_blocks) * block, warp_pieces);
  plan.shared_bytes = kFixedBytes + ring + plan.inputs_bytes + static_cast<std::size_t>(plan.slice_blocks) * block_sums;
  const std::int64_t items = layout.strips() * layout.blocks;
  // Two thread blocks a multiprocessor: with the 16 warps of both, one waits for its tensor core or shared memory while
  // another has work. A warp with less than a block of weights has nothing to do.
  plan.grid =
      static_cast<int>(std::clamp<std::int64_t>(ceil_div(items, std::int64_t{kSmallWarps}), 1, 2 * multiprocessors));
  plan.pieces =
      2 * static_cast<std::size_t>(plan.grid) +
      (plan.slices > 1 ? static_cast<std::size_t>(plan.slices) * static_cast<std::size_t>(layout.strips()) : 0);
  const StagedRows staged = staged_rows(layout, rows, nullptr);
  plan.staged_bytes =
      round_up(reinterpret_cast<std::uintptr_t>(staged.factors) + kMostTokens * sizeof(float), std::uintptr_t{256});
  return plan;
}

std::size_t small_rows_workspace(const PackedLayout& layout, std::int64_t rows, int multiprocessors) {
  return plan_small_rows(layout, rows, multiprocessors).workspace_bytes();
}

void small_rows(const PackedSite& packed, const LinearArgs& args, CudaStream& stream) {
  const PackedLayout& layout = packed.layout;
  const LinearSite& site = packed.site;
  const SmallRowsPlan plan = plan_small_rows(layout, args.rows, packed.multiprocessors);
  SmallRowsArgs a;
  a.weights = packed.weights->data();
  a.block_bytes = layout.block_bytes();
  a.blocks = static_cast<int>(layout.blocks);
  a.strips = static_cast<int>(layout.strips());
  a.zeros = layout.zeros;
  a.zero = static_cast<float>(1 << (layout.bits - 1));
  a.rows = static_cast<int>(args.rows);
  a.staged = staged_rows(layout, args.rows, args.workspace);
  a.slices = plan.slices;
  a.slice_blocks = plan.slice_blocks;
  a.quotient = a.strips * a.blocks / plan.grid;
  a.remainder = a.strips * a.blocks % plan.grid;
  a.pieces = reinterpret_cast<float*>(args.workspace + plan.staged_bytes);
  a.tickets = reinterpret_cast<std::uint32_t*>(packed.tickets->data());
  a.epilogue = site.epilogue.kind;
  a.activation = site.epilogue.activation;
  a.bias = packed.bias_data();
  a.parts = static_cast<int>(site.parts.size());
  int bias_at = 0;
  for (std::size_t i = 0; i < site.parts.size(); ++i) {
    a.first_strip[i] = layout.gated ? 0 : static_cast<int>(packed.first_strips[i]);
    a.outputs[i] = static_cast<int>(site.parts[i].out_features);
    a.bias_at[i] = bias_at;
    bias_at += a.outputs[i];
  }
  for (std::size_t i = 0; i < args.y.size(); ++i) {
    a.y[i] = args.y[i].data;
    a.y_stride[i] = args.y[i].stride;
  }
  a.y_dtype = args.y.front().dtype;
  a.residual = args.residual.data;
  a.residual_stride = args.residual.stride;
  const Kernel kernel =
      plan.tiles == 1 ? kernel_of<1>(layout.bits, layout.sets) : kernel_of<2>(layout.bits, layout.sets);
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(plan.shared_bytes)),
             "asking for shared memory");
  stage_small_rows(packed, args, a.staged, stream);
  launch(stream, dim3(static_cast<unsigned>(plan.grid)), dim3(kSmallThreads), plan.shared_bytes, Overlap::yes, kernel,
         a, static_cast<int>(plan.inputs_bytes));
}

}  // namespace nibble::gpu
