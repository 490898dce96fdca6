#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/gptq_codes.cuh"
#include "kernels/cuda/gptq_ops.h"

namespace nibble::cuda {
namespace {

// Codes come in runs of 32, which fill whole words for every width.
constexpr int kRun = 32;
constexpr int kThreads = 128;
constexpr int kGatherThreads = 256;
// Rows of x that one block gathers with one reading of the index.
constexpr int kGatherRows = 16;

__global__ void __launch_bounds__(kThreads)
    sort_rows(const std::uint32_t* __restrict__ from, const std::int32_t* __restrict__ order, int outputs,
              std::uint32_t* __restrict__ to) {
  const int n = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (n >= outputs) return;
  std::uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int row = order[8 * blockIdx.y + j];
    const std::uint32_t code = from[static_cast<std::size_t>(row / 8) * outputs + n] >> (row % 8 * 4) & 15u;
    word |= code << (4 * j);
  }
  to[static_cast<std::size_t>(blockIdx.y) * outputs + n] = word;
}

// A thread makes a word, `words` to a row.
__global__ void __launch_bounds__(kThreads)
    pack_zero_words(const std::uint16_t* __restrict__ zeros, int bits, int outputs, std::int64_t words,
                    std::int64_t count, std::uint32_t* __restrict__ to) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  const std::int64_t group = at / words;
  const int first_bit = static_cast<int>(at % words) * 32;
  std::uint32_t word = 0;
  for (int n = first_bit / bits; n * bits < first_bit + 32; ++n) {
    const std::uint32_t zero = zeros == nullptr ? 1u << (bits - 1) : zeros[group * outputs + n];
    const std::uint32_t stored = (zero - 1u) & ((1u << bits) - 1u);
    // A zero point of 3 bits may have begun in the word before.
    const int shift = n * bits - first_bit;
    word |= shift >= 0 ? stored << shift : stored >> -shift;
  }
  to[at] = word;
}

// A thread has two outputs and a run of inputs: it reads and writes whole pairs.
template <int kBits, bool kIndexed>
__global__ void __launch_bounds__(kThreads)
    dequantize_runs(const std::uint32_t* __restrict__ codes, const std::uint32_t* __restrict__ zeros,
                    const __half* __restrict__ scales, const std::int32_t* __restrict__ groups, int group_size,
                    int outputs, __half* __restrict__ to) {
  const int n = 2 * (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x));
  if (n >= outputs) return;
  const int k0 = static_cast<int>(blockIdx.y) * kRun;
  std::uint32_t first[kBits];
  std::uint32_t second[kBits];
#pragma unroll
  for (int i = 0; i < kBits; ++i) {
    const std::size_t at = static_cast<std::size_t>(blockIdx.y * kBits + i) * outputs + n;
    const uint2 words = *reinterpret_cast<const uint2*>(codes + at);
    first[i] = words.x;
    second[i] = words.y;
  }
  const int zero_words = outputs * kBits / 32;
  __half2 scale = as_half2(0);
  __half2 minus = as_half2(0);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    // Without an index groups are multiples of 8 rows.
    if (kIndexed || i % 8 == 0) {
      const std::size_t g = kIndexed ? groups[k0 + i] : (k0 + i) / group_size;
      scale = *reinterpret_cast<const __half2*>(scales + g * outputs + n);
      const std::uint32_t* const row = zeros + g * zero_words;
      minus = as_half2(0xe400e400u | zero_point<kBits>(row, n) | zero_point<kBits>(row, n + 1) << 16);
    }
    // 0x6400 is 1024 in f16, whose last bit there is 1: 1024 + code, and above -(1024 + zero), are exact, and so is
    // their sum.
    const std::uint32_t pair =
        0x64006400u | stream_bits<kBits>(first, i * kBits) | stream_bits<kBits>(second, i * kBits) << 16;
    const __half2 value = __hmul2(__hadd2(as_half2(pair), minus), scale);
    *reinterpret_cast<__half2*>(to + static_cast<std::size_t>(k0 + i) * outputs + n) = value;
  }
}

__global__ void __launch_bounds__(kGatherThreads)
    gather(const __half* __restrict__ x, std::int64_t x_stride, int rows, const std::int32_t* __restrict__ index,
           int columns, __half* __restrict__ to) {
  const int k = static_cast<int>(blockIdx.x) * kGatherThreads + static_cast<int>(threadIdx.x);
  if (k >= columns) return;
  const int from = index[k];
  const int begin = static_cast<int>(blockIdx.y) * kGatherRows;
  const int end = min(rows, begin + kGatherRows);
  for (int m = begin; m < end; ++m) to[static_cast<std::size_t>(m) * columns + k] = x[m * x_stride + from];
}

__global__ void __launch_bounds__(kThreads) clear(int columns, __half* __restrict__ y, std::int64_t y_stride) {
  const int n = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (n < columns) y[blockIdx.y * y_stride + n] = __float2half_rn(0.0f);
}

__global__ void __launch_bounds__(kThreads) store(const float* __restrict__ sums, const float* __restrict__ bias,
                                                  int columns, __half* __restrict__ y, std::int64_t y_stride) {
  const int n = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (n >= columns) return;
  const float sum = sums[static_cast<std::size_t>(blockIdx.y) * columns + n];
  y[blockIdx.y * y_stride + n] = __float2half_rn(bias == nullptr ? sum : sum + bias[n]);
}

unsigned blocks(std::int64_t count, std::int64_t a_block) { return static_cast<unsigned>(ceil_div(count, a_block)); }

// A thread an element.
dim3 row_grid(const MatrixRef& y, std::int64_t rows) {
  return {blocks(y.columns, kThreads), static_cast<unsigned>(rows)};
}

template <int kBits>
void dequantize_bits(const DeviceGptq& weights, bool indexed, __half* to, CudaStream& stream) {
  const dim3 grid(blocks(weights.out_features, 2 * kThreads), blocks(weights.in_features, kRun));
  launch(stream, grid, kThreads, 0, Overlap::no, indexed ? dequantize_runs<kBits, true> : dequantize_runs<kBits, false>,
         weights.codes, weights.zeros, weights.scales, weights.row_index, weights.group_size, weights.out_features, to);
}

}  // namespace

void sort_code_rows(const std::uint32_t* from, const DeviceGptq& to, CudaStream& stream) {
  launch(stream, dim3(blocks(to.out_features, kThreads), blocks(to.in_features, 8)), kThreads, 0, Overlap::no,
         sort_rows, from, to.row_index, to.out_features, to.codes);
}

void pack_zeros(const std::uint16_t* zeros, const DeviceGptq& shape, std::uint32_t* to, CudaStream& stream) {
  const std::int64_t words = shape.out_features * shape.bits / 32;
  const std::int64_t count = shape.groups * words;
  launch(stream, blocks(count, kThreads), kThreads, 0, Overlap::no, pack_zero_words, zeros, shape.bits,
         shape.out_features, words, count, to);
}

void dequantize(const DeviceGptq& weights, RowOrder order, __half* to, CudaStream& stream) {
  const bool indexed = order == RowOrder::indexed;
  switch (weights.bits) {
    case 2:
      return dequantize_bits<2>(weights, indexed, to, stream);
    case 3:
      return dequantize_bits<3>(weights, indexed, to, stream);
    case 4:
      return dequantize_bits<4>(weights, indexed, to, stream);
    case 8:
      return dequantize_bits<8>(weights, indexed, to, stream);
    default:
      fail("no GPTQ weights have {} bits", weights.bits);
  }
}

void gather_columns(const MatrixRef& x, std::int64_t rows, const std::int32_t* index, std::int64_t columns, __half* to,
                    CudaStream& stream) {
  launch(stream, dim3(blocks(columns, kGatherThreads), blocks(rows, kGatherRows)), kGatherThreads, 0, Overlap::no,
         gather, static_cast<const __half*>(x.data), x.stride, rows, index, columns, to);
}

void clear_rows(const MatrixRef& y, std::int64_t rows, CudaStream& stream) {
  launch(stream, row_grid(y, rows), kThreads, 0, Overlap::no, clear, y.columns, static_cast<__half*>(y.data), y.stride);
}

void store_sums(const float* sums, const float* bias, const MatrixRef& y, std::int64_t rows, CudaStream& stream) {
  launch(stream, row_grid(y, rows), kThreads, 0, Overlap::no, store, sums, bias, y.columns,
         static_cast<__half*>(y.data), y.stride);
}

}  // namespace nibble::cuda
