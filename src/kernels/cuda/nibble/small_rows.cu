// Products of up to 16 rows with quantised weights, norm and epilogue included, in one kernel that reads the weights
// once, at the speed of memory.
//
// Codes go to the tensor core as they are (fragments.cuh), and scale and zero point come after a set of inputs:
// sum s (q - z) x = s (sum q x - z sum x), with sums in f32.
//
// The kernel lives for some ten microseconds. While the kernel before it ends, it fills its rings with weights; what it
// does beside the weights is kept short, in instructions too, which are fetched anew each time.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/nibble/fragments.cuh"
#include "kernels/cuda/nibble/small_rows.h"
#include "kernels/cuda/nibble/stage_chunk.cuh"
#include "kernels/cuda/nibble/weight_ring.cuh"

#include <algorithm>
#include <array>
#include <bit>

namespace nibble::gpu {
namespace {

// Chunks of inputs that a lane has under way while it stages: two rounds for 16 tokens of 1280 inputs.
constexpr int kChunksAtOnce = 4;

struct Shared {
  std::uint64_t barriers[kSmallWarps][kMostStages];
  std::uint64_t inputs_barrier;
  float squares[kSmallWarps];                    // of what each warp has staged
  float all_squares[kMostCluster][kMostTokens];  // of each thread block's slice
  int2 units[kSmallWarps];                       // the first and last pair of which a warp has a piece
};
static_assert(sizeof(Shared) <= kSmallFixedBytes);

__device__ __forceinline__ void multiply_add(float (&d)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

// --- Clusters --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Stores into the shared memory of another thread block of the cluster, at the place that `here` is in this one's.
__device__ __forceinline__ std::uint32_t remote_address(const void* here, int rank) {
  std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(here));
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
#endif
  return address;
}

__device__ __forceinline__ void store_remote(const void* here, int rank, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(remote_address(here, rank)), "f"(v.x),
               "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
#endif
}

__device__ __forceinline__ void store_remote(const void* here, int rank, float v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote_address(here, rank)), "f"(v) : "memory");
#endif
}

// --- Inputs ----------------------------------------------------------------------------------------------------------

// 8 inputs as they lie in memory.
struct RawChunk {
  uint4 word[2];
};

__device__ __forceinline__ RawChunk load_raw(const SmallRowsArgs& a, std::int64_t at) {
  RawChunk out;
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

__device__ __forceinline__ void widen(const SmallRowsArgs& a, const RawChunk& raw, float (&v)[kChunkInputs]) {
  const uint4 p = raw.word[0];
  const std::uint32_t words[8] = {p.x, p.y, p.z, p.w, raw.word[1].x, raw.word[1].y, raw.word[1].z, raw.word[1].w};
  if (a.x_dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < kChunkInputs; ++i) v[i] = __uint_as_float(words[i]);
  } else {
    const bool half = a.x_dtype == DType::f16;
#pragma unroll
    for (int i = 0; i < kChunkInputs; ++i) v[i] = widen_half(words[i / 2] >> (i % 2 * 16) & 0xffffu, half);
  }
}

// What this thread block stages itself: the warps are divided among the tokens.
template <int BITS, int SETS>
__device__ __forceinline__ void stage_slice(const SmallRowsArgs& a, Shared& shared, int first_block, int blocks,
                                            std::byte* inputs, float* sums, float* factors) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int log_tokens = 32 - __clz(a.rows - 1);  // of a power of two
  const int ways = kSmallWarps >> log_tokens;
  const int token = warp >> (4 - log_tokens);
  float squares = 0;
  // A warp takes two blocks at a time.
#pragma unroll 1
  for (int pair = warp & (ways - 1); token < a.rows && 2 * pair < blocks; pair += ways * kChunksAtOnce) {
    RawChunk raw[kChunksAtOnce];
#pragma unroll
    for (int u = 0; u < kChunksAtOnce; ++u) {
      const int chunk = (pair + u * ways) * 32 + lane;
      if (chunk >= blocks * kBlockChunks) break;
      raw[u] = load_raw(a, token * a.x_stride + (first_block * kBlockChunks + chunk) * kChunkInputs);
    }
#pragma unroll
    for (int u = 0; u < kChunksAtOnce; ++u) {
      const int block = 2 * (pair + u * ways) + lane / kBlockChunks;
      if (2 * (pair + u * ways) >= blocks) break;
      const bool active = block < blocks;
      const int chunk = lane % kBlockChunks;
      float v[kChunkInputs];
      widen(a, raw[u], v);
      if (!active) {
#pragma unroll
        for (int i = 0; i < kChunkInputs; ++i) v[i] = 0;
      }
#pragma unroll
      for (int i = 0; i < kChunkInputs; ++i) squares += v[i] * v[i];
      if (a.norm_weight != nullptr && active) {
        const auto* weights = reinterpret_cast<const float4*>(
            a.norm_weight + ((first_block + block) * kBlockChunks + chunk) * kChunkInputs);
        const float4 w0 = __ldg(weights);
        const float4 w1 = __ldg(weights + 1);
        v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w, v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
      }
      stage_chunk(v, chunk, BITS, SETS, a.rows, token, active, inputs + block * 4 * staged_pair_bytes(a.rows),
                  sums + block * SETS * a.rows, factors + block * a.rows);
    }
  }
  squares = warp_sum(squares);
  if (lane == 0) shared.squares[warp] = squares;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < a.rows) {
    float sum = 0;
    for (int w = 0; w < ways; ++w) sum += shared.squares[static_cast<int>(threadIdx.x) * ways + w];
    shared.all_squares[cluster_rank()][threadIdx.x] = sum;
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
  const auto barrier = static_cast<std::uint32_t>(__cvta_generic_to_shared(&shared.inputs_barrier));
  if (threadIdx.x == 0) bulk_copy(static_cast<std::uint32_t>(__cvta_generic_to_shared(inputs)), from, bytes, barrier);
#else
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kSmallThreads * 16)
    *reinterpret_cast<uint4*>(inputs + i) = __ldcg(reinterpret_cast<const uint4*>(from + i));
#endif
  const int first = first_block * a.rows;
  for (int i = static_cast<int>(threadIdx.x); i < blocks * SETS * a.rows; i += kSmallThreads)
    sums[i] = __ldcg(a.staged.sums + first * SETS + i);
  for (int i = static_cast<int>(threadIdx.x); i < blocks * a.rows; i += kSmallThreads)
    factors[i] = __ldcg(a.staged.factors + first + i);
  if (a.norm_weight != nullptr && static_cast<int>(threadIdx.x) < a.rows) {
    float sum = 0;
    for (int part = 0; part < a.staged_parts; ++part) sum += __ldcg(a.staged.squares + part * a.rows + threadIdx.x);
    shared.all_squares[0][threadIdx.x] = sum;
  }
#if __CUDA_ARCH__ >= 900
  wait_barrier(barrier, 0);
#endif
}

// --- Products --------------------------------------------------------------------------------------------------------

// A block of weights of both strips with the staged inputs of its place: acc += f s (sum q x - z sum x).
template <int BITS, int TILES, int SETS>
struct PairProduct {
  static constexpr int kSteps = 8 / SETS;  // of a set
  LaneCodes<BITS> codes[2];
  float part[2][TILES][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part[0][t][i] = part[1][t][i] = 0;
    }
  }

  template <int STEP>
  __device__ __forceinline__ void step(const SmallRowsArgs& a, const std::byte* block, const std::byte* staged,
                                       const float* sums, const float* factors, const int (&token_at)[TILES], int lane,
                                       uint4 (&b)[TILES], float (&acc)[2][TILES][4]) {
    if constexpr (STEP < 8) {
      if constexpr (STEP % kSteps == 0) clear();
      if constexpr (STEP % 2 == 0) {
#pragma unroll
        for (int t = 0; t < TILES; ++t)
          b[t] = *reinterpret_cast<const uint4*>(staged + STEP / 2 * staged_pair_bytes(a.rows) + token_at[t]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        codes[h].template load<STEP>(block + h * a.block_bytes, lane);
        const FragmentA fragment = codes[h].template fragment<STEP>();
#pragma unroll
        for (int t = 0; t < TILES; ++t)
          multiply_add(part[h][t], fragment, STEP % 2 == 0 ? b[t].x : b[t].z, STEP % 2 == 0 ? b[t].y : b[t].w);
      }
      if constexpr (STEP % kSteps == kSteps - 1) finish_set<STEP / kSteps>(a, block, sums, factors, lane, acc);
      step<STEP + 1>(a, block, staged, sums, factors, token_at, lane, b, acc);
    }
  }

  template <int SET>
  __device__ __forceinline__ void finish_set(const SmallRowsArgs& a, const std::byte* block, const float* sums,
                                             const float* factors, int lane, float (&acc)[2][TILES][4]) {
    const int g = lane / 4;
    const int c = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::byte* at = block + h * a.block_bytes + BITS * 256;
      const float2 s = __half22float2(reinterpret_cast<const __half2*>(at)[SET * 8 + g]);
      float z0 = a.zero;
      float z1 = a.zero;
      if (a.zeros) {
        const uchar2 z = reinterpret_cast<const uchar2*>(at + SETS * 32)[SET * 8 + g];
        z0 = static_cast<float>(z.x);
        z1 = static_cast<float>(z.y);
      }
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        // Tokens past the last repeat it; nobody reads their results.
        const int first = min(8 * t + 2 * c, a.rows - 1);
        const int second = min(8 * t + 2 * c + 1, a.rows - 1);
        const float x0 = sums[SET * a.rows + first];
        const float x1 = sums[SET * a.rows + second];
        const float f0 = factors[first];
        const float f1 = factors[second];
        acc[h][t][0] += s.x * f0 * (part[h][t][0] - z0 * x0);
        acc[h][t][1] += s.x * f1 * (part[h][t][1] - z0 * x1);
        acc[h][t][2] += s.y * f0 * (part[h][t][2] - z1 * x0);
        acc[h][t][3] += s.y * f1 * (part[h][t][3] - z1 * x1);
      }
    }
  }
};

// --- Epilogue --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float read(const void* p, DType dtype, std::int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(p)[i];
  if (dtype == DType::f16) return __half2float(static_cast<const __half*>(p)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
}

__device__ __forceinline__ void write(void* p, DType dtype, std::int64_t i, float v) {
  if (dtype == DType::f32) {
    static_cast<float*>(p)[i] = v;
  } else if (dtype == DType::f16) {
    static_cast<__half*>(p)[i] = __float2half_rn(v);
  } else {
    static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(v);
  }
}

// Where the four sums of a lane in a strip's tile go. In the order of matrix D they are rows g (sums 0, 1) and g + 8
// (2, 3) of tokens `token` (0, 2) and the next.
struct Place {
  int part = 0;
  int output = 0;  // of row g; row g + 8 is 8 on, but for gates, where it is the same output's other half
  int token = 0;
  bool there[4] = {};
};

__device__ __forceinline__ Place place_of(const SmallRowsArgs& a, int strip, int tile, int lane) {
  Place p;
  const bool gated = a.epilogue == EpilogueKind::gated;
  if (!gated) {
    while (p.part + 1 < a.parts && strip >= a.first_strip[p.part + 1]) ++p.part;
  }
  p.output = gated ? strip * 8 + lane / 4 : (strip - a.first_strip[p.part]) * kStripRows + lane / 4;
  p.token = tile * 8 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    p.there[i] = strip < a.strips && p.token + i % 2 < a.rows && p.output + (gated ? 0 : i / 2 * 8) < a.outputs[p.part];
  }
  return p;
}

__device__ __forceinline__ void load_residual(const SmallRowsArgs& a, const Place& p, float (&residual)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    residual[i] = 0;
    if (a.epilogue == EpilogueKind::residual && p.there[i])
      residual[i] = read(a.residual, a.y_dtype, (p.token + i % 2) * a.residual_stride + p.output + i / 2 * 8);
  }
}

// What the norm of a token, if there is one, multiplies its sums by.
__device__ __forceinline__ float token_factor(const SmallRowsArgs& a, const Shared& shared, int token) {
  if (a.norm_weight == nullptr) return 1;
  float squares = 0;
  const int parts = a.staged.inputs != nullptr ? 1 : a.cluster;
  for (int i = 0; i < parts; ++i) squares += shared.all_squares[i][min(token, a.rows - 1)];
  return rsqrtf(squares / static_cast<float>(a.inputs) + a.norm_eps);
}

__device__ __forceinline__ void finish(const SmallRowsArgs& a, const Shared& shared, const Place& p, float4 sums,
                                       const float (&residual)[4]) {
  const float factor[2] = {token_factor(a, shared, p.token), token_factor(a, shared, p.token + 1)};
  float v[4] = {sums.x * factor[0], sums.y * factor[1], sums.z * factor[0], sums.w * factor[1]};
  if (a.epilogue == EpilogueKind::gated) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!p.there[i]) continue;
      if (a.bias != nullptr) {
        v[i] += a.bias[a.bias_at[0] + p.output];
        v[i + 2] += a.bias[a.bias_at[1] + p.output];
      }
      write(a.y[0], a.y_dtype, (p.token + i) * a.y_stride[0] + p.output, activate(a.activation, v[i]) * v[i + 2]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!p.there[i]) continue;
    const int output = p.output + i / 2 * 8;
    if (a.bias != nullptr) v[i] += a.bias[a.bias_at[p.part] + output];
    write(a.y[p.part], a.y_dtype, (p.token + i % 2) * a.y_stride[p.part] + output, v[i] + residual[i]);
  }
}

// --- The kernel ------------------------------------------------------------------------------------------------------

// What a thread block has: a slice of the inputs for the pairs of its cluster.
struct Share {
  int first_pair;
  int pairs;
  int first_block;
  int blocks;
  __device__ int items() const { return pairs * blocks; }
  __device__ int begin_of(int warp) const { return items() * warp / kSmallWarps; }
  __device__ int warp_of(int item) const { return ((item + 1) * kSmallWarps - 1) / items(); }
};

template <int BITS, int TILES, int SETS>
__global__ __launch_bounds__(kSmallThreads, 1) void small_rows_kernel(const __grid_constant__ SmallRowsArgs a) {
  extern __shared__ __align__(128) std::byte memory[];
  constexpr int kPieceBytes = 2 * TILES * 512;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int ring_bytes = a.stages * 2 * a.block_bytes;
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  std::byte* rings = memory + kSmallFixedBytes;
  std::byte* inputs = rings + kSmallWarps * ring_bytes;
  auto* sums = reinterpret_cast<float*>(inputs + a.inputs_bytes);
  std::byte* slots = inputs + a.inputs_bytes + a.sums_bytes;

  const int rank = cluster_rank();
  const int cluster = static_cast<int>(blockIdx.x) / a.cluster;
  const int all_pairs = (a.strips + 1) / 2;
  Share share;
  share.first_pair = all_pairs * cluster / a.clusters;
  share.pairs = all_pairs * (cluster + 1) / a.clusters - share.first_pair;
  share.first_block = a.blocks * rank / a.cluster;
  share.blocks = a.blocks * (rank + 1) / a.cluster - share.first_block;
  float* factors = sums + share.blocks * SETS * a.rows;

  const int begin = share.begin_of(warp);
  const int end = share.begin_of(warp + 1);
  int pair = begin / share.blocks;  // of this thread block's
  int block = begin - pair * share.blocks;
  WeightRing ring(rings + warp * ring_bytes, shared.barriers[warp], a.stages, a.block_bytes, lane);
  if (threadIdx.x == 0) init_barrier(static_cast<std::uint32_t>(__cvta_generic_to_shared(&shared.inputs_barrier)));

  // What is fetched next.
  const std::int64_t strip_bytes = static_cast<std::int64_t>(a.blocks) * a.block_bytes;
  int fetch_pair = share.first_pair + pair;
  int fetch_block = share.first_block + block;
  int to_fetch = end - begin;
  const auto fill = [&] {
    const std::byte* from =
        a.weights + 2 * fetch_pair * strip_bytes + static_cast<std::int64_t>(fetch_block) * a.block_bytes;
    // The last pair may have one strip, which is then there twice.
    ring.fill(from, 2 * fetch_pair + 1 < a.strips ? from + strip_bytes : from, to_fetch > 0);
    --to_fetch;
    if (++fetch_block == share.first_block + share.blocks) {
      fetch_block = share.first_block;
      ++fetch_pair;
    }
  };
#pragma unroll 1
  for (int i = 0; i < a.stages; ++i) fill();
  if (lane == 0) shared.units[warp] = make_int2(pair, end > begin ? (end - 1) / share.blocks : -1);
  if (a.norm_weight != nullptr && a.staged.inputs == nullptr) {
    for (int i = static_cast<int>(threadIdx.x) * 32; i < share.blocks * kBlockInputs; i += kSmallThreads * 32)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm_weight + share.first_block * kBlockInputs + i));
  }
  // The next kernel may come in and fetch its first weights; it waits for this one's results itself.
  pdl_launch();
  pdl_wait();
  if (a.staged.inputs != nullptr) {
    __syncthreads();  // the barrier is set up
    load_slice<SETS>(a, shared, share.first_block, share.blocks, inputs, sums, factors);
  } else {
    stage_slice<BITS, SETS>(a, shared, share.first_block, share.blocks, inputs, sums, factors);
  }
  __syncthreads();

  int token_at[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) token_at[t] = min(8 * t + lane / 4, a.rows - 1) * 64 + lane % 4 * 16;
  float acc[2][TILES][4] = {};
  // A lane's sums of strip h and tile t lie at (h * TILES + t) * 512 + lane * 16 of a piece.
  const auto leave = [&](std::byte* piece) {
#pragma unroll
    for (int i = 0; i < 2 * TILES; ++i) {
      float(&v)[4] = acc[i / TILES][i % TILES];
      *reinterpret_cast<float4*>(piece + i * 512 + lane * 16) = make_float4(v[0], v[1], v[2], v[3]);
      v[0] = v[1] = v[2] = v[3] = 0;
    }
  };
  std::byte* slot = slots + warp * a.slots * kPieceBytes;
#pragma unroll 1
  for (int item = begin; item < end; ++item) {
    const std::byte* weights = ring.wait();
    PairProduct<BITS, TILES, SETS> product;
    uint4 b[TILES];
    product.template step<0>(a, weights, inputs + block * 4 * staged_pair_bytes(a.rows), sums + block * SETS * a.rows,
                             factors + block * a.rows, token_at, lane, b, acc);
    ring.release();
    fill();
    if (++block == share.blocks && item + 1 < end) {
      leave(slot);
      slot += kPieceBytes;
      block = 0;
    }
  }
  // The ring has nothing under way any more: its memory takes the last piece.
  if (end > begin) leave(rings + warp * ring_bytes);

  __syncthreads();
  // Groups of 32 lanes' sums: strips of pairs, tiles of strips.
  const int groups = share.pairs * 2 * TILES;
  const auto sum_of_warps = [&](int group) {
    const int at = group / (2 * TILES);
    const int first = share.warp_of(at * share.blocks);
    const int last = share.warp_of((at + 1) * share.blocks - 1);
    float4 sum = make_float4(0, 0, 0, 0);
    for (int w = first; w <= last; ++w) {
      const int2 units = shared.units[w];
      if (at > units.y) continue;  // it has nothing
      const std::byte* piece =
          at == units.y ? rings + w * ring_bytes : slots + (w * a.slots + at - units.x) * kPieceBytes;
      const float4 v = *reinterpret_cast<const float4*>(piece + group % (2 * TILES) * 512 + lane * 16);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
  };
  const auto place = [&](int group) {
    return place_of(a, 2 * (share.first_pair + group / (2 * TILES)) + group / TILES % 2, group % TILES, lane);
  };
  if (a.cluster == 1) {
    for (int group = warp; group < groups; group += kSmallWarps) {
      const Place p = place(group);
      float residual[4];
      load_residual(a, p, residual);
      finish(a, shared, p, sum_of_warps(group), residual);
    }
    return;
  }
  // Each thread block finishes every cluster-th group. All have read their inputs: the pieces of the others go there.
  cluster_arrive();
  const int own = (groups + a.cluster - 1) / a.cluster;
  cluster_wait();
  for (int group = warp; group < groups; group += kSmallWarps)
    store_remote(inputs + ((rank * own + group / a.cluster) * 32 + lane) * 16, group % a.cluster, sum_of_warps(group));
  if (a.norm_weight != nullptr && a.staged.inputs == nullptr &&
      static_cast<int>(threadIdx.x) < a.cluster * kMostTokens) {
    const float* squares = &shared.all_squares[rank][threadIdx.x % kMostTokens];
    store_remote(squares, static_cast<int>(threadIdx.x) / kMostTokens, *squares);
  }
  cluster_arrive();
  float residual[4];
  Place p = place(warp * a.cluster + rank);
  load_residual(a, p, residual);
  cluster_wait();
  for (int i = warp; i * a.cluster + rank < groups; i += kSmallWarps) {
    if (i != warp) {
      p = place(i * a.cluster + rank);
      load_residual(a, p, residual);
    }
    float4 sum = make_float4(0, 0, 0, 0);
    for (int r = 0; r < a.cluster; ++r) {
      const float4 v = *reinterpret_cast<const float4*>(inputs + ((r * own + i) * 32 + lane) * 16);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    finish(a, shared, p, sum, residual);
  }
}

using Kernel = void (*)(SmallRowsArgs);

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

Kernel kernel_of(const PackedLayout& layout, int tiles) {
  return tiles == 1 ? kernel_of<1>(layout.bits, layout.sets) : kernel_of<2>(layout.bits, layout.sets);
}

cudaLaunchConfig_t cluster_config(int cluster, int clusters, std::size_t shared_bytes, cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster * clusters));
  config.blockDim = dim3(kSmallThreads);
  config.dynamicSmemBytes = shared_bytes;
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

void allow_shared(Kernel kernel, std::size_t bytes) {
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "asking for shared memory");
}

}  // namespace

SmallRowsDevice small_rows_device() {
  SmallRowsDevice out;
  int index = 0;
  check_cuda(cudaGetDevice(&index), "asking for the current GPU");
  int multiprocessors = 0;
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index),
             "counting multiprocessors");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index),
             "asking for what the GPU can do");
  check_cuda(cudaDeviceGetAttribute(&out.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
             "asking for shared memory");
  out.clusters[0] = multiprocessors;
  if (major < 9) return out;
  const Kernel kernel = small_rows_kernel<4, 1, 1>;
  allow_shared(kernel, static_cast<std::size_t>(out.shared_bytes));
  for (int i = 1; i < static_cast<int>(out.clusters.size()); ++i) {
    cudaLaunchAttribute attribute{};
    const cudaLaunchConfig_t config = cluster_config(1 << i, 1, static_cast<std::size_t>(out.shared_bytes), &attribute);
    check_cuda(cudaOccupancyMaxActiveClusters(&out.clusters[static_cast<std::size_t>(i)], kernel, &config),
               "counting clusters");
  }
  return out;
}

void small_rows(const PackedSite& packed, const LinearArgs& args, CudaStream& stream) {
  const PackedLayout& layout = packed.layout;
  const LinearSite& site = packed.site;
  const SmallRowsPlan plan = plan_small_rows(layout, args.rows, packed.small_rows_device);
  SmallRowsArgs a;
  a.weights = packed.weights->data();
  a.block_bytes = layout.block_bytes();
  a.blocks = static_cast<int>(layout.blocks);
  a.strips = static_cast<int>(layout.strips());
  a.zeros = layout.zeros;
  a.zero = static_cast<float>(1 << (layout.bits - 1));
  a.rows = static_cast<int>(args.rows);
  a.x = args.x.data;
  a.x_dtype = args.x.dtype;
  a.x_stride = args.x.stride;
  a.inputs = static_cast<int>(layout.inputs);
  if (site.prologue.kind == PrologueKind::rms_norm) {
    a.norm_weight = args.norm_weight;
    a.norm_eps = site.prologue.eps;
  }
  const bool direct = packed.order_data() == nullptr && layout.packed_inputs() == layout.inputs &&
                      reinterpret_cast<std::uintptr_t>(args.x.data) % 16 == 0 &&
                      static_cast<std::size_t>(args.x.stride) * bytes_of(args.x.dtype) % 16 == 0;
  if (!direct) {
    a.staged = staged_rows(layout, args.rows, args.workspace);
    a.staged_parts = stage_parts(layout);
    stage_small_rows(packed, args, a.staged, stream);
  }
  a.cluster = plan.cluster;
  a.clusters = plan.clusters;
  a.stages = plan.stages;
  a.slots = plan.slots;
  a.inputs_bytes = static_cast<int>(plan.inputs_bytes);
  a.sums_bytes = static_cast<int>(plan.sums_bytes);
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
  const Kernel kernel = kernel_of(layout, plan.tiles);
  allow_shared(kernel, plan.shared_bytes);
  std::array<cudaLaunchAttribute, 2> attributes{};
  cudaLaunchConfig_t config = cluster_config(plan.cluster, plan.clusters, plan.shared_bytes, attributes.data());
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  // A GPU without clusters is not to be asked for one of 1.
  const bool clustered = plan.cluster > 1;
  config.attrs = attributes.data() + (clustered ? 0 : 1);
  config.numAttrs = (clustered ? 1u : 0u) + (stream.overlaps() ? 1u : 0u);
  config.stream = stream.handle();
  check_cuda(cudaLaunchKernelEx(&config, kernel, a), "launching a product of few rows");
}

}  // namespace nibble::gpu
