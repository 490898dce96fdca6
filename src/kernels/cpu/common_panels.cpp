#include "kernels/cpu/common_panels.h"

#include "core/cpu.h"
#include "kernels/cpu/scalar_activation.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <vector>

namespace nibble::panels {
namespace {

void put(const float* sum, std::int64_t row, const Output& to) {
  for (std::int64_t n = 0; n < kWidth; ++n) {
    const float value = sum[n] + to.bias[n];
    to.y[row * to.stride + n] = to.residual == nullptr ? value : to.residual[row * to.residual_stride + n] + value;
  }
}

}  // namespace

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
    std::vector<float> out(static_cast<std::size_t>(kRows * kWidth));
    const std::vector<float> bias(static_cast<std::size_t>(kWidth));
    const Output to{.y = out.data(), .stride = kWidth, .bias = bias.data()};
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
    const auto of_pairs = best([&] { bf16_avx512bf16(panel.data(), kInputs, pairs.data(), kInputs, kRows, to); });
    const auto of_floats = best([&] { mixed_avx512(panel.data(), kInputs, floats.data(), kInputs, kRows, to); });
    return of_pairs < of_floats;
  }();
  return faster;
}

// Rows from which on products of bf16 pairs beat float inputs. vdpbf16ps, Zen 5, a core: 2 rows take 0.64 (K 384,
// weights in a cache) to 0.93 (K 576, weights from memory) of the time, 8 rows 0.53 to 0.73. AMX, whose tiles have 16
// rows: K = 576, weights from memory, pairs and floats: 8 rows 1.9 and 1.9 us a panel, 12 rows 1.9 and 2.4, 16 rows 2.0
// and 3.7.
constexpr std::int64_t kVectorPairRows = 2;
constexpr std::int64_t kTilePairRows = 9;
// Rows of a step of bf16_amx.
constexpr std::int64_t kTilePairTile = 32;

Functions functions() {
  Functions f;
  f.f32 = pick<F32Product>({{Isa::scalar, f32_scalar}, {Isa::avx2, f32_avx2}, {Isa::avx512, f32_avx512}});
  f.mixed = pick<MixedProduct>({{Isa::scalar, mixed_scalar}, {Isa::avx2, mixed_avx2}, {Isa::avx512, mixed_avx512}});
  f.bf16 = pick<Bf16Product>({{Isa::avx512bf16, bf16_avx512bf16}, {Isa::amx, bf16_amx}});
  if (f.bf16 == bf16_avx512bf16 && !pairs_are_faster()) f.bf16 = nullptr;
  f.bf16_rows = f.bf16 == bf16_amx ? kTilePairRows : kVectorPairRows;
  f.bf16_tile = f.bf16 == bf16_amx ? kTilePairTile : kTileRows;
  f.sum_squares = pick<SumSquares>(
      {{Isa::scalar, sum_squares_scalar}, {Isa::avx2, sum_squares_avx2}, {Isa::avx512, sum_squares_avx512}});
  f.scale = pick<Scale>({{Isa::scalar, scale_scalar}, {Isa::avx2, scale_avx2}, {Isa::avx512, scale_avx512}});
  f.scale_bf16 = pick<ScaleBf16>({{Isa::avx512bf16, scale_bf16_avx512bf16}});
  f.activate =
      pick<Activate>({{Isa::scalar, activate_scalar}, {Isa::avx2, activate_avx2}, {Isa::avx512, activate_avx512}});
  f.gate = pick<Gate>({{Isa::scalar, gate_scalar}, {Isa::avx2, gate_avx2}, {Isa::avx512, gate_avx512}});
  return f;
}

void f32_scalar(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                const Output& to) {
  for (std::int64_t m = 0; m < rows; ++m) {
    float sum[kWidth] = {};
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t n = 0; n < kWidth; ++n) sum[n] += x[m * stride + i] * panel[i * kWidth + n];
    }
    put(sum, m, to);
  }
}

void mixed_scalar(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                  const Output& to) {
  for (std::int64_t m = 0; m < rows; ++m) {
    float sum[kWidth] = {};
    for (std::int64_t i = 0; i < k; ++i) {
      const std::uint16_t* pairs = panel + i / 2 * 2 * kWidth + i % 2;
      for (std::int64_t n = 0; n < kWidth; ++n) {
        sum[n] += x[m * stride + i] * std::bit_cast<float>(static_cast<std::uint32_t>(pairs[2 * n]) << 16);
      }
    }
    put(sum, m, to);
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

void activate_scalar(ActivationKind kind, const float* x, std::int64_t rows, std::int64_t count, float* y,
                     std::int64_t stride) {
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < count; ++n) y[m * stride + n] = cpu::activated(kind, x[m * kWidth + n]);
  }
}

void gate_scalar(ActivationKind kind, const float* gate, const float* up, std::int64_t rows, std::int64_t count,
                 float* y, std::int64_t stride) {
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < count; ++n) {
      y[m * stride + n] = cpu::activated(kind, gate[m * kWidth + n]) * up[m * kWidth + n];
    }
  }
}

}  // namespace nibble::panels
