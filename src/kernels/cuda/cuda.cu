// `cuda`: AutoGPTQ's kernel for weights with act-order, rebuilt from its description. Up to 127 rows, a block
// dequantises a square of weights, looking up the group of each row of codes, and multiplies all rows of x by it, in
// f32; the sums are added by f32 atomics. With more rows, one kernel dequantises the weights and cuBLAS multiplies by
// them; the original makes several temporary matrices by tensor operations, which is slower. It also keeps a thread's
// 64 or 256 weights in an array, which lies in local memory; here they are dequantised 4 at a time, again for every 8
// rows of x.
#include "core/cuda/launch.cuh"
#include "kernels/cuda/f32_sums.h"
#include "kernels/cuda/gptq_codes.cuh"
#include "kernels/registry.h"

namespace nibble::cuda {
namespace {

// Rows of codes that fill whole words at every width.
constexpr int kRun = 32;
// Rows of x that share the unpacking of weights.
constexpr int kMostBatch = 8;

// Two blocks of 256, or as many threads in smaller ones: told so, ptxas takes the registers that it needs.
template <int kBits, int kWidth, int kBatch>
__global__ void __launch_bounds__(kWidth, 512 / kWidth)
    multiply(const __half* __restrict__ x, std::int64_t x_stride, int rows, const std::uint32_t* __restrict__ codes,
             const std::uint32_t* __restrict__ zeros, const __half* __restrict__ scales,
             const std::int32_t* __restrict__ groups, int outputs, float* __restrict__ sums) {
  __shared__ int group_of[kWidth];
  __shared__ alignas(16) float inputs[kBatch][kWidth];
  const int thread = static_cast<int>(threadIdx.x);
  const int n = static_cast<int>(blockIdx.y) * kWidth + thread;
  const int k0 = static_cast<int>(blockIdx.x) * kWidth;
  const int zero_words = outputs / 32 * kBits;
  codes += static_cast<std::size_t>(k0 / kRun * kBits) * outputs + n;
  group_of[thread] = groups[k0 + thread];

  for (int m0 = 0; m0 < rows; m0 += kBatch) {
    // Nobody reads the rows before any more.
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kBatch; ++m)
      inputs[m][thread] = m0 + m < rows ? __half2float(x[(m0 + m) * x_stride + k0 + thread]) : 0.0f;
    __syncthreads();

    float sum[kBatch] = {};
#pragma unroll 1
    for (int run = 0; run < kWidth / kRun; ++run) {
      std::uint32_t words[kBits];
#pragma unroll
      for (int i = 0; i < kBits; ++i) words[i] = codes[static_cast<std::size_t>(run * kBits + i) * outputs];
#pragma unroll
      for (int i = 0; i < kRun; i += 4) {
        float weight[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::size_t group = group_of[run * kRun + i + j];
          const int zero = static_cast<int>(zero_point<kBits>(zeros + group * zero_words, n));
          const int code = static_cast<int>(stream_bits<kBits>(words, (i + j) * kBits));
          weight[j] = __half2float(scales[group * outputs + n]) * static_cast<float>(code - zero);
        }
#pragma unroll
        for (int m = 0; m < kBatch; ++m) {
          const float4 four = *reinterpret_cast<const float4*>(&inputs[m][run * kRun + i]);
          sum[m] = fmaf(weight[0], four.x, sum[m]);
          sum[m] = fmaf(weight[1], four.y, sum[m]);
          sum[m] = fmaf(weight[2], four.z, sum[m]);
          sum[m] = fmaf(weight[3], four.w, sum[m]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kBatch; ++m) {
      if (m0 + m < rows) atomicAdd(sums + static_cast<std::size_t>(m0 + m) * outputs + n, sum[m]);
    }
  }
}

template <int kBits, int kWidth>
void multiply_blocks(const DeviceGptq& part, const MatrixRef& x, std::int64_t rows, float* sums, CudaStream& stream) {
  const dim3 grid(static_cast<unsigned>(part.in_features / kWidth), static_cast<unsigned>(part.out_features / kWidth));
  launch(stream, grid, kWidth, 0, Overlap::no,
         rows == 1 ? multiply<kBits, kWidth, 1> : multiply<kBits, kWidth, kMostBatch>,
         static_cast<const __half*>(x.data), x.stride, rows, part.codes, part.zeros, part.scales, part.row_index,
         part.out_features, sums);
}

template <int kBits>
void multiply_bits(const DeviceGptq& part, const MatrixRef& x, std::int64_t rows, int width, float* sums,
                   CudaStream& stream) {
  if (width == 256) {
    multiply_blocks<kBits, 256>(part, x, rows, sums, stream);
  } else {
    multiply_blocks<kBits, 64>(part, x, rows, sums, stream);
  }
}

class CudaKernel final : public F32SumsKernel {
 public:
  CudaKernel() : F32SumsKernel(RowOrder::indexed) {}
  std::string_view name() const override { return "cuda"; }
  KernelTraits traits() const override {
    return {
        .summary = "cuda of AutoGPTQ, for comparison; from 128 rows on dequantises, in one kernel where that has many",
        .accumulate = "f32",
        .deterministic = false,
        .in_auto = false};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    if (std::string why = refused(site); !why.empty()) return Fit::no(std::move(why));
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

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, CudaKernel);

}  // namespace
}  // namespace nibble::cuda
