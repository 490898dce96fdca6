// A persistent, warp-specialised product for Hopper: one warp copies tiles of x and w (TMA, a ring of stages guarded by
// barriers), two warpgroups multiply 64 rows each (wgmma) and finish their part by themselves, so that one of them can
// still multiply while the other computes activations and stores. Tiles of 256 columns are shared by two blocks of a
// cluster; sums over k may be divided among the blocks of a cluster, which then add up through shared memory.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation_16.cuh"
#include "kernels/cuda/tile_gemm.h"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <algorithm>
#include <array>

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble {
namespace {

constexpr int kRows = 128;  // of a tile
constexpr int kDepth = 64;  // elements of k a step: 128 bytes, the width of the swizzle
constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kMultiplyWarps = 4 * kGroups;
constexpr int kThreads = 32 * (kMultiplyWarps + 1);
constexpr int kXBytes = kRows * kDepth * 2;
constexpr int kChunk = 32;        // columns of a warp's rows that are rearranged at a time
constexpr int kChunkStride = 40;  // 80 bytes: eight rows lie in different banks
constexpr int kChunkBytes = 16 * kChunkStride * 2;
constexpr int kSumStride = 68;  // floats of a row of sums that blocks exchange
constexpr int kMostSplit = 8;

template <int kColumns>
struct Shape {
  static constexpr int kShare = kColumns == 256 ? 2 : 1;  // blocks of a cluster that share tiles of w
  static constexpr int kStages = kColumns == 256 ? 4 : kColumns == 128 ? 6 : 8;
  static constexpr int kWBytes = kColumns * kDepth * 2;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kChunks = kStages * kStageBytes;  // where the warps' chunks begin
  static constexpr int kBarriers = kChunks + kMultiplyWarps * kChunkBytes;
  static constexpr int kAlign = 1024;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8 + kAlign;
};

// What the epilogue computes of x: x, gelu(x), x * sigmoid(u), 2 * sigmoid(u) - 1 with u = x * (linear + cubic * x^2),
// or max(x, 0).
enum class Form { identity, gelu, sigmoid, tanh, relu };

struct Parameters {
  void* y = nullptr;
  std::int64_t y_stride = 0;
  const void* bias = nullptr;
  Form form = Form::identity;
  float linear = 0, cubic = 0;  // of Form::sigmoid and Form::tanh
  int m = 0;
  int n = 0;
  int steps = 0;    // of k
  int columns = 0;  // tiles side by side
  int tiles = 0;    // that clusters take in turn: where blocks share, two tiles one below the other count as one
  int split = 1;
};

struct Identity {
  __device__ __forceinline__ float operator()(float x) const { return x; }
};

struct Gelu {
  __device__ __forceinline__ float operator()(float x) const { return short_gelu(x); }
};

struct OtherActivation {
  Form form;
  float linear;
  float cubic;
  __device__ __forceinline__ float operator()(float x) const {
    const float s = __fdividef(1.0f, 1.0f + __expf(-x * fmaf(cubic, x * x, linear)));
    return form == Form::sigmoid ? x * s : form == Form::tanh ? 2 * s - 1 : fmaxf(x, 0.0f);
  }
};

__device__ __forceinline__ unsigned pair_of(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ __forceinline__ unsigned pair_of(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

__device__ __forceinline__ void store_matrices(std::uint32_t to, unsigned a, unsigned b, unsigned c, unsigned d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

__device__ __forceinline__ float4 load_in_cluster(std::uint32_t from) {
  float4 out;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
               : "r"(from)
               : "memory");
  return out;
}

template <typename T, int kColumns>
class Product {
  using S = Shape<kColumns>;
  static constexpr int kSums = kColumns / 2;  // of a thread

 public:
  __device__ Product(const Parameters& p, std::uint32_t shared) : p_(p), shared_(shared) {}

  __device__ void init() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kMultiplyWarps * S::kShare);
    }
    barriers_ready();
  }

  __device__ bool copies() const { return warp() == kMultiplyWarps; }

  // The copying thread. Weights are constant: the first stages' come before the kernels ahead have ended.
  __device__ void copy(const CUtensorMap* x, const CUtensorMap* w) const {
    const int ahead = min(S::kStages, last_step() - first_step());
    const int first = static_cast<int>(blockIdx.x) / cluster();
    const int clusters = static_cast<int>(gridDim.x) / cluster();
    for (int i = 0; i < ahead; ++i) {
      barrier_expect(full(i), S::kStageBytes);
      copy_w(w, i, first, first_step() + i);
    }
    pdl_wait();
    for (int i = 0; i < ahead; ++i) copy_x(x, i, first, first_step() + i);
    int done = ahead;
    for (int tile = first; tile < p_.tiles; tile += clusters) {
      for (int step = first_step() + (tile == first ? ahead : 0); step < last_step(); ++step, ++done) {
        const int stage = done % S::kStages;
        barrier_wait(empty(stage), (done / S::kStages & 1) ^ 1);
        barrier_expect(full(stage), S::kStageBytes);
        copy_w(w, stage, tile, step);
        copy_x(x, stage, tile, step);
      }
    }
  }

  __device__ void multiply() {
    const int clusters = static_cast<int>(gridDim.x) / cluster();
    const int group = warp() / 4;
    int done = 0;
    for (int tile = static_cast<int>(blockIdx.x) / cluster(); tile < p_.tiles; tile += clusters) {
      float sums[kSums];
      fetch_bias(tile);
      for (int step = first_step(); step < last_step(); ++step, ++done) {
        const int stage = done % S::kStages;
        barrier_wait(full(stage), done / S::kStages & 1);
        const std::uint64_t x = wgmma_operand(stage_at(stage) + group * (kXBytes / kGroups));
        const std::uint64_t w = wgmma_operand(stage_at(stage) + kXBytes);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < kDepth / 16; ++i)
          wgmma<T, kColumns>(sums, x + 2 * i, w + 2 * i, step > first_step() || i > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (step > first_step()) release((done - 1) % S::kStages);
      }
      wgmma_wait<0>();
      release((done - 1) % S::kStages);
      if (split() > 1) {
        hand_over(sums);
      } else {
        with_activation([&](const auto& activation) { finish(sums, tile, activation); });
      }
    }
  }

  // This block's rows of a tile whose sums the blocks of its cluster have each a part of.
  __device__ void add_up() const {
    with_activation([&](const auto& activation) { add_up(activation); });
  }

 private:
  template <typename Body>
  __device__ __forceinline__ void with_activation(const Body& body) const {
    if (p_.form == Form::identity) {
      body(Identity{});
    } else if (p_.form == Form::gelu) {
      body(Gelu{});
    } else {
      body(OtherActivation{p_.form, p_.linear, p_.cubic});
    }
  }

  // Computed where they are needed: registers are for sums.
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ int split() const { return kColumns == 64 ? p_.split : 1; }
  __device__ __forceinline__ int cluster() const { return S::kShare > 1 ? S::kShare : split(); }  // blocks
  __device__ __forceinline__ int rank() const { return cluster() > 1 ? static_cast<int>(cluster_rank()) : 0; }
  __device__ __forceinline__ int first_step() const { return split() > 1 ? p_.steps * rank() / split() : 0; }
  __device__ __forceinline__ int last_step() const {
    return split() > 1 ? p_.steps * (rank() + 1) / split() : p_.steps;
  }

  __device__ std::uint32_t full(int stage) const { return shared_ + S::kBarriers + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ std::uint32_t stage_at(int stage) const { return shared_ + stage * S::kStageBytes; }
  __device__ int row_of(int tile) const {
    return (tile / p_.columns * S::kShare + (S::kShare > 1 ? rank() : 0)) * kRows;
  }
  __device__ int column_of(int tile) const { return tile % p_.columns * kColumns; }

  __device__ void copy_x(const CUtensorMap* x, int stage, int tile, int step) const {
    copy_tile(stage_at(stage), x, full(stage), step * kDepth, row_of(tile));
  }

  __device__ void copy_w(const CUtensorMap* w, int stage, int tile, int step) const {
    const std::uint32_t to = stage_at(stage) + kXBytes;
    if constexpr (S::kShare == 1) {
      copy_tile(to, w, full(stage), step * kDepth, column_of(tile));
    } else {
      constexpr int kPart = kColumns / S::kShare;
      copy_tile_to_all(to + rank() * kPart * kDepth * 2, w, full(stage), step * kDepth,
                       column_of(tile) + rank() * kPart, (1 << S::kShare) - 1);
    }
  }

  // A stage may be written again when all warps that read it, those of the blocks that share it among them, have.
  __device__ void release(int stage) const {
    if constexpr (S::kShare == 1) {
      if (lane() == 0) barrier_arrive(empty(stage));
    } else {
      if (lane() < S::kShare) barrier_arrive_in_cluster(in_cluster(empty(stage), lane()));
    }
  }

  // Brings the tile's bias into the first cache while products run; the values are not kept.
  __device__ void fetch_bias(int tile) const {
    constexpr int kLine = 64;  // elements
    const int column = column_of(tile) + lane() * kLine;
    if (p_.bias == nullptr || lane() >= kColumns / kLine || column >= p_.n) return;
    unsigned short unused;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(unused) : "l"(static_cast<const T*>(p_.bias) + column));
  }

  template <typename Activation>
  __device__ void finish(const float (&sums)[kSums], int tile, const Activation& activation) const {
    const std::uint32_t chunk = shared_ + S::kChunks + warp() * kChunkBytes;
    // As stmatrix wants them: matrices of rows 0-7 and 8-15 of eight columns, then of the next eight.
    const std::uint32_t written = chunk + ((lane() & 15) * kChunkStride + lane() / 16 * 8) * 2;
    const int row0 = row_of(tile) + warp() * 16;
    const int column0 = column_of(tile);
    const T* const bias = static_cast<const T*>(p_.bias);
    T* const y = static_cast<T*>(p_.y);
#pragma unroll
    for (int part = 0; part < kColumns / kChunk; ++part) {
      if (column0 + part * kChunk >= p_.n) return;
      unsigned pairs[kChunk / 8][2];
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
        const int column = column0 + part * kChunk + j * 8 + lane() % 4 * 2;
        float b[2] = {0, 0};
        if (bias != nullptr && column < p_.n) load<2>(bias + column, b);
        const float* const four = &sums[part * (kChunk / 2) + j * 4];
        pairs[j][0] = pair_of(activation(four[0] + b[0]), activation(four[1] + b[1]), T{});
        pairs[j][1] = pair_of(activation(four[2] + b[0]), activation(four[3] + b[1]), T{});
      }
      __syncwarp();
      store_matrices(written, pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]);
      store_matrices(written + 32, pairs[2][0], pairs[2][1], pairs[3][0], pairs[3][1]);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = i * 8 + lane() / 4;
        const int piece = lane() % 4 * 8;
        const int column = column0 + part * kChunk + piece;
        uint4 eight;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                     : "r"(chunk + (row * kChunkStride + piece) * 2)
                     : "memory");
        if (row0 + row < p_.m && column < p_.n)
          *reinterpret_cast<uint4*>(y + (row0 + row) * p_.y_stride + column) = eight;
      }
    }
  }

  template <int kCount>
  __device__ __forceinline__ static void load(const T* from, float (&to)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = to_float(from[i]);
  }

  // Sums into this block's shared memory, where stages were.
  __device__ void hand_over(const float (&sums)[kSums]) const {
    // Both groups have read their operands.
    asm volatile("bar.sync 1, %0;" ::"n"(32 * kMultiplyWarps) : "memory");
    const int row = warp() * 16 + lane() / 4;
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t to = shared_ + ((row + 8 * half) * kSumStride + j * 8 + lane() % 4 * 2) * 4;
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(sums[4 * j + 2 * half]),
                     "f"(sums[4 * j + 2 * half + 1])
                     : "memory");
      }
    }
  }

  template <typename Activation>
  __device__ void add_up(const Activation& activation) const {
    const int tile = static_cast<int>(blockIdx.x) / cluster();
    constexpr int kPieces = kColumns / 8;
    const int rows = kRows / split();
    const T* const bias = static_cast<const T*>(p_.bias);
    T* const y = static_cast<T*>(p_.y);
    for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += 32 * kMultiplyWarps) {
      const int row = rank() * rows + i / kPieces;
      const int column = column_of(tile) + i % kPieces * 8;
      if (row_of(tile) + row >= p_.m || column >= p_.n) continue;
      const std::uint32_t at = shared_ + (row * kSumStride + i % kPieces * 8) * 4;
      float sum[8] = {};
      for (int other = 0; other < split(); ++other) {
        const std::uint32_t from = in_cluster(at, other);
        const float4 low = load_in_cluster(from);
        const float4 high = load_in_cluster(from + 16);
        sum[0] += low.x, sum[1] += low.y, sum[2] += low.z, sum[3] += low.w;
        sum[4] += high.x, sum[5] += high.y, sum[6] += high.z, sum[7] += high.w;
      }
      float b[8] = {};
      if (bias != nullptr) load<8>(bias + column, b);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] = activation(sum[e] + b[e]);
      *reinterpret_cast<uint4*>(y + (row_of(tile) + row) * p_.y_stride + column) =
          make_uint4(pair_of(sum[0], sum[1], T{}), pair_of(sum[2], sum[3], T{}), pair_of(sum[4], sum[5], T{}),
                     pair_of(sum[6], sum[7], T{}));
    }
  }

  const Parameters& p_;
  std::uint32_t shared_;
};

template <typename T, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    tile_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::uint8_t memory[];
  constexpr std::uint32_t kAlign = Shape<kColumns>::kAlign;
  const std::uint32_t shared = (shared_address(memory) + kAlign - 1) / kAlign * kAlign;
  Product<T, kColumns> product(p, shared);
  const bool clustered = Shape<kColumns>::kShare > 1 || p.split > 1;
  product.init();
  if (clustered) {
    cluster_meet();
  } else {
    __syncthreads();
  }
  if (product.copies()) {
    if (threadIdx.x % 32 == 0) {
      prefetch_map(&x);
      prefetch_map(&w);
      product.copy(&x, &w);
    }
    __syncwarp();
  } else {
    pdl_wait();
    pdl_launch();
    product.multiply();
  }
  if (clustered) cluster_meet();
  if (p.split > 1) {
    if (!product.copies()) product.add_up();
    cluster_meet();  // others read this block's sums
  }
#endif
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, without linking the driver.
Encode encoder_of_maps() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
               "looking for cuTensorMapEncodeTiled");
    if (function == nullptr || result != cudaDriverEntryPointSuccess) fail("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

// Tiles of `rows` rows and kDepth columns of a row-major matrix.
CUtensorMap map_of(const void* data, DType type, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                   int tile_rows) {
  CUtensorMap map{};
  const std::array<cuuint64_t, 2> sizes = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const std::array<cuuint64_t, 1> strides = {static_cast<cuuint64_t>(stride) * 2};
  const std::array<cuuint32_t, 2> box = {kDepth, static_cast<cuuint32_t>(tile_rows)};
  const std::array<cuuint32_t, 2> steps = {1, 1};
  const CUresult status = encoder_of_maps()(
      &map, type == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(data), sizes.data(), strides.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    fail("cuTensorMapEncodeTiled: error {} for [{}, {}] with rows {} apart", static_cast<int>(status), rows, columns,
         stride);
  }
  return map;
}

void set_activation(Parameters& p, std::optional<ActivationKind> kind) {
  if (!kind) return;
  p.form = Form::sigmoid;
  p.linear = 1;
  switch (*kind) {
    case ActivationKind::silu:
      break;
    case ActivationKind::gelu:
      p.form = Form::gelu;
      break;
    case ActivationKind::gelu_tanh:
      // (1 + tanh(u)) / 2 is sigmoid(2 u); 0.79788456 is sqrt(2 / pi).
      p.linear = 2 * 0.79788456f;
      p.cubic = 2 * 0.79788456f * 0.044715f;
      break;
    case ActivationKind::relu:
      p.form = Form::relu;
      break;
    case ActivationKind::quick_gelu:
      p.linear = 1.702f;
      break;
    case ActivationKind::tanh:
      p.form = Form::tanh;
      p.linear = 2;
      break;
  }
}

template <typename T, int kColumns>
void enqueue_tiles(const TileGemm& g, int split, int multiprocessors, CudaStream& stream) {
  using S = Shape<kColumns>;
  Parameters p;
  p.y = g.y;
  p.y_stride = g.y_stride;
  p.bias = g.bias;
  set_activation(p, g.activation);
  p.m = static_cast<int>(g.m);
  p.n = static_cast<int>(g.n);
  p.steps = static_cast<int>(ceil_div(g.k, std::int64_t{kDepth}));
  p.columns = static_cast<int>(ceil_div(g.n, std::int64_t{kColumns}));
  p.tiles = static_cast<int>(ceil_div(g.m, std::int64_t{kRows * S::kShare})) * p.columns;
  p.split = split;
  const int cluster = S::kShare > 1 ? S::kShare : split;
  // With a split each cluster has one tile: its blocks' stages are where the sums are exchanged.
  const int room = multiprocessors / cluster;
  const int clusters = split > 1 ? p.tiles : std::min(p.tiles, room);
  static const bool configured = [] {
    check_cuda(
        cudaFuncSetAttribute(tile_kernel<T, kColumns>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "asking for shared memory");
    return true;
  }();
  static_cast<void>(configured);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = S::kSharedBytes;
  config.stream = stream.handle();
  std::array<cudaLaunchAttribute, 2> attributes{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes.data();
  config.numAttrs = cluster > 1 ? 2 : 1;
  check_cuda(cudaLaunchKernelEx(&config, tile_kernel<T, kColumns>, map_of(g.x, g.type, g.m, g.k, g.x_stride, kRows),
                                map_of(g.w, g.type, g.n, g.k, g.w_stride, kColumns / S::kShare), p),
             "launching a product");
}

bool aligned(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

}  // namespace

bool takes(const TileGemm& g, int capability) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  return capability == 90 && (g.type == DType::f16 || g.type == DType::bf16) && g.n % 8 == 0 && g.k % 8 == 0 &&
         g.k > 0 && g.m < kMost && g.n < kMost && g.k < kMost && aligned(g.x, g.x_stride) && aligned(g.w, g.w_stride) &&
         aligned(g.y, g.y_stride);
}

std::vector<TilePlan> plans_of(const TileGemm& g) {
  std::vector<TilePlan> out = {{256, 1}, {128, 1}, {64, 1}};
  const std::int64_t steps = ceil_div(g.k, std::int64_t{kDepth});
  for (int split = 2; split <= kMostSplit && 2 * split <= steps; split *= 2) out.push_back({64, split});
  return out;
}

TilePlan plan_of(const TileGemm& g, int multiprocessors) {
  // Microseconds of a step of k and of what comes before and after, fitted to measurements on an H100.
  const double steps = static_cast<double>(ceil_div(g.k, std::int64_t{kDepth}));
  TilePlan best;
  double least = 0;
  for (const TilePlan& plan : plans_of(g)) {
    const std::int64_t share = plan.columns == 256 ? 2 : 1;
    const double tiles = static_cast<double>(ceil_div(g.m, kRows * share) * share * plan.split *
                                             ceil_div(g.n, std::int64_t{plan.columns}));
    const double waves = std::ceil(tiles / multiprocessors);
    const double each = plan.columns == 256 ? 0.95 : plan.columns == 128 ? 0.5 : 0.29;
    const double edge = plan.columns == 256 ? 1.8 : 1.0;
    const double time = waves * (steps / plan.split * each + edge) + (plan.split > 1 ? 3.0 : 0.0);
    if (least == 0 || time < least) {
      least = time;
      best = plan;
    }
  }
  return best;
}

void enqueue(const TileGemm& g, const TilePlan& plan, int multiprocessors, CudaStream& stream) {
  if (g.m == 0 || g.n == 0) return;
  const auto with = [&](auto type) {
    using T = decltype(type);
    switch (plan.columns) {
      case 256:
        enqueue_tiles<T, 256>(g, 1, multiprocessors, stream);
        break;
      case 128:
        enqueue_tiles<T, 128>(g, 1, multiprocessors, stream);
        break;
      default:
        enqueue_tiles<T, 64>(g, plan.split, multiprocessors, stream);
    }
  };
  if (g.type == DType::f16) {
    with(__half{});
  } else {
    with(__nv_bfloat16{});
  }
}

}  // namespace nibble
