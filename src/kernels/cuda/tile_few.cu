// Products of few rows: a kernel for Hopper with small tiles, 64 or 128 rows by 32 to 96 columns, one a block. Where
// there are more blocks than multiprocessors two share one; else each is to have one for itself, see kLeastAlone.
// Blocks of a cluster that share tiles of x and of w are as fast as cuBLASLt's with long sums and no faster with short
// ones. Long sums are left in parts of k if the op behind adds them up; blocks that exchange them take longer.
#include "core/checked.h"
#include "kernels/cuda/tile_kernels.h"
#include "kernels/cuda/tile_parts.cuh"
#include "kernels/cuda/wgmma.cuh"

// Compiled for anything but 9.0a the kernel is empty, and nothing uses its parts.
#pragma nv_diag_suppress 177

namespace nibble::tile {
namespace {

// A kernel that starts while the one ahead runs finds some multiprocessors full and others empty, and where two of its
// blocks fit on one, two of them go onto an empty one, where each takes twice as long while others are left without
// work. So a block that is to be alone asks for more than half of a multiprocessor's memory. (With all of it, passes of
// 400 rows took 2% more.) One of 128 x 96 takes more than half of the registers instead, by threads that do nothing,
// and what memory is left: the next kernel's blocks can start beside it and have their first weights there when it
// ends.
constexpr int kMemory = 228 * 1024;
constexpr int kReserved = 1024;  // of it, for each block
constexpr int kMemoryUnit = 128;
constexpr int kLeastAlone = kMemory / 2 - kReserved + kMemoryUnit;
constexpr int kBeside = kMemory - 2 * kReserved - kLeastAlone;
constexpr int kRegisters = 64 * 1024;
constexpr int kRegisterUnit = 8;  // of a thread

template <int kRows, int kColumns>
struct Shape {
  static constexpr int kGroups = kRows / 64;
  static constexpr int kMultiplyWarps = 4 * kGroups;
  static constexpr int kThreads = 32 * (kMultiplyWarps + 1);
  static constexpr int kAloneThreads = kRows == 64 ? kThreads : 416;  // of 80 registers
  static constexpr int kXBytes = kRows * kDepth * 2;
  static constexpr int kStageBytes = kXBytes + kColumns * kDepth * 2;
  static constexpr int kBytesOfStage = kStageBytes + 16;                   // with its barriers, behind all stages
  static constexpr int kHalfBytes = kRows == 64 ? 88 * 1024 : 112 * 1024;  // half of a multiprocessor's or less
};

struct Parameters {
  Output out;
  float* parts = nullptr;  // [parts, m, n]
  int steps = 0;           // of k, of a part
  int stages = 0;          // of them that shared memory holds
};

template <typename T, int kRows, int kColumns>
class Product {
  using S = Shape<kRows, kColumns>;
  static constexpr int kSums = kColumns / 2;  // of a thread

 public:
  __device__ Product(const Parameters& p, std::uint32_t shared)
      : p_(p),
        shared_(shared),
        row0_(static_cast<int>(blockIdx.x) * kRows),
        column0_(static_cast<int>(blockIdx.y) * kColumns),
        k0_(static_cast<int>(blockIdx.z) * p.steps * kDepth) {}

  __device__ void init() const {
    if (threadIdx.x != 0) return;
#pragma unroll 1
    for (int i = 0; i < p_.stages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), S::kMultiplyWarps);
    }
    barriers_ready_in_block();
  }

  __device__ bool copies() const { return warp() == S::kMultiplyWarps; }

  // The copying thread. Weights are constant: the first stages' come before the kernels ahead have ended, and the
  // others are on their way to the second cache: a share of them each for the blocks one below the other.
  __device__ void copy(const CUtensorMap* x, const CUtensorMap* w) const {
    const int ahead = min(p_.stages, p_.steps);
    prefetch_map(x);
    prefetch_map(w);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) {
      barrier_expect(full(i), S::kStageBytes);
      copy_tile(w_at(i), w, full(i), k0_ + i * kDepth, column0_);
    }
#pragma unroll 1
    for (int i = ahead + static_cast<int>(blockIdx.x); i < p_.steps; i += static_cast<int>(gridDim.x))
      prefetch_tile(w, k0_ + i * kDepth, column0_);
    pdl_wait();
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) copy_tile(x_at(i), x, full(i), k0_ + i * kDepth, row0_);
    int stage = 0;
    std::uint32_t parity = 0;
#pragma unroll 1
    for (int i = ahead; i < p_.steps; ++i) {
      barrier_wait(empty(stage), parity);
      barrier_expect(full(stage), S::kStageBytes);
      copy_tile(w_at(stage), w, full(stage), k0_ + i * kDepth, column0_);
      copy_tile(x_at(stage), x, full(stage), k0_ + i * kDepth, row0_);
      if (++stage == p_.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }

  // A thread's pairs of columns. The bias is constant: it comes before the kernels ahead have ended.
  __device__ __forceinline__ void load_bias(unsigned (&bias)[kColumns / 8]) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) bias[j] = bias_at<T>(p_.out, column0_ + j * 8 + lane() % 4 * 2);
  }

  __device__ __forceinline__ void multiply(float (&sums)[kSums]) const {
    int stage = 0;
    std::uint32_t parity = 0;
#pragma unroll 1
    for (int step = 0; step < p_.steps; ++step) {
      barrier_wait(full(stage), parity);
      const std::uint64_t x = wgmma_operand(x_at(stage) + warp() / 4 * (64 * kDepth * 2));
      const std::uint64_t w = wgmma_operand(w_at(stage));
      wgmma_begin();
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i) wgmma<T, kColumns>(sums, x + 2 * i, w + 2 * i, step > 0 || i > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (step > 0 && lane() == 0) barrier_arrive(empty(stage == 0 ? p_.stages - 1 : stage - 1));
      if (++stage == p_.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wgmma_wait<0>();
    // Rows are rearranged where stages were, which all groups have read.
    asm volatile("bar.sync 1, %0;" ::"n"(32 * S::kMultiplyWarps) : "memory");
  }

  __device__ __forceinline__ void add_bias(float (&sums)[kSums], const unsigned (&bias)[kColumns / 8]) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const float2 two = values_of(bias[j], T{});
      sums[4 * j] += two.x, sums[4 * j + 1] += two.y;
      sums[4 * j + 2] += two.x, sums[4 * j + 3] += two.y;
    }
  }

  // A part of the sums as they are: each four lanes write 32 bytes of a row.
  __device__ __forceinline__ void store_part(const float (&sums)[kSums]) const {
    const int row = row0_ + warp() * 16 + lane() / 4;
    float* const part = p_.parts + static_cast<std::int64_t>(blockIdx.z) * p_.out.m * p_.out.n;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const int column = column0_ + j * 8 + lane() % 4 * 2;
      if (column >= p_.out.n) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= p_.out.m) continue;
        float* const to = part + static_cast<std::int64_t>(row + 8 * half) * p_.out.n + column;
        *reinterpret_cast<float2*>(to) = make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
      }
    }
  }

  __device__ __forceinline__ void finish(float (&sums)[kSums]) const {
    const Form form = p_.out.form;
    if (form == Form::gelu) {
      apply(sums, Gelu{});
    } else if (form != Form::identity) {
      apply(sums, activation_of<OtherActivation>(p_.out));
    }
    store_rows(sums);
  }

 private:
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ std::uint32_t full(int stage) const { return shared_ + p_.stages * S::kStageBytes + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ std::uint32_t x_at(int stage) const { return shared_ + stage * S::kStageBytes; }
  __device__ std::uint32_t w_at(int stage) const { return x_at(stage) + S::kXBytes; }

  template <typename Activation>
  __device__ __forceinline__ void apply(float (&sums)[kSums], const Activation& activation) const {
#pragma unroll
    for (float& sum : sums) sum = activation(sum);
  }

  // A warp's 16 rows go through shared memory, so that whole pieces of them are written.
  __device__ __forceinline__ void store_rows(const float (&sums)[kSums]) const {
    const int row0 = row0_ + warp() * 16;
    constexpr int kStride = kColumns * 2 + 16;  // bytes: eight rows lie in different banks
    static_assert(S::kMultiplyWarps * 16 * kStride <= S::kStageBytes);
    const std::uint32_t rows = shared_ + warp() * 16 * kStride;
    // As stmatrix wants them: matrices of rows 0-7 and 8-15 of eight columns, then of the next eight.
    const std::uint32_t written = rows + (lane() & 15) * kStride + lane() / 16 * 16;
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      const float* const eight = &sums[8 * j];
      store_matrices(written + j * 32, pack(eight[0], eight[1], T{}), pack(eight[2], eight[3], T{}),
                     pack(eight[4], eight[5], T{}), pack(eight[6], eight[7], T{}));
    }
    __syncwarp();
    constexpr int kOfRow = kColumns / 8;  // pieces of 16 bytes
#pragma unroll
    for (int i = 0; i < kOfRow / 2; ++i) {
      const int piece = i * 32 + lane();
      const int row = row0 + piece / kOfRow;
      const int column = column0_ + piece % kOfRow * 8;
      if (row < p_.out.m && column < p_.out.n)
        store_piece<T>(p_.out, rows + piece / kOfRow * kStride + piece % kOfRow * 16, row, column);
    }
  }

  const Parameters& p_;
  const std::uint32_t shared_;
  const int row0_, column0_, k0_;
};

template <typename T, int kRows, int kColumns, bool kParts>
__global__ void __launch_bounds__(Shape<kRows, kColumns>::kAloneThreads, kRows == 64 ? 2 : 1)
    few_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
               const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(kAlign) std::uint8_t memory[];
  const Product<T, kRows, kColumns> product(p, shared_address(memory));
  product.init();
  __syncthreads();
  if (product.copies()) {
    if (threadIdx.x % 32 == 0) product.copy(&x, &w);
  } else if (threadIdx.x < Shape<kRows, kColumns>::kThreads) {
    float sums[kColumns / 2];
    unsigned bias[kColumns / 8];
    product.load_bias(bias);
    pdl_wait();
    pdl_launch();
    product.multiply(sums);
    if (!kParts || blockIdx.z == 0) product.add_bias(sums, bias);
    if constexpr (kParts) {
      product.store_part(sums);
    } else {
      product.finish(sums);
    }
  }
#endif
}

template <typename T, int kRows, int kColumns, bool kParts = false>
void launch_few(const TileGemm& g, int parts, int multiprocessors, CudaStream& stream) {
  using S = Shape<kRows, kColumns>;
  constexpr auto kKernel = few_kernel<T, kRows, kColumns, kParts>;
  allow_shared_memory<kKernel>(kLeastAlone);
  static const int registers = [&] {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, kKernel), "asking for registers");
    return attributes.numRegs;
  }();
  const dim3 grid(static_cast<unsigned>(ceil_div(g.m, std::int64_t{kRows})),
                  static_cast<unsigned>(ceil_div(g.n, std::int64_t{kColumns})), static_cast<unsigned>(parts));
  const bool alone = std::int64_t{grid.x} * grid.y * grid.z <= multiprocessors;
  const bool by_registers = alone && 2 * round_up(registers, kRegisterUnit) * S::kAloneThreads > kRegisters;
  const int bytes = by_registers ? kBeside : alone ? kLeastAlone : S::kHalfBytes;
  Parameters p;
  p.out = output_of(g);
  p.parts = g.parts;
  p.steps = static_cast<int>(ceil_div(g.k, std::int64_t{kDepth} * parts));
  p.stages = bytes / S::kBytesOfStage;
  const TileMaps maps = maps_of(g, kRows, kColumns);
  launch(stream, grid, dim3(by_registers ? S::kAloneThreads : S::kThreads), static_cast<std::size_t>(bytes),
         Overlap::yes, kKernel, maps.x, maps.w, p);
}

}  // namespace

void enqueue_few(const TileGemm& g, const TilePlan& plan, int multiprocessors, CudaStream& stream) {
  const auto with = [&](auto type) {
    using T = decltype(type);
    if (g.parts != nullptr) return launch_few<T, 64, 96, true>(g, plan.parts, multiprocessors, stream);
    if (plan.columns == 32) return launch_few<T, 64, 32>(g, 1, multiprocessors, stream);
    if (plan.columns == 64) return launch_few<T, 64, 64>(g, 1, multiprocessors, stream);
    if (plan.rows == 64) return launch_few<T, 64, 96>(g, 1, multiprocessors, stream);
    launch_few<T, 128, 96>(g, 1, multiprocessors, stream);
  };
  if (g.type == DType::f16) {
    with(__half{});
  } else {
    with(__nv_bfloat16{});
  }
}

}  // namespace nibble::tile
