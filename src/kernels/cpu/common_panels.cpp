#include "kernels/cpu/common_panels.h"

#include "core/cpu.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble::panels {

Functions functions() {
  Functions f;
  f.f32 = pick<F32Product>({{Isa::scalar, f32_scalar}, {Isa::avx2, f32_avx2}, {Isa::avx512, f32_avx512}});
  f.mixed = pick<MixedProduct>({{Isa::scalar, mixed_scalar}, {Isa::avx2, mixed_avx2}, {Isa::avx512, mixed_avx512}});
  f.bf16 = pick<Bf16Product>({{Isa::avx512bf16, bf16_avx512bf16}});
  f.bf16_many = pick<Bf16Product>({{Isa::amx, bf16_amx}});
  f.sum_squares = pick<SumSquares>({{Isa::scalar, sum_squares_scalar}, {Isa::avx2, sum_squares_avx2}, {Isa::avx512, sum_squares_avx512}});
  f.scale = pick<Scale>({{Isa::scalar, scale_scalar}, {Isa::avx2, scale_avx2}, {Isa::avx512, scale_avx512}});
  f.scale_bf16 = pick<ScaleBf16>({{Isa::avx512bf16, scale_bf16_avx512bf16}});
  f.gated_sigmoid =
      pick<GatedSigmoid>({{Isa::scalar, gated_sigmoid_scalar}, {Isa::avx2, gated_sigmoid_avx2}, {Isa::avx512, gated_sigmoid_avx512}});
  return f;
}

void f32_scalar(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows, float* out) {
  for (std::int64_t m = 0; m < rows; ++m) {
    float* sum = out + m * kWidth;
    std::fill(sum, sum + kWidth, 0.0f);
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t n = 0; n < kWidth; ++n) sum[n] += x[m * stride + i] * panel[i * kWidth + n];
    }
  }
}

void mixed_scalar(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows, float* out) {
  for (std::int64_t m = 0; m < rows; ++m) {
    float* sum = out + m * kWidth;
    std::fill(sum, sum + kWidth, 0.0f);
    for (std::int64_t i = 0; i < k; ++i) {
      const std::uint16_t* pairs = panel + i / 2 * 2 * kWidth + i % 2;
      for (std::int64_t n = 0; n < kWidth; ++n) {
        sum[n] += x[m * stride + i] * std::bit_cast<float>(static_cast<std::uint32_t>(pairs[2 * n]) << 16);
      }
    }
  }
}

float sum_squares_scalar(const float* x, std::int64_t k) {
  // Sixteen sums, as the SIMD versions have them: one sum of thousands of squares loses digits.
  float sums[16] = {};
  for (std::int64_t i = 0; i < k; ++i) sums[i % 16] += x[i] * x[i];
  float total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

void scale_scalar(const float* x, const float* weight, float factor, std::int64_t k, float* out) {
  for (std::int64_t i = 0; i < k; ++i) out[i] = x[i] * factor * weight[i];
}

void gated_sigmoid_scalar(const float* gate, const float* up, std::int64_t count, bool gelu, float* out) {
  constexpr float kGelu = 1.5957691216f;  // 2 sqrt(2 / pi)
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gate[i];
    const float t = gelu ? kGelu * (g + 0.044715f * g * g * g) : g;
    out[i] = up[i] * g / (1.0f + std::exp(-t));
  }
}

}  // namespace nibble::panels
