// Any number of rows: weights are written out as f16, bf16 or f32, and cuBLASLt multiplies. Where products take long
// (hundreds of rows), that costs little: 2.5 bytes a weight of traffic.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/nibble/fragments.cuh"
#include "kernels/cuda/nibble/packed_site.h"
#include "kernels/cuda/site_gemm.h"

#include <algorithm>

namespace nibble::gpu {
namespace {

constexpr int kWarps = 4;
// Of elements between the rows of a tile in shared memory: 16 bytes for 16-bit types, so that the 8 rows of a fragment
// lie in different banks.
constexpr int kTilePad = 8;

struct DequantiseArgs {
  const std::byte* weights = nullptr;
  int block_bytes = 0;
  std::int64_t blocks = 0;
  std::int64_t all_blocks = 0;  // strips * blocks
  bool zeros = false;
  float zero = 0;
};

template <typename T>
__device__ void store_pair(T* to, float a, float b) {
  to[0] = from_float<T>(a);
  to[1] = from_float<T>(b);
}

// A warp a block: its codes as the tensor core's operands, turned by way of shared memory into rows.
template <int BITS, int SETS, typename T>
__global__ void dequantise_kernel(const DequantiseArgs a, T* to) {
  pdl_wait();
  pdl_launch();
  __shared__ __align__(16) T tiles[kWarps][kStripRows][kBlockInputs + kTilePad];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= a.all_blocks) return;
  const std::byte* block = a.weights + block_place(index / a.blocks, index % a.blocks, a.blocks) * a.block_bytes;
  const int g = lane / 4;
  const int c = lane % 4;
  LaneCodes<BITS> codes;
  auto& tile = tiles[warp];
  const auto* scales = reinterpret_cast<const __half2*>(block + BITS * 256);
  const auto* zeros = reinterpret_cast<const uchar2*>(block + BITS * 256 + SETS * 32);
  const auto step = [&](auto number) {
    constexpr int kStep = decltype(number)::value;
    const int set = kStep / (8 / SETS);
    const float2 s = __half22float2(scales[set * 8 + g]);
    float z0 = a.zero;
    float z1 = a.zero;
    if (a.zeros) {
      z0 = static_cast<float>(zeros[set * 8 + g].x);
      z1 = static_cast<float>(zeros[set * 8 + g].y);
    }
    codes.template load<kStep>(block, lane);
    const FragmentA fragment = codes.template fragment<kStep>();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int shift = input_shift(BITS, kStep, i / 2);
      const float low = static_cast<float>((fragment.x[i] & 0xffffu) >> shift);
      const float high = static_cast<float>(fragment.x[i] >> (16 + shift));
      const float zero = i % 2 == 0 ? z0 : z1;
      const float scale = i % 2 == 0 ? s.x : s.y;
      store_pair(&tile[g + 8 * (i % 2)][kStep * 16 + 8 * (i / 2) + 2 * c], scale * (low - zero), scale * (high - zero));
    }
  };
  step(std::integral_constant<int, 0>{});
  step(std::integral_constant<int, 1>{});
  step(std::integral_constant<int, 2>{});
  step(std::integral_constant<int, 3>{});
  step(std::integral_constant<int, 4>{});
  step(std::integral_constant<int, 5>{});
  step(std::integral_constant<int, 6>{});
  step(std::integral_constant<int, 7>{});
  __syncwarp();
  constexpr int kVector = 16 / sizeof(T);
  constexpr int kRowVectors = kBlockInputs / kVector;
  const std::int64_t strip = index / a.blocks;
  T* out = to + (strip * kStripRows * a.blocks + index % a.blocks) * kBlockInputs;
#pragma unroll
  for (int i = lane; i < kStripRows * kRowVectors; i += 32) {
    const int row = i / kRowVectors;
    const int at = i % kRowVectors * kVector;
    *reinterpret_cast<uint4*>(out + row * a.blocks * kBlockInputs + at) =
        *reinterpret_cast<const uint4*>(&tile[row][at]);
  }
}

constexpr int kStageThreads = 256;
// Of a row in shared memory: what thread blocks can have on all GPUs from compute capability 8.0 on, less some.
constexpr std::size_t kMostKeptBytes = 96 << 10;

// A thread block a row. Where inputs are taken out of order, the row lies in shared memory first (`keep`), times the
// norm's weights: there that costs some turns of the banks, in the level-1 cache a turn for each line that a warp
// meets.
template <typename X, typename T>
__global__ void stage_kernel(const X* x, std::int64_t stride, const std::int32_t* order, int inputs, int places,
                             const float* norm_weight, float eps, bool keep, T* to) {
  pdl_wait();
  pdl_launch();
  extern __shared__ float kept[];
  __shared__ float partial[kStageThreads / 32];
  const X* row = x + static_cast<std::int64_t>(blockIdx.x) * stride;
  T* out = to + static_cast<std::int64_t>(blockIdx.x) * places;
  float factor = 1;
  if (norm_weight != nullptr || keep) {
    float squares = 0;
    for (int i = threadIdx.x; i < inputs; i += kStageThreads) {
      const float v = to_float(row[i]);
      squares += v * v;
      if (keep) kept[i] = norm_weight != nullptr ? v * norm_weight[i] : v;
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
    __syncthreads();
    squares = 0;
    for (const float p : partial) squares += p;
    if (norm_weight != nullptr) factor = rsqrtf(squares / static_cast<float>(inputs) + eps);
  }
  for (int i = threadIdx.x; i < places; i += kStageThreads) {
    const int input = order != nullptr ? order[i] : (i < inputs ? i : -1);
    float v = 0;
    if (input >= 0 && keep) {
      v = kept[input] * factor;
    } else if (input >= 0) {
      v = to_float(row[input]) * factor;
      if (norm_weight != nullptr) v *= norm_weight[input];
    }
    out[i] = from_float<T>(v);
  }
}

// y[m, n] = act(gate + bias) * (up + bias); the products of strip s are columns 16 s (gate) and 16 s + 8 (up).
template <typename T, typename Y>
__global__ void activate_kernel(const T* products, std::int64_t stride, int outputs, const float* bias,
                                ActivationKind kind, Y* y, std::int64_t y_stride, std::int64_t rows) {
  pdl_wait();
  pdl_launch();
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (n >= outputs) return;
  for (std::int64_t m = blockIdx.y; m < rows; m += gridDim.y) {
    const T* from = products + m * stride + n / 8 * 16 + n % 8;
    float gate = to_float(from[0]);
    float up = to_float(from[8]);
    if (bias != nullptr) {
      gate += bias[n];
      up += bias[outputs + n];
    }
    y[m * y_stride + n] = from_float<Y>(activate(kind, gate) * up);
  }
}

template <typename T, int BITS>
void dequantise_bits(const DequantiseArgs& a, int sets, T* to, CudaStream& stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(a.all_blocks, std::int64_t{kWarps})));
  const auto run = [&](auto kernel) { launch(stream, grid, dim3(kWarps * 32), 0, Overlap::yes, kernel, a, to); };
  switch (sets) {
    case 1:
      return run(dequantise_kernel<BITS, 1, T>);
    case 2:
      return run(dequantise_kernel<BITS, 2, T>);
    case 4:
      return run(dequantise_kernel<BITS, 4, T>);
    default:
      return run(dequantise_kernel<BITS, 8, T>);
  }
}

// The scratch of a call, in this order.
struct Scratch {
  std::size_t gemm = 0;      // what cuBLASLt gets
  std::size_t weights = 0;   // written out
  std::size_t inputs = 0;    // staged, where they cannot be used as they are
  std::size_t products = 0;  // of a gated site
  std::size_t total() const { return gemm + weights + inputs + products; }
};

Scratch scratch_of(const LinearSite& site, const PackedLayout& layout, std::int64_t rows) {
  constexpr std::size_t kAlign = 256;
  const std::size_t element = bytes_of(site.compute);
  const auto bytes = [&](std::int64_t a, std::int64_t b) {
    return round_up(checked_mul(static_cast<std::size_t>(checked_mul(a, b, "scratch")), element, "scratch"), kAlign);
  };
  Scratch out;
  out.gemm = gemm_workspace_bytes();
  out.weights = bytes(layout.strips() * kStripRows, layout.packed_inputs());
  out.inputs = bytes(rows, layout.packed_inputs());
  if (layout.gated) out.products = bytes(rows, layout.strips() * kStripRows);
  return out;
}

// Whether the product can read the inputs where they are.
bool usable_as_is(const PackedSite& packed, const LinearArgs& args, DType compute) {
  return !packed.order && packed.site.prologue.kind == PrologueKind::none && args.x.dtype == compute &&
         packed.layout.packed_inputs() == packed.layout.inputs;
}

unsigned grid_rows(std::int64_t rows) { return static_cast<unsigned>(std::min<std::int64_t>(rows, 65535)); }

}  // namespace

void dequantise(const PackedSite& packed, DType compute, void* to, CudaStream& stream) {
  const PackedLayout& layout = packed.layout;
  DequantiseArgs a;
  a.weights = packed.weights->data();
  a.block_bytes = layout.block_bytes();
  a.blocks = layout.blocks;
  a.all_blocks = layout.strips() * layout.blocks;
  a.zeros = layout.zeros;
  a.zero = static_cast<float>(1 << (layout.bits - 1));
  with_type(compute, "weights", [&](auto type) {
    using T = decltype(type);
    T* out = static_cast<T*>(to);
    switch (layout.bits) {
      case 2:
        return dequantise_bits<T, 2>(a, layout.sets, out, stream);
      case 3:
        return dequantise_bits<T, 3>(a, layout.sets, out, stream);
      case 4:
        return dequantise_bits<T, 4>(a, layout.sets, out, stream);
      default:
        return dequantise_bits<T, 8>(a, layout.sets, out, stream);
    }
  });
}

void stage_inputs(const PackedSite& packed, const LinearArgs& args, DType compute, void* to, CudaStream& stream) {
  const bool norm = packed.site.prologue.kind == PrologueKind::rms_norm;
  with_type(args.x.dtype, "inputs", [&](auto from) {
    with_type(compute, "inputs", [&](auto type) {
      using X = decltype(from);
      using T = decltype(type);
      const auto kernel = stage_kernel<X, T>;
      const std::size_t row_bytes = static_cast<std::size_t>(packed.layout.inputs) * sizeof(float);
      const bool keep = packed.order_data() != nullptr && row_bytes <= kMostKeptBytes;
      if (keep) {
        check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(row_bytes)),
                   "asking for shared memory");
      }
      launch(stream, dim3(static_cast<unsigned>(args.rows)), dim3(kStageThreads), keep ? row_bytes : 0, Overlap::yes,
             kernel, static_cast<const X*>(args.x.data), args.x.stride, packed.order_data(),
             static_cast<int>(packed.layout.inputs), static_cast<int>(packed.layout.packed_inputs()),
             norm ? args.norm_weight : nullptr, packed.site.prologue.eps, keep, static_cast<T*>(to));
    });
  });
}

void activate_strips(const PackedSite& packed, const void* products, DType compute, const MatrixRef& y,
                     CudaStream& stream) {
  constexpr int kThreads = 256;
  const int outputs = static_cast<int>(packed.site.parts.front().out_features);
  const dim3 grid(static_cast<unsigned>(ceil_div(outputs, kThreads)), grid_rows(y.rows));
  with_type(compute, "products", [&](auto from) {
    with_type(y.dtype, "outputs", [&](auto type) {
      using T = decltype(from);
      using Y = decltype(type);
      launch(stream, grid, dim3(kThreads), 0, Overlap::yes, activate_kernel<T, Y>, static_cast<const T*>(products),
             packed.layout.strips() * kStripRows, outputs, packed.bias_data(), packed.site.epilogue.activation,
             static_cast<Y*>(y.data), y.stride, y.rows);
    });
  });
}

std::size_t dequantised_workspace(const LinearSite& site, const PackedLayout& layout, std::int64_t rows) {
  return scratch_of(site, layout, rows).total();
}

void dequantised(const PackedSite& packed, const LinearArgs& args, CudaStream& stream) {
  const LinearSite& site = packed.site;
  const PackedLayout& layout = packed.layout;
  const Scratch scratch = scratch_of(site, layout, args.rows);
  std::byte* weights = args.workspace + scratch.gemm;
  std::byte* inputs = weights + scratch.weights;
  std::byte* products = inputs + scratch.inputs;

  dequantise(packed, site.compute, weights, stream);
  SiteProduct product;
  product.rows = args.rows;
  product.inputs = product.w_stride = layout.packed_inputs();
  product.w = weights;
  product.operands = site.compute;
  product.workspace = args.workspace;
  product.x = args.x.data;
  product.x_stride = args.x.stride;
  if (!usable_as_is(packed, args, site.compute)) {
    stage_inputs(packed, args, site.compute, inputs, stream);
    product.x = inputs;
    product.x_stride = layout.packed_inputs();
  }
  if (layout.gated) {
    const std::int64_t columns = layout.strips() * kStripRows;
    const LinearDesc strips{.name = site.parts.front().name,
                            .in_features = layout.packed_inputs(),
                            .out_features = columns,
                            .bias = false,
                            .gptq = {}};
    const std::int64_t first = 0;
    const MatrixRef y{products, site.compute, args.rows, columns, columns};
    product.parts = std::span(&strips, 1);
    product.first_rows = std::span(&first, 1);
    product.y = std::span(&y, 1);
    multiply_site(product, stream);
    MatrixRef out = args.y.front();
    out.rows = args.rows;
    activate_strips(packed, products, site.compute, out, stream);
    return;
  }
  std::vector<std::int64_t> first_rows;
  for (const std::int64_t strip : packed.first_strips) first_rows.push_back(strip * kStripRows);
  product.parts = site.parts;
  product.first_rows = first_rows;
  product.bias = packed.y_bias ? static_cast<const void*>(packed.y_bias->data()) : packed.bias_data();
  product.y = args.y;
  if (site.epilogue.kind == EpilogueKind::residual) {
    copy_residual(args.residual, args.y.front(), stream);
    product.accumulate = true;
  }
  multiply_site(product, stream);
}

}  // namespace nibble::gpu
