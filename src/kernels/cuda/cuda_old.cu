// `cuda-old`: AutoGPTQ's kernel for weights without act-order, rebuilt from its description. Up to 127 rows, a block
// multiplies one row of x by a square of weights, which it unpacks again for every row: pairs of codes become pairs of
// halves by a table in shared memory, products are summed in f16 over 8 rows of codes and in f32 beyond (codes of 8
// bits: in f32 alone), and the sums added by f32 atomics. With more rows, one kernel dequantises the weights and cuBLAS
// multiplies by them; the original makes several temporary matrices by tensor operations, which is slower.
#include "core/cuda/launch.cuh"
#include "kernels/cuda/f32_sums.h"
#include "kernels/cuda/gptq_codes.cuh"
#include "kernels/registry.h"

#include <type_traits>

namespace nibble::cuda {
namespace {

// Rows of codes that fill whole words at every width, and lie in one group.
constexpr int kRun = 32;

template <int kBits>
__device__ __forceinline__ void load_run(std::uint32_t (&to)[kBits], const std::uint32_t* __restrict__ codes,
                                         int outputs, int run) {
#pragma unroll
  for (int i = 0; i < kBits; ++i) to[i] = codes[static_cast<std::size_t>(run * kBits + i) * outputs];
}

// One run of one output by way of the table, whose entry for codes a, b is `pairs`[(a + b << kBits) * kCopies].
template <int kBits, int kCopies>
__device__ __forceinline__ float run_of_pairs(const std::uint32_t (&words)[kBits], const __half2* pairs,
                                              const __half* inputs, __half scale, std::uint32_t zero) {
  const __half2 scales = __half2half2(scale);
  const __half2 offset = __float2half2_rn(-(__half2float(scale) * static_cast<float>(zero)));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kRun; i += 8) {
    const uint4 eight = *reinterpret_cast<const uint4*>(inputs + i);
    const std::uint32_t x[4] = {eight.x, eight.y, eight.z, eight.w};
    __half2 part = as_half2(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t pair = stream_bits<2 * kBits>(words, (i + 2 * j) * kBits);
      part = __hfma2(__hfma2(pairs[pair * kCopies], scales, offset), as_half2(x[j]), part);
    }
    sum += __low2float(part) + __high2float(part);
  }
  return sum;
}

template <int kBits>
__device__ __forceinline__ float run_of_floats(const std::uint32_t (&words)[kBits], const float* inputs, float scale,
                                               std::uint32_t zero) {
  const float offset = -scale * static_cast<float>(zero);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i)
    sum = fmaf(fmaf(static_cast<float>(stream_bits<kBits>(words, i * kBits)), scale, offset), inputs[i], sum);
  return sum;
}

template <int kBits, int kWidth>
__global__ void __launch_bounds__(kWidth)
    multiply(const __half* __restrict__ x, std::int64_t x_stride, const std::uint32_t* __restrict__ codes,
             const std::uint32_t* __restrict__ zeros, const __half* __restrict__ scales, int outputs, int group_size,
             float* __restrict__ sums) {
  constexpr bool kByPairs = kBits <= 4;
  constexpr int kPairs = kByPairs ? 1 << (2 * kBits) : 1;
  // A copy for each lane, or as many as 8 KiB hold: lanes that read one copy get in each other's way.
  constexpr int kCopies = kBits < 4 ? 32 : 8;
  __shared__ __half2 table[kPairs * kCopies];
  using Input = std::conditional_t<kByPairs, __half, float>;
  __shared__ alignas(16) Input inputs[kWidth];

  const int thread = static_cast<int>(threadIdx.x);
  const int n = static_cast<int>(blockIdx.y) * kWidth + thread;
  const int k0 = static_cast<int>(blockIdx.x) * kWidth;
  codes += static_cast<std::size_t>(k0 / kRun * kBits) * outputs + n;
  std::uint32_t words[kBits];
  load_run<kBits>(words, codes, outputs, 0);
  inputs[thread] = static_cast<Input>(x[blockIdx.z * x_stride + k0 + thread]);
  if constexpr (kByPairs) {
    for (int i = thread; i < kPairs * kCopies; i += kWidth) {
      const int pair = i / kCopies;
      table[i] = __halves2half2(__int2half_rn(pair & ((1 << kBits) - 1)), __int2half_rn(pair >> kBits));
    }
  }
  __syncthreads();

  float sum = 0;
#pragma unroll 2
  for (int run = 0; run < kWidth / kRun; ++run) {
    std::uint32_t next[kBits] = {};
    if (run + 1 < kWidth / kRun) load_run<kBits>(next, codes, outputs, run + 1);
    const std::size_t group = (k0 + run * kRun) / group_size;
    const __half scale = scales[group * outputs + n];
    const std::uint32_t zero = zero_point<kBits>(zeros + group * (outputs / 32 * kBits), n);
    if constexpr (kByPairs) {
      sum += run_of_pairs<kBits, kCopies>(words, table + thread % kCopies, inputs + run * kRun, scale, zero);
    } else {
      sum += run_of_floats<kBits>(words, inputs + run * kRun, __half2float(scale), zero);
    }
#pragma unroll
    for (int i = 0; i < kBits; ++i) words[i] = next[i];
  }
  atomicAdd(sums + static_cast<std::size_t>(blockIdx.z) * outputs + n, sum);
}

template <int kBits>
void multiply_bits(const DeviceGptq& part, const MatrixRef& x, std::int64_t rows, int width, float* sums,
                   CudaStream& stream) {
  const dim3 grid(static_cast<unsigned>(part.in_features / width), static_cast<unsigned>(part.out_features / width),
                  static_cast<unsigned>(rows));
  launch(stream, grid, static_cast<unsigned>(width), 0, Overlap::no,
         width == 256 ? multiply<kBits, 256> : multiply<kBits, 64>, static_cast<const __half*>(x.data), x.stride,
         part.codes, part.zeros, part.scales, part.out_features, part.group_size, sums);
}

class CudaOldKernel final : public F32SumsKernel {
 public:
  CudaOldKernel() : F32SumsKernel(RowOrder::plain) {}
  std::string_view name() const override { return "cuda-old"; }
  KernelTraits traits() const override {
    return {.summary =
                "cuda-old of AutoGPTQ, for comparison; from 128 rows on dequantises, in one kernel where that has many",
            .accumulate = "f16 in 8 inputs, f32 beyond; 8 bits: f32",
            .deterministic = false,
            .in_auto = false,
            // scale * zero and each weight are rounded to f16 (2^-12 of up to 15 scales), products summed in f16.
            .error_f16 = 4e-3};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    if (std::string why = refused(site); !why.empty()) return Fit::no(std::move(why));
    for (const LinearDesc& part : site.parts) {
      const GptqFormat& format = *part.gptq;
      if (format.act_order)
        return Fit::no(
            fmt::format("{} is quantised with act-order, which cuda-old cannot follow: use cuda", part.name));
      const bool one_group = format.group_size == part.in_features;
      if (part.in_features % format.group_size != 0 || (!one_group && format.group_size % kRun != 0)) {
        return Fit::no(
            fmt::format("{} has groups of {} of its {} inputs, and cuda-old takes groups of equal size in "
                        "multiples of 32: use cuda",
                        part.name, format.group_size, part.in_features));
      }
    }
    return Fit::yes(false, false);
  }

 private:
  void add_products(const DeviceGptq& part, const MatrixRef& x, std::int64_t rows, int width, float* sums,
                    CudaStream& stream) const override {
    switch (part.bits) {
      case 2:
        return multiply_bits<2>(part, x, rows, width, sums, stream);
      case 3:
        return multiply_bits<3>(part, x, rows, width, sums, stream);
      case 4:
        return multiply_bits<4>(part, x, rows, width, sums, stream);
      default:
        return multiply_bits<8>(part, x, rows, width, sums, stream);
    }
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, CudaOldKernel);

}  // namespace
}  // namespace nibble::cuda
