#include "kernels/cpu/common_panels.h"

#include "core/cpu.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <vector>

namespace nibble::panels {

// Products of bf16 pairs take half the time of float ones on some processors, and nearly twice as long on others
// (Sapphire Rapids: 108 against 176 GFLOP/s a core): measured once, on a panel of 32 KiB and 12 rows, some 2 us a run.
bool pairs_are_faster() {
  if (active_isa() < Isa::avx512bf16) return false;
  static const bool faster = [] {
    constexpr std::int64_t kInputs = 512;
    constexpr std::int64_t kRows = 12;
    const std::vector<std::uint16_t> panel(static_cast<std::size_t>(kInputs * kWidth), std::uint16_t{0x3f80});
    const std::vector<std::uint16_t> pairs(static_cast<std::size_t>(kInputs * 16), std::uint16_t{0x3f80});
    const std::vector<float> floats(static_cast<std::size_t>(kInputs * kRows), 1.0f);
    std::vector<float> out(static_cast<std::size_t>(16 * kWidth));
    // The best of 20, so that a run that was interrupted does not count.
    const auto best = [](const auto& run) {
      auto least = std::chrono::steady_clock::duration::max();
      for (int i = 0; i < 20; ++i) {
        const auto start = std::chrono::steady_clock::now();
        run();
        least = std::min(least, std::chrono::steady_clock::now() - start);
      }
      return least;
    };
    const auto of_pairs =
        best([&] { bf16_avx512bf16(panel.data(), kInputs, pairs.data(), kInputs, kRows, out.data()); });
    const auto of_floats =
        best([&] { mixed_avx512(panel.data(), kInputs, floats.data(), kInputs, kRows, out.data()); });
    return of_pairs < of_floats;
  }();
  return faster;
}

Functions functions() {
  Functions f;
  f.f32 = pick<F32Product>({{Isa::scalar, f32_scalar}, {Isa::avx2, f32_avx2}, {Isa::avx512, f32_avx512}});
  f.mixed = pick<MixedProduct>({{Isa::scalar, mixed_scalar}, {Isa::avx2, mixed_avx2}, {Isa::avx512, mixed_avx512}});
  f.bf16 = pick<Bf16Product>({{Isa::avx512bf16, bf16_avx512bf16}, {Isa::amx, bf16_amx}});
  if (f.bf16 == bf16_avx512bf16 && !pairs_are_faster()) f.bf16 = nullptr;
  f.sum_squares = pick<SumSquares>(
      {{Isa::scalar, sum_squares_scalar}, {Isa::avx2, sum_squares_avx2}, {Isa::avx512, sum_squares_avx512}});
  f.scale = pick<Scale>({{Isa::scalar, scale_scalar}, {Isa::avx2, scale_avx2}, {Isa::avx512, scale_avx512}});
  f.scale_bf16 = pick<ScaleBf16>({{Isa::avx512bf16, scale_bf16_avx512bf16}});
  f.gated_sigmoid = pick<GatedSigmoid>(
      {{Isa::scalar, gated_sigmoid_scalar}, {Isa::avx2, gated_sigmoid_avx2}, {Isa::avx512, gated_sigmoid_avx512}});
  f.finish = pick<FinishRows>({{Isa::scalar, finish_scalar}, {Isa::avx2, finish_avx2}, {Isa::avx512, finish_avx512}});
  return f;
}

void f32_scalar(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                float* out) {
  for (std::int64_t m = 0; m < rows; ++m) {
    float* sum = out + m * kWidth;
    std::fill(sum, sum + kWidth, 0.0f);
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t n = 0; n < kWidth; ++n) sum[n] += x[m * stride + i] * panel[i * kWidth + n];
    }
  }
}

void mixed_scalar(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                  float* out) {
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

void finish_scalar(const float* products, const float* bias, const float* residual, std::int64_t residual_stride,
                   std::int64_t rows, std::int64_t count, float* y, std::int64_t y_stride) {
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < count; ++n) {
      const float sum = products[m * kWidth + n] + bias[n];
      y[m * y_stride + n] = residual == nullptr ? sum : residual[m * residual_stride + n] + sum;
    }
  }
}

}  // namespace nibble::panels
