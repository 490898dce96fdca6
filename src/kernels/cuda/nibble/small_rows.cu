// Products of up to 16 rows with quantised weights, norm and epilogue included, in one kernel that reads the weights
// once, at the speed of memory.
//
// Codes go to the tensor core as they are (fragments.cuh), and scale and zero point come after a set of inputs:
// sum s (q - z) x = s (sum q x - z sum x), with sums in f32.
//
// The kernel lives for some ten microseconds. While the kernel before it ends, it fills its rings with weights; what it
// does beside the weights is kept short, in instructions too, which are fetched anew each time.
#include "core/checked.h"
#include "core/cuda/cluster.cuh"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/nibble/fragments.cuh"
#include "kernels/cuda/nibble/small_rows.h"
#include "kernels/cuda/nibble/stage_slice.cuh"
#include "kernels/cuda/nibble/weight_ring.cuh"

#include <algorithm>
#include <array>
#include <bit>

namespace nibble::gpu {
namespace {

__device__ __forceinline__ void multiply_add(float (&d)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
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
        codes[h].template load<STEP>(block + h * a.shares.block_bytes, lane);
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
      const std::byte* at = block + h * a.shares.block_bytes + BITS * 256;
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
        // Of tokens past the last anything may stand here; nobody reads their results.
        const float2 x = *reinterpret_cast<const float2*>(sums + SET * 8 * TILES + 8 * t + 2 * c);
        const float2 f = *reinterpret_cast<const float2*>(factors + 8 * t + 2 * c);
        acc[h][t][0] += s.x * f.x * (part[h][t][0] - z0 * x.x);
        acc[h][t][1] += s.x * f.y * (part[h][t][1] - z0 * x.y);
        acc[h][t][2] += s.y * f.x * (part[h][t][2] - z1 * x.x);
        acc[h][t][3] += s.y * f.y * (part[h][t][3] - z1 * x.y);
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
  } else {
    static_cast<std::uint16_t*>(p)[i] =
        dtype == DType::f16 ? __half_as_ushort(__float2half_rn(v)) : __bfloat16_as_ushort(__float2bfloat16_rn(v));
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

// Where the copies of outputs `p.output` and the one 8 on go.
__device__ __forceinline__ int2 load_places(const SmallRowsArgs& a, const Place& p) {
  int2 out = make_int2(0, 0);
  if (a.copy == nullptr) return out;
  if (p.there[0]) out.x = a.places[p.output];
  if (p.there[2]) out.y = a.places[p.output + 8];
  return out;
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
  const int parts = a.staged.inputs != nullptr ? 1 : 1 << a.shares.log_cluster;
#pragma unroll 1
  for (int i = 0; i < parts; ++i) squares += shared.all_squares[i][min(token, a.rows - 1)];
  return rsqrtf(squares / static_cast<float>(a.inputs) + a.norm_eps);
}

__device__ __forceinline__ void finish(const SmallRowsArgs& a, const Shared& shared, const Place& p, float4 sums,
                                       const float (&residual)[4], int2 places) {
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
    v[i] += residual[i];
    write(a.y[p.part], a.y_dtype, (p.token + i % 2) * a.y_stride[p.part] + output, v[i]);
    if (a.copy != nullptr)
      a.copy[(p.token + i % 2) * static_cast<std::int64_t>(a.outputs[0]) + (i < 2 ? places.x : places.y)] = v[i];
  }
}

// --- The kernel ------------------------------------------------------------------------------------------------------

// What a warp has of its thread block's share: a slice of the inputs for the pairs of its cluster. `pair` and `block`
// count in it.
struct WarpShare {
  int rank;  // of the thread block in its cluster
  int first_pair;
  int pairs;
  int first_block;
  int blocks;
  int begin;  // the items of this warp
  int end;
  int pair;
  int block;

  __device__ __forceinline__ WarpShare(const WeightShares& s, int thread_block, int warp) {
    rank = thread_block & ((1 << s.log_cluster) - 1);
    const int cluster = thread_block >> s.log_cluster;
    first_pair = cluster * s.cluster_pairs + min(cluster, s.longer_clusters);
    pairs = s.cluster_pairs + (cluster < s.longer_clusters ? 1 : 0);
    first_block = rank * s.slice_blocks + min(rank, s.longer_slices);
    blocks = s.slice_blocks + (rank < s.longer_slices ? 1 : 0);
    begin = pairs * blocks * warp / kSmallWarps;
    end = pairs * blocks * (warp + 1) / kSmallWarps;
    pair = begin / blocks;
    block = begin - pair * blocks;
  }

  __device__ __forceinline__ const std::byte* first_item(const WeightShares& s) const {
    return s.weights +
           (static_cast<std::int64_t>(first_pair + pair) * s.blocks + first_block + block) * (2 * s.block_bytes);
  }
};

// RESIDENT: thread blocks for which a multiprocessor is to have registers; see SmallRowsPlan.
template <int BITS, int TILES, int SETS, int RESIDENT = 1>
__global__ __launch_bounds__(kSmallThreads, RESIDENT) void small_rows_kernel(const __grid_constant__ SmallRowsArgs a) {
  extern __shared__ __align__(128) std::byte memory[];
  constexpr int kPieceBytes = 2 * TILES * 512;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int item_bytes = 2 * a.shares.block_bytes;
  const int ring_bytes = a.stages * item_bytes;
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  std::byte* rings = memory + kSmallFixedBytes;
  std::byte* inputs = rings + kSmallWarps * ring_bytes;
  auto* sums = reinterpret_cast<float*>(inputs + a.inputs_bytes);
  std::byte* slots = inputs + a.inputs_bytes + a.sums_bytes;
  // [thread block of the cluster][group] 32 lanes of float4
  std::byte* received = a.overlaid ? inputs : slots + a.slots_bytes;
  const Tables tables(a, memory + a.tables_at);
  // Barriers are many, so each thread sets up one of them.
  if (threadIdx.x < kSmallWarps * kMostStages + 2) init_barrier(shared_address(&shared.rings[0][0] + threadIdx.x));
  __syncthreads();

  const WarpShare share(a.shares, static_cast<int>(blockIdx.x), warp);
  const int rank = share.rank;
  const int first_pair = share.first_pair;
  const int pairs = share.pairs;
  const int first_block = share.first_block;
  const int blocks = share.blocks;
  const int begin = share.begin;
  const int end = share.end;
  int pair = share.pair;
  int block = share.block;
  float* factors = sums + blocks * SETS * 8 * TILES;

  WeightRing ring(rings + warp * ring_bytes, shared.rings[warp], a.stages, item_bytes, lane);
  const std::byte* from = share.first_item(a.shares);
  int in_pair = blocks - block;
  const auto fill = [&](int item) {
    ring.fill(from, item < end);
    from += item_bytes;
    if (--in_pair == 0) {
      in_pair = blocks;
      from += (a.shares.blocks - blocks) * item_bytes;
    }
  };
  const bool stages_itself = a.staged.inputs == nullptr;
  if (stages_itself) tables.ask(a, first_block, blocks);
#pragma unroll 1
  for (int i = 0; i < a.early_stages; ++i) fill(begin + i);
  // The groups of 32 lanes' sums, strips of pairs and tiles of strips, of which the cluster's thread blocks finish one
  // in turn.
  const int groups = pairs * 2 * TILES;
  const int log = a.shares.log_cluster;
  if (log > 0) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      const int own = (groups - rank + (1 << log) - 1) >> log;
      const int norms = a.norm_weight != nullptr && stages_itself ? a.rows * 4 : 0;
      expect_bytes(shared_address(&shared.pieces), (own * 512 + norms) << log);
    }
#endif
    if (!a.overlaid) cluster_arrive();
  }
  if (log > 0 && !a.overlaid) cluster_wait();
  pdl_wait();
  // The next kernel may come in and fetch its first weights; it waits for this one's results itself. Where it finds
  // room at once, its weights must not stand before this one's inputs in the memory's queues.
  if constexpr (RESIDENT == 1) pdl_launch();
  const auto fill_up = [&] {
#pragma unroll 1
    for (int i = a.early_stages; i < a.stages; ++i) fill(begin + i);
  };
  if (stages_itself) {
    stage_slice<BITS, TILES, SETS>(a, shared, tables, first_block, blocks, inputs, sums, factors, fill_up);
  } else {
    load_slice<SETS>(a, shared, first_block, blocks, inputs, sums, factors);
    fill_up();
  }
  __syncthreads();
  if constexpr (RESIDENT > 1) pdl_launch();

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
    }
  };
  if (lane == 0) shared.first_pair[warp] = pair;
#pragma unroll 1
  for (int item = begin; item < end; ++item) {
    if (block == 0 && lane == 0) shared.first_warp[pair] = static_cast<std::uint8_t>(warp);
    const std::byte* weights = ring.wait();
    PairProduct<BITS, TILES, SETS> product;
    uint4 b[TILES];
    product.template step<0>(a, weights, inputs + block * 4 * staged_pair_bytes(a.rows),
                             sums + block * SETS * 8 * TILES, factors + block * 8 * TILES, token_at, lane, b, acc);
    ring.release();
    fill(item + a.stages);
    if (++block == blocks) {
      if (lane == 0) shared.last_warp[pair] = static_cast<std::uint8_t>(warp);
      if (item + 1 == end) break;
      block = 0;
      leave(slots + (warp * a.slots + pair - shared.first_pair[warp]) * kPieceBytes);
      ++pair;
#pragma unroll
      for (int i = 0; i < 2 * TILES; ++i)
        acc[i / TILES][i % TILES][0] = acc[i / TILES][i % TILES][1] = acc[i / TILES][i % TILES][2] =
            acc[i / TILES][i % TILES][3] = 0;
    }
  }
  // The ring has nothing under way any more: its memory takes the last piece.
  if (end > begin) leave(rings + warp * ring_bytes);
  if (lane == 0) shared.last_pair[warp] = end > begin ? pair : -1;

  __syncthreads();
  // Where what is sent goes to the inputs' place, nobody sends before the others have read those.
  if (log > 0 && a.overlaid) {
    cluster_arrive();
    cluster_wait();
  }
#pragma unroll 1
  for (int group = warp; group < groups; group += kSmallWarps) {
    const int at = group / (2 * TILES);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int w = shared.first_warp[at]; w <= shared.last_warp[at]; ++w) {
      const int last = shared.last_pair[w];
      if (at > last) continue;  // it has nothing
      const std::byte* piece =
          at == last ? rings + w * ring_bytes : slots + (w * a.slots + at - shared.first_pair[w]) * kPieceBytes;
      const float4 v = *reinterpret_cast<const float4*>(piece + group % (2 * TILES) * 512 + lane * 16);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    std::byte* to = received + ((rank * a.groups + (group >> log)) * 32 + lane) * 16;
    if (log > 0) {
      send(to, group & ((1 << log) - 1), &shared.pieces, sum);
    } else {
      *reinterpret_cast<float4*>(to) = sum;  // for this lane itself
    }
  }
  if (log > 0 && a.norm_weight != nullptr && stages_itself && static_cast<int>(threadIdx.x) < kMostTokens << log &&
      static_cast<int>(threadIdx.x) % kMostTokens < a.rows) {
    const float* squares = &shared.all_squares[rank][threadIdx.x % kMostTokens];
    send(squares, static_cast<int>(threadIdx.x) / kMostTokens, &shared.pieces, *squares);
  }
#pragma unroll 1
  for (int i = warp; (i << log) + rank < groups; i += kSmallWarps) {
    const int group = (i << log) + rank;
    const Place p = place_of(a, 2 * (first_pair + group / (2 * TILES)) + group / TILES % 2, group % TILES, lane);
    float residual[4];
    load_residual(a, p, residual);
    const int2 places = load_places(a, p);
#if __CUDA_ARCH__ >= 900
    if (log > 0) wait_barrier(shared_address(&shared.pieces), 0);
#endif
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int r = 0; r < 1 << log; ++r) {
      const float4 v = *reinterpret_cast<const float4*>(received + ((r * a.groups + i) * 32 + lane) * 16);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    finish(a, shared, p, sum, residual, places);
  }
#if __CUDA_ARCH__ >= 900
  // What is on its way here must not find the memory another's.
  if (log > 0) wait_barrier(shared_address(&shared.pieces), 0);
#endif
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

Kernel kernel_of(const PackedLayout& layout, const SmallRowsPlan& plan) {
  if (plan.resident == 2) return small_rows_kernel<kResidentBits, 1, kResidentSets, 2>;
  return plan.tiles == 1 ? kernel_of<1>(layout.bits, layout.sets) : kernel_of<2>(layout.bits, layout.sets);
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
  int all_shared = 0;
  int reserved = 0;  // of each thread block
  check_cuda(cudaDeviceGetAttribute(&all_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index),
             "asking for shared memory");
  check_cuda(cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, index),
             "asking for shared memory");
  out.half_shared_bytes = all_shared / 2 - reserved;
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

namespace {

WeightShares shares_of(const PackedSite& packed, const SmallRowsPlan& plan) {
  const PackedLayout& layout = packed.layout;
  const auto pairs = static_cast<int>(layout.pairs());
  const auto blocks = static_cast<int>(layout.blocks);
  WeightShares out;
  out.weights = packed.weights->data();
  out.block_bytes = layout.block_bytes();
  out.blocks = blocks;
  out.log_cluster = std::countr_zero(static_cast<unsigned>(plan.cluster));
  out.clusters = plan.clusters;
  out.cluster_pairs = pairs / plan.clusters;
  out.longer_clusters = pairs % plan.clusters;
  out.slice_blocks = blocks / plan.cluster;
  out.longer_slices = blocks % plan.cluster;
  return out;
}

}  // namespace

void small_rows(const PackedSite& packed, const LinearArgs& call, std::int64_t first_row, CudaStream& stream) {
  const PackedLayout& layout = packed.layout;
  const LinearSite& site = packed.site;
  const bool norm = site.prologue.kind == PrologueKind::rms_norm;
  LinearArgs args = call;
  if (packed.copy_from != nullptr) {
    const float* copy = packed.copy_from + first_row * layout.inputs;
    args.x = {const_cast<float*>(copy), DType::f32, args.rows, layout.inputs, layout.inputs};
    if (norm) args.norm_weight = reinterpret_cast<const float*>(packed.ordered_norm->data());
  }
  const std::int64_t row_bytes = layout.inputs * static_cast<std::int64_t>(bytes_of(args.x.dtype));
  const bool aligned = reinterpret_cast<std::uintptr_t>(args.x.data) % 16 == 0 && row_bytes % 16 == 0 &&
                       static_cast<std::size_t>(args.x.stride) * bytes_of(args.x.dtype) % 16 == 0;
  const bool ordered = packed.order_data() != nullptr && packed.copy_from == nullptr;
  const SmallRowsPlan plan =
      plan_small_rows(layout, args.rows, packed.small_rows_device,
                      {norm, site.epilogue.kind == EpilogueKind::residual, ordered && aligned ? row_bytes : 0});
  SmallRowsArgs a;
  a.shares = shares_of(packed, plan);
  a.strips = static_cast<int>(layout.strips());
  a.zeros = layout.zeros;
  a.zero = static_cast<float>(1 << (layout.bits - 1));
  a.rows = static_cast<int>(args.rows);
  a.x = args.x.data;
  a.x_dtype = args.x.dtype;
  a.x_stride = args.x.stride;
  a.inputs = static_cast<int>(layout.inputs);
  if (norm) {
    a.norm_weight = args.norm_weight;
    a.norm_eps = site.prologue.eps;
  }
  if (ordered ? plan.picks : aligned && layout.packed_inputs() == layout.inputs) {
    a.order = ordered ? packed.order_data() : nullptr;
  } else {
    a.staged = staged_rows(layout, args.rows, args.workspace);
    a.staged_parts = stage_parts(layout);
    stage_small_rows(packed, args, a.staged, stream);
  }
  a.row_bytes = static_cast<int>(row_bytes);
  a.slice_inputs = plan.slice_inputs;
  a.norm_inputs = !norm ? 0 : a.order != nullptr ? a.inputs : plan.slice_inputs;
  a.tables_at = static_cast<int>(plan.tables_at);
  a.stages = plan.stages;
  a.early_stages = plan.early_stages;
  a.slots = plan.slots;
  a.groups = plan.groups;
  a.inputs_bytes = static_cast<int>(plan.inputs_bytes);
  a.sums_bytes = static_cast<int>(plan.sums_bytes);
  a.slots_bytes = static_cast<int>(plan.slots_bytes);
  a.overlaid = plan.overlaid;
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
  if (packed.copy_to != nullptr) {
    a.copy = packed.copy_to + first_row * site.out_features();
    a.places = reinterpret_cast<const std::int32_t*>(packed.places->data());
  }
  const Kernel kernel = kernel_of(layout, plan);
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
