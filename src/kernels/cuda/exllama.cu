// `exllama`: the first exllama kernel of AutoGPTQ, rebuilt from its description. Up to 7 rows, a warp multiplies one
// row of x by 32 columns and some hundred rows of codes, sums in f16, and adds its part to y by atomics; from 8 rows on
// the weights are dequantised to f16 and multiplied by cuBLAS with f16 sums, as there. Two things differ: y is cleared
// by a kernel of its own (the original clears it inside of the same launch, where other blocks may have added already),
// and atomics add pairs of outputs.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/gptq_codes.cuh"
#include "kernels/cuda/gptq_ops.h"
#include "kernels/cuda/gptq_upload.h"
#include "kernels/registry.h"

#include <algorithm>

namespace nibble::cuda {
namespace {

// From here on the original dequantises all weights.
constexpr std::int64_t kGemmRows = 8;
// Outputs of a block: one a thread.
constexpr int kColumns = 32;
// Words of a column that are read ahead of those in use: 32 rows, of which K is a multiple.
constexpr int kAhead = 4;
constexpr int kMostBlockRows = 384;

// Rows of codes of a block, by the original's tuning for the widths of LLaMA models.
int block_rows(std::int64_t outputs) {
  if (outputs == 4096 || outputs == 5120) return kMostBlockRows;
  return outputs == 17920 ? 128 : 256;
}

__device__ __forceinline__ void load_words(std::uint32_t (&to)[kAhead], const std::uint32_t* __restrict__ codes,
                                           int outputs, int word) {
#pragma unroll
  for (int i = 0; i < kAhead; ++i) to[i] = codes[static_cast<std::size_t>(word + i) * outputs];
}

__device__ __forceinline__ __half2 minus_zero(std::uint32_t word, int shift, int zero) {
  return __halves2half2(__int2half_rn(static_cast<int>(word >> shift & 15u) - zero),
                        __int2half_rn(static_cast<int>(word >> (shift + 4) & 15u) - zero));
}

__global__ void __launch_bounds__(kColumns)
    multiply(const __half* __restrict__ x, std::int64_t x_stride, const std::uint32_t* __restrict__ codes,
             const std::uint32_t* __restrict__ zeros, const __half* __restrict__ scales, int inputs, int outputs,
             int group_size, int rows_of_block, __half* y, std::int64_t y_stride, bool paired) {
  __shared__ alignas(16) __half row[kMostBlockRows];
  const int n = static_cast<int>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x);
  // Threads past the last output do as the last one, and add nothing.
  const int column = min(n, outputs - 1);
  const int k0 = static_cast<int>(blockIdx.z) * rows_of_block;
  const int k1 = min(inputs, k0 + rows_of_block);

  std::uint32_t words[kAhead];
  load_words(words, codes + column, outputs, k0 / 8);
  x += blockIdx.y * x_stride;
  for (int k = k0 + static_cast<int>(threadIdx.x); k < k1; k += kColumns) row[k - k0] = x[k];
  __syncwarp();

  __half2 sum = as_half2(0);
  __half2 scale = as_half2(0);
  int zero = 0;
  int group = k0 / group_size;
  int group_begin = k0;
  for (int k = k0; k < k1; k += 8 * kAhead) {
    std::uint32_t next[kAhead] = {};
    if (k + 8 * kAhead < k1) load_words(next, codes + column, outputs, k / 8 + kAhead);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (k + 8 * i == group_begin) {
        scale = __half2half2(scales[static_cast<std::size_t>(group) * outputs + column]);
        zero = static_cast<int>(zero_point<4>(zeros + static_cast<std::size_t>(group) * (outputs / 8), column));
        ++group;
        group_begin = group * group_size;
      }
      const uint4 inputs_of_word = *reinterpret_cast<const uint4*>(row + (k - k0) + 8 * i);
      __half2 part = __hmul2(minus_zero(words[i], 0, zero), as_half2(inputs_of_word.x));
      part = __hfma2(minus_zero(words[i], 8, zero), as_half2(inputs_of_word.y), part);
      part = __hfma2(minus_zero(words[i], 16, zero), as_half2(inputs_of_word.z), part);
      part = __hfma2(minus_zero(words[i], 24, zero), as_half2(inputs_of_word.w), part);
      sum = __hfma2(scale, part, sum);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) words[i] = next[i];
  }

  // The even thread of two adds the outputs of both: their number is a multiple of 8.
  const __half total = __hadd(__low2half(sum), __high2half(sum));
  const __half neighbour = __shfl_down_sync(0xffffffffu, total, 1);
  if (n < outputs && threadIdx.x % 2 == 0)
    add_pair(y + blockIdx.y * y_stride + n, __halves2half2(total, neighbour), paired);
}

// Where the parts of the workspace begin.
struct Scratch {
  std::size_t x = 0;        // f16 [rows, K], gathered, with act-order
  std::size_t weights = 0;  // f16 [K, N]
  std::size_t gemm = 0;
  std::size_t bytes = 0;
};

Scratch scratch(std::int64_t rows, std::int64_t inputs, std::int64_t most_outputs, bool gathers) {
  const auto k = static_cast<std::size_t>(inputs);
  Scratch out;
  out.weights = gathers ? round_up(static_cast<std::size_t>(rows) * k * 2, std::size_t{256}) : 0;
  out.gemm = out.weights;
  out.bytes = out.weights;
  if (rows >= kGemmRows) {
    out.gemm += round_up(k * static_cast<std::size_t>(most_outputs) * 2, std::size_t{256});
    out.bytes = out.gemm + gemm_workspace_bytes();
  }
  return out;
}

class ExllamaKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "exllama"; }
  KernelTraits traits() const override {
    return {.summary = "exllama (version 1) of AutoGPTQ, for comparison; from 8 rows on dequantises all weights",
            .accumulate = "f16",
            .deterministic = false,
            .in_auto = false,
            // Sums of 13824 products in f16, rounded after every 16 of them as the tensor cores do: 2.1e-3 in the mean
            // of squares, up to 1.7e-2 among 6400 outputs (simulated).
            .error_f16 = 3e-2};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    if (std::string why = refused_types(name(), site); !why.empty()) return Fit::no(std::move(why));
    for (const LinearDesc& part : site.parts) {
      const GptqFormat& format = *part.gptq;
      const char* const other = format.act_order ? "cuda" : "cuda-old or cuda";
      if (format.bits != 4)
        return Fit::no(fmt::format("{} has {} bits, and exllama takes 4 only: use {}", part.name, format.bits, other));
      if (part.in_features % 32 != 0 || part.out_features % 8 != 0) {
        return Fit::no(
            fmt::format("{} is {} x {}, and exllama takes inputs in multiples of 32 and outputs in "
                        "multiples of 8: use another kernel",
                        part.name, part.in_features, part.out_features));
      }
      if (format.group_size % 8 != 0 || part.in_features % format.group_size != 0) {
        return Fit::no(
            fmt::format("{} has groups of {} of its {} inputs, and exllama takes groups of equal size in "
                        "multiples of 8: use cuda",
                        part.name, format.group_size, part.in_features));
      }
    }
    return Fit::yes(false, false);
  }

  std::size_t packed_bytes(const LinearSite& site) const override { return uploaded_bytes(site, RowOrder::sorted); }
  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    return upload_site(site, tensors, RowOrder::sorted, device, stream);
  }

  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    std::int64_t most_outputs = 0;
    bool gathers = false;
    for (const LinearDesc& part : site.parts) {
      most_outputs = std::max(most_outputs, part.out_features);
      gathers = gathers || part.gptq->act_order;
    }
    return scratch(rows, site.in_features(), most_outputs, gathers).bytes;
  }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }
  std::vector<KernelWay> ways(const LinearSite&) const override {
    return {{"blocks of codes", kGemmRows - 1}, {"dequantised", 0}};
  }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    check_f16(name(), args);
    CudaStream& cuda = cuda_stream(stream);
    const auto& site = static_cast<const UploadedSite&>(packed);
    for (std::size_t i = 0; i < site.parts.size(); ++i) {
      const DeviceGptq& part = site.parts[i];
      const Scratch at = scratch(args.rows, part.in_features, part.out_features, part.row_index != nullptr);
      MatrixRef x = args.x;
      if (part.row_index != nullptr) {
        auto* gathered = reinterpret_cast<__half*>(args.workspace + at.x);
        gather_columns(x, args.rows, part.row_index, part.in_features, gathered, cuda);
        x = {gathered, DType::f16, args.rows, part.in_features, part.in_features};
      }
      if (args.rows < kGemmRows) {
        run_blocks(part, x, args.rows, args.y[i], cuda);
      } else {
        auto* weights = reinterpret_cast<__half*>(args.workspace + at.weights);
        dequantize(part, RowOrder::sorted, weights, cuda);
        gemm({.m = args.rows,
              .n = part.out_features,
              .k = part.in_features,
              .x = x.data,
              .x_stride = x.stride,
              .w = weights,
              .w_stride = part.out_features,
              .w_is_kn = true,
              .y = args.y[i].data,
              .y_stride = args.y[i].stride,
              .bias = part.bias,
              .half_accumulate = true,
              .workspace = args.workspace + at.gemm},
             cuda);
      }
    }
  }

 private:
  static void run_blocks(const DeviceGptq& part, const MatrixRef& x, std::int64_t rows, const MatrixRef& y,
                         CudaStream& stream) {
    clear_rows(y, rows, stream);
    const int block = block_rows(part.out_features);
    const dim3 grid(static_cast<unsigned>(ceil_div(part.out_features, std::int64_t{kColumns})),
                    static_cast<unsigned>(rows),
                    static_cast<unsigned>(ceil_div(part.in_features, std::int64_t{block})));
    launch(stream, grid, kColumns, 0, Overlap::no, multiply, static_cast<const __half*>(x.data), x.stride, part.codes,
           part.zeros, part.scales, part.in_features, part.out_features, part.group_size, block,
           static_cast<__half*>(y.data), y.stride, begins_on_pairs(y));
    if (part.bias != nullptr) add_bias(y.data, y.dtype, y.stride, rows, part.out_features, part.bias, stream);
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, ExllamaKernel);

}  // namespace
}  // namespace nibble::cuda
