// `exllamav2`: the second exllama kernel of AutoGPTQ, rebuilt from its description. Up to 50 rows, a block multiplies
// up to 8 rows of x by 512 columns and 128 rows of codes, sums f16 products of 8 rows in f32, and adds its part to y by
// f16 atomics; with more rows the weights are dequantised to f16 and multiplied by cuBLAS with f16 sums, as there. One
// thing differs: y is cleared by a kernel of its own (the original clears it inside of the same launch, where other
// blocks may have added already).
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/gptq_codes.cuh"
#include "kernels/cuda/gptq_ops.h"
#include "kernels/cuda/gptq_upload.h"
#include "kernels/registry.h"

#include <algorithm>
#include <bit>

namespace nibble::cuda {
namespace {

// With more rows the original dequantises all weights.
constexpr std::int64_t kMostRows = 50;
constexpr int kThreads = 128;
// Outputs of a thread: one load of 16 bytes has 8 rows of them.
constexpr int kColumns = 4;
// Rows of codes of a block, and of one step, which lies in one group.
constexpr int kBlockRows = 128;
constexpr int kStep = 32;
constexpr int kWords = kStep / 8;
// Rows of x that share the unpacking of weights.
constexpr int kMostBatch = 8;

// Brings the codes of each word into the order 0, 2, 4, 6, 1, 3, 5, 7, lowest first: a mask and a shift make halves of
// them, those of two neighbouring rows at once.
__global__ void __launch_bounds__(kThreads) shuffle(std::uint32_t* codes, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const std::uint32_t word = codes[i];
  std::uint32_t out = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) out |= (word >> (4 * (j < 4 ? 2 * j : 2 * j - 7)) & 15u) << (4 * j);
  codes[i] = out;
}

// Scales and zero points of 4 outputs in one group, as they are read.
struct RawGroup {
  uint2 scales;
  std::uint32_t zeros;
};

__device__ __forceinline__ RawGroup load_group(const __half* __restrict__ scales,
                                               const std::uint32_t* __restrict__ zeros, int outputs, int group, int n) {
  RawGroup out;
  out.scales = *reinterpret_cast<const uint2*>(scales + static_cast<std::size_t>(group) * outputs + n);
  out.zeros = zeros[static_cast<std::size_t>(group) * (outputs / 8) + n / 8] >> (n % 8 * 4);
  return out;
}

// What makes code - zero of a code that stands in the lowest bits of 1024, or in the next four.
struct Zero {
  __half2 low;   // -(1024 + zero)
  __half2 high;  // -(64 + zero)
};

__device__ __forceinline__ Zero zero_of(std::uint32_t zeros, int column) {
  const std::uint32_t z = ((zeros >> (4 * column)) + 1u) & 15u;
  return {as_half2((0xe400u | z) * 0x10001u), as_half2((0xd400u | z << 4) * 0x10001u)};
}

// code - zero of the 8 rows of a shuffled word, in pairs of rows.
__device__ __forceinline__ void minus_zero(std::uint32_t word, const Zero& zero, __half2 (&out)[4]) {
  const __half2 sixteenth = as_half2(0x2c002c00u);
  const std::uint32_t upper = word >> 8;
  out[0] = __hadd2(as_half2((word & 0x000f000fu) | 0x64006400u), zero.low);
  out[1] = __hfma2(as_half2((word & 0x00f000f0u) | 0x64006400u), sixteenth, zero.high);
  out[2] = __hadd2(as_half2((upper & 0x000f000fu) | 0x64006400u), zero.low);
  out[3] = __hfma2(as_half2((upper & 0x00f000f0u) | 0x64006400u), sixteenth, zero.high);
}

__device__ __forceinline__ std::uint32_t word_of(const uint4& words, int column) {
  return column == 0 ? words.x : column == 1 ? words.y : column == 2 ? words.z : words.w;
}

__device__ __forceinline__ void load_step(uint4 (&to)[kWords], const std::uint32_t* __restrict__ codes, int outputs,
                                          int k) {
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    to[i] = *reinterpret_cast<const uint4*>(codes + static_cast<std::size_t>(k / 8 + i) * outputs);
}

// group_shift: k >> group_shift is the group of row k.
template <int kBatch>
__global__ void __launch_bounds__(kThreads)
    multiply(const __half* __restrict__ x, std::int64_t x_stride, const std::int32_t* __restrict__ order,
             const std::uint32_t* __restrict__ codes, const std::uint32_t* __restrict__ zeros,
             const __half* __restrict__ scales, int inputs, int outputs, int group_shift, __half* y,
             std::int64_t y_stride, bool paired) {
  __shared__ alignas(16) __half rows[kBatch][kBlockRows];
  const int n = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * kColumns;
  const bool active = n < outputs;
  const int k0 = static_cast<int>(blockIdx.z) * kBlockRows;
  const int k1 = min(inputs, k0 + kBlockRows);

  uint4 words[kWords] = {};
  RawGroup group{};
  if (active) {
    load_step(words, codes + n, outputs, k0);
    group = load_group(scales, zeros, outputs, k0 >> group_shift, n);
  }
  x += static_cast<std::int64_t>(blockIdx.y) * kBatch * x_stride;
  if (const int k = k0 + static_cast<int>(threadIdx.x); k < k1) {
    const int from = order == nullptr ? k : order[k];
#pragma unroll
    for (int m = 0; m < kBatch; ++m) rows[m][threadIdx.x] = x[m * x_stride + from];
  }
  __syncthreads();
  if (!active) return;

  float sums[kBatch][kColumns] = {};
  for (int k = k0; k < k1; k += kStep) {
    uint4 next_words[kWords] = {};
    RawGroup next_group{};
    if (k + kStep < k1) {
      load_step(next_words, codes + n, outputs, k + kStep);
      next_group = load_group(scales, zeros, outputs, (k + kStep) >> group_shift, n);
    }
    const float2 scale01 = __half22float2(as_half2(group.scales.x));
    const float2 scale23 = __half22float2(as_half2(group.scales.y));
    const float scale[kColumns] = {scale01.x, scale01.y, scale23.x, scale23.y};
    Zero zero[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) zero[c] = zero_of(group.zeros, c);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      __half2 weights[kColumns][4];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) minus_zero(word_of(words[i], c), zero[c], weights[c]);
#pragma unroll
      for (int m = 0; m < kBatch; ++m) {
        const uint4 eight = *reinterpret_cast<const uint4*>(&rows[m][k - k0 + 8 * i]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          __half2 part = __hmul2(weights[c][0], as_half2(eight.x));
          part = __hfma2(weights[c][1], as_half2(eight.y), part);
          part = __hfma2(weights[c][2], as_half2(eight.z), part);
          part = __hfma2(weights[c][3], as_half2(eight.w), part);
          sums[m][c] = fmaf(__low2float(part) + __high2float(part), scale[c], sums[m][c]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = next_words[i];
    group = next_group;
  }

  y += static_cast<std::int64_t>(blockIdx.y) * kBatch * y_stride + n;
#pragma unroll
  for (int m = 0; m < kBatch; ++m) {
    add_pair(y + m * y_stride, __floats2half2_rn(sums[m][0], sums[m][1]), paired);
    add_pair(y + m * y_stride + 2, __floats2half2_rn(sums[m][2], sums[m][3]), paired);
  }
}

// W as f16 [K, N], its rows where the inputs that they multiply stand. A thread has 4 outputs and 32 rows.
__global__ void __launch_bounds__(kThreads)
    reconstruct(const std::int32_t* __restrict__ order, const std::uint32_t* __restrict__ codes,
                const std::uint32_t* __restrict__ zeros, const __half* __restrict__ scales, int outputs,
                int group_shift, __half* __restrict__ to) {
  const int n = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * kColumns;
  if (n >= outputs) return;
  const int k0 = static_cast<int>(blockIdx.y) * kStep;
  uint4 words[kWords];
  load_step(words, codes + n, outputs, k0);
  const RawGroup group = load_group(scales, zeros, outputs, k0 >> group_shift, n);
  __half2 scale[kColumns];
  Zero zero[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const std::uint32_t pair = c < 2 ? group.scales.x : group.scales.y;
    scale[c] = as_half2(c % 2 == 0 ? __byte_perm(pair, 0, 0x1010) : __byte_perm(pair, 0, 0x3232));
    zero[c] = zero_of(group.zeros, c);
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    __half2 weights[kColumns][4];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      minus_zero(word_of(words[i], c), zero[c], weights[c]);
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[c][j] = __hmul2(weights[c][j], scale[c]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int k = k0 + 8 * i + j;
      const int row = order == nullptr ? k : order[k];
      // Pairs of rows become pairs of columns.
      const auto columns = [&](int c) {
        const __half2 a = weights[c][j / 2];
        const __half2 b = weights[c + 1][j / 2];
        return as_bits(j % 2 == 0 ? __lows2half2(a, b) : __highs2half2(a, b));
      };
      *reinterpret_cast<uint2*>(to + static_cast<std::size_t>(row) * outputs + n) = make_uint2(columns(0), columns(2));
    }
  }
}

// Any shift of 31 finds one group for all rows.
int group_shift(const DeviceGptq& part) {
  return part.groups == 1 ? 31 : std::countr_zero(static_cast<std::uint64_t>(part.group_size));
}

unsigned column_blocks(const DeviceGptq& part) {
  return static_cast<unsigned>(ceil_div(part.out_features, std::int64_t{kThreads * kColumns}));
}

template <int kBatch>
void multiply_rows(const DeviceGptq& part, const MatrixRef& x, const MatrixRef& y, std::int64_t first,
                   std::int64_t batches, CudaStream& stream) {
  const dim3 grid(column_blocks(part), static_cast<unsigned>(batches),
                  static_cast<unsigned>(ceil_div(part.in_features, std::int64_t{kBlockRows})));
  launch(stream, grid, kThreads, 0, Overlap::no, multiply<kBatch>,
         static_cast<const __half*>(x.data) + first * x.stride, x.stride, part.row_index, part.codes, part.zeros,
         part.scales, part.in_features, part.out_features, group_shift(part),
         static_cast<__half*>(y.data) + first * y.stride, y.stride, begins_on_pairs(y));
}

// Whole batches of 8 rows, then one of what remains.
void multiply_all(const DeviceGptq& part, const MatrixRef& x, const MatrixRef& y, std::int64_t rows,
                  CudaStream& stream) {
  if (rows >= kMostBatch) multiply_rows<kMostBatch>(part, x, y, 0, rows / kMostBatch, stream);
  const std::int64_t first = rows / kMostBatch * kMostBatch;
  switch (rows % kMostBatch) {
    case 1:
      return multiply_rows<1>(part, x, y, first, 1, stream);
    case 2:
      return multiply_rows<2>(part, x, y, first, 1, stream);
    case 3:
      return multiply_rows<3>(part, x, y, first, 1, stream);
    case 4:
      return multiply_rows<4>(part, x, y, first, 1, stream);
    case 5:
      return multiply_rows<5>(part, x, y, first, 1, stream);
    case 6:
      return multiply_rows<6>(part, x, y, first, 1, stream);
    case 7:
      return multiply_rows<7>(part, x, y, first, 1, stream);
    default:
      return;
  }
}

std::size_t weight_bytes(std::int64_t inputs, std::int64_t outputs) {
  return round_up(static_cast<std::size_t>(inputs) * static_cast<std::size_t>(outputs) * 2, std::size_t{256});
}

class ExllamaV2Kernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "exllamav2"; }
  KernelTraits traits() const override {
    return {.summary = "exllama v2 of AutoGPTQ, for comparison; above 50 rows dequantises all weights",
            .accumulate = "f16 in 8 inputs, f32 in 128, f16 across them; above 50 rows f16",
            .deterministic = false,
            .in_auto = false,
            // Sums of 13824 products in f16, rounded after every 16 of them as the tensor cores do: 2.1e-3 in the mean
            // of squares, up to 1.7e-2 among 6400 outputs (simulated; up to 50 rows, 5e-3).
            .error_f16 = 3e-2};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    if (std::string why = refused_types(name(), site); !why.empty()) return Fit::no(std::move(why));
    for (const LinearDesc& part : site.parts) {
      const GptqFormat& format = *part.gptq;
      const char* const other = format.act_order ? "cuda" : "cuda-old or cuda";
      if (format.bits != 4) {
        return Fit::no(
            fmt::format("{} has {} bits, and exllamav2 takes 4 only: use {}", part.name, format.bits, other));
      }
      if (part.in_features % kStep != 0 || part.out_features % 8 != 0) {
        return Fit::no(
            fmt::format("{} is {} x {}, and exllamav2 takes inputs in multiples of 32 and outputs in "
                        "multiples of 8: use another kernel",
                        part.name, part.in_features, part.out_features));
      }
      const auto group = static_cast<std::uint64_t>(format.group_size);
      const bool whole = part.in_features % format.group_size == 0;
      if (!whole || (format.group_size != part.in_features && (group % kStep != 0 || !std::has_single_bit(group)))) {
        return Fit::no(
            fmt::format("{} has groups of {} of its {} inputs, and exllamav2 takes groups of equal size, 32 "
                        "or another power of two above it: use {}",
                        part.name, format.group_size, part.in_features, other));
      }
    }
    return Fit::yes(false, false);
  }

  std::size_t packed_bytes(const LinearSite& site) const override { return uploaded_bytes(site, RowOrder::sorted); }
  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    std::unique_ptr<UploadedSite> packed = upload_site(site, tensors, RowOrder::sorted, device, stream);
    for (const DeviceGptq& part : packed->parts) {
      const std::int64_t count = part.in_features / 8 * part.out_features;
      launch(cuda_stream(stream), static_cast<unsigned>(ceil_div(count, std::int64_t{kThreads})), kThreads, 0,
             Overlap::no, shuffle, part.codes, count);
    }
    return packed;
  }

  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    if (rows <= kMostRows) return 0;
    std::size_t most = 0;
    for (const LinearDesc& part : site.parts) most = std::max(most, weight_bytes(part.in_features, part.out_features));
    return most + gemm_workspace_bytes();
  }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }
  std::vector<KernelWay> ways(const LinearSite&) const override {
    return {{"blocks of codes", kMostRows}, {"dequantised", 0}};
  }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    check_f16(name(), args);
    CudaStream& cuda = cuda_stream(stream);
    const auto& site = static_cast<const UploadedSite&>(packed);
    for (std::size_t i = 0; i < site.parts.size(); ++i) {
      const DeviceGptq& part = site.parts[i];
      const MatrixRef& y = args.y[i];
      if (args.rows <= kMostRows) {
        clear_rows(y, args.rows, cuda);
        multiply_all(part, args.x, y, args.rows, cuda);
        if (part.bias != nullptr) add_bias(y.data, y.dtype, y.stride, args.rows, part.out_features, part.bias, cuda);
        continue;
      }
      auto* weights = reinterpret_cast<__half*>(args.workspace);
      const dim3 grid(column_blocks(part), static_cast<unsigned>(part.in_features / kStep));
      launch(cuda, grid, kThreads, 0, Overlap::no, reconstruct, part.row_index, part.codes, part.zeros, part.scales,
             part.out_features, group_shift(part), weights);
      gemm({.m = args.rows,
            .n = part.out_features,
            .k = part.in_features,
            .x = args.x.data,
            .x_stride = args.x.stride,
            .w = weights,
            .w_stride = part.out_features,
            .w_is_kn = true,
            .y = y.data,
            .y_stride = y.stride,
            .bias = part.bias,
            .half_accumulate = true,
            .workspace = args.workspace + weight_bytes(part.in_features, part.out_features)},
           cuda);
    }
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, ExllamaV2Kernel);

}  // namespace
}  // namespace nibble::cuda
