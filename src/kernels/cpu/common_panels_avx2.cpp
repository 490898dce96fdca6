#include "core/simd_avx2.h"

#include "core/simd_math.h"

#include "kernels/cpu/simd_activations.h"

#include "kernels/cpu/common_panels.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

// 12 of the 16 registers are sums: up to 3 rows take all 32 outputs (4 registers wide), 4 to 6 rows 16 outputs twice.
constexpr int kRows = 6;

template <int R>
constexpr int kWide = R <= 3 ? 4 : 2;

// The two cache lines that stand 2 KiB ahead, as in the AVX-512 unit.
void prefetch(const void* at) {
  constexpr int kAhead = 2048;
  _mm_prefetch(static_cast<const char*>(at) + kAhead, _MM_HINT_T0);
  _mm_prefetch(static_cast<const char*>(at) + kAhead + 64, _MM_HINT_T0);
}

// Eight outputs of a row.
void put(__m256 product, int row, int eighth, const Output& to) {
  __m256 sum = _mm256_add_ps(product, _mm256_loadu_ps(to.bias + eighth * 8));
  if (to.residual != nullptr) {
    sum = _mm256_add_ps(_mm256_loadu_ps(to.residual + row * to.residual_stride + eighth * 8), sum);
  }
  _mm256_storeu_ps(to.y + row * to.stride + eighth * 8, sum);
}

template <int R>
void f32_part(const float* panel, std::int64_t k, const float* x, std::int64_t stride, const Output& to) {
  constexpr int kVectors = kWide<R>;
  __m256 sum[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_setzero_ps();
  }
  for (std::int64_t i = 0; i < k; ++i) {
    prefetch(panel + i * kWidth);
    __m256 a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (kVectors == 4) a[r] = _mm256_broadcast_ss(x + r * stride + i);
    }
    __m256 w[kVectors];
    if (kVectors == 2) {
      w[0] = _mm256_loadu_ps(panel + i * kWidth);
      w[1] = _mm256_loadu_ps(panel + i * kWidth + 8);
    }
#pragma GCC unroll 8
    for (int outer = 0; outer < (kVectors == 4 ? kVectors : R); ++outer) {
      if (kVectors == 4) {
        const __m256 weight = _mm256_loadu_ps(panel + i * kWidth + outer * 8);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][outer] = _mm256_fmadd_ps(a[r], weight, sum[r][outer]);
      } else {
        const __m256 value = _mm256_broadcast_ss(x + outer * stride + i);
        sum[outer][0] = _mm256_fmadd_ps(value, w[0], sum[outer][0]);
        sum[outer][1] = _mm256_fmadd_ps(value, w[1], sum[outer][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) put(sum[r][v], r, v, to);
  }
}

// The first (`odd` false) or second elements of 8 pairs as floats: the first is the low half of its word, which shifted
// up is the float; the second needs only its mask.
template <bool odd>
__m256 elements(const std::uint16_t* pairs) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  if (odd) return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

// One k of all rows: sum += x * w. Either the weights or the inputs stay in registers, whichever are fewer; with the 12
// sums that leaves one or two for the others.
template <int R, bool odd>
void mixed_step(const std::uint16_t* pairs, const float* x, std::int64_t stride, __m256 (&sum)[R][kWide<R>]) {
  if (kWide<R> == 4) {
    __m256 a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = _mm256_broadcast_ss(x + r * stride);
#pragma GCC unroll 8
    for (int v = 0; v < kWide<R>; ++v) {
      const __m256 w = elements<odd>(pairs + v * 16);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][v] = _mm256_fmadd_ps(a[r], w, sum[r][v]);
    }
  } else {
    const __m256 w0 = elements<odd>(pairs);
    const __m256 w1 = elements<odd>(pairs + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m256 a = _mm256_broadcast_ss(x + r * stride);
      sum[r][0] = _mm256_fmadd_ps(a, w0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(a, w1, sum[r][1]);
    }
  }
}

template <int R>
void mixed_part(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, const Output& to) {
  constexpr int kVectors = kWide<R>;
  __m256 sum[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_setzero_ps();
  }
  std::int64_t i = 0;
  for (; i + 2 <= k; i += 2) {
    prefetch(panel + i * kWidth);
    mixed_step<R, false>(panel + i * kWidth, x + i, stride, sum);
    mixed_step<R, true>(panel + i * kWidth, x + i + 1, stride, sum);
  }
  // A last odd k has a zero beside it in the panel, but x must not be read there.
  if (i < k) mixed_step<R, false>(panel + i * kWidth, x + i, stride, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) put(sum[r][v], r, v, to);
  }
}

template <typename Panel>
using Part = void(const Panel*, std::int64_t, const float*, std::int64_t, const Output&);
constexpr Part<float>* kF32Parts[kRows] = {f32_part<1>, f32_part<2>, f32_part<3>,
                                           f32_part<4>, f32_part<5>, f32_part<6>};
constexpr Part<std::uint16_t>* kMixedParts[kRows] = {mixed_part<1>, mixed_part<2>, mixed_part<3>,
                                                     mixed_part<4>, mixed_part<5>, mixed_part<6>};

// The outputs from a row and a column on.
Output part_of(Output to, std::int64_t row, std::int64_t column) {
  to.y += row * to.stride + column;
  to.bias += column;
  if (to.residual != nullptr) to.residual += row * to.residual_stride + column;
  return to;
}

// `half` is the distance in the panel from output 0 to output 16.
template <typename Panel>
void by_parts(Part<Panel>* const* parts, std::int64_t half, const Panel* panel, std::int64_t k, const float* x,
              std::int64_t stride, std::int64_t rows, const Output& to) {
  for (std::int64_t m = 0, left = (rows + kRows - 1) / kRows; left > 0; --left) {
    const std::int64_t height = (rows - m + left - 1) / left;
    parts[height - 1](panel, k, x + m * stride, stride, part_of(to, m, 0));
    if (height > 3) parts[height - 1](panel + half, k, x + m * stride, stride, part_of(to, m, 16));
    m += height;
  }
}

}  // namespace

void f32_avx2(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
              const Output& to) {
  by_parts(kF32Parts, 16, panel, k, x, stride, rows, to);
}

void mixed_avx2(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                const Output& to) {
  by_parts(kMixedParts, 32, panel, k, x, stride, rows, to);
}

float sum_squares_avx2(const float* x, std::int64_t k) {
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  std::int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    const __m256 a = _mm256_loadu_ps(x + i);
    const __m256 b = _mm256_loadu_ps(x + i + 8);
    sum[0] = _mm256_fmadd_ps(a, a, sum[0]);
    sum[1] = _mm256_fmadd_ps(b, b, sum[1]);
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, _mm256_add_ps(sum[0], sum[1]));
  float total = 0;
  for (const float lane : lanes) total += lane;
  for (; i < k; ++i) total += x[i] * x[i];
  return total;
}

void scale_avx2(const float* x, const float* weight, float factor, std::int64_t k, float* out) {
  const __m256 f = _mm256_set1_ps(factor);
  std::int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), f), _mm256_loadu_ps(weight + i)));
  }
  for (; i < k; ++i) out[i] = x[i] * factor * weight[i];
}

void activate_avx2(ActivationKind kind, const float* x, std::int64_t rows, std::int64_t count, float* y,
                   std::int64_t stride) {
  cpu::with_activation(kind, [=](const auto& act) {
    for (std::int64_t m = 0; m < rows; ++m) {
      cpu::for_registers(count, [&](std::int64_t i, std::int64_t lanes) {
        cpu::store_some(y + m * stride + i, lanes, act(cpu::load_some(x + m * kWidth + i, lanes)));
      });
    }
  });
}

void gate_avx2(ActivationKind kind, const float* gate, const float* up, std::int64_t rows, std::int64_t count, float* y,
               std::int64_t stride) {
  cpu::with_activation(kind, [=](const auto& act) {
    for (std::int64_t m = 0; m < rows; ++m) {
      cpu::for_registers(count, [&](std::int64_t i, std::int64_t lanes) {
        const std::int64_t from = m * kWidth + i;
        cpu::store_some(y + m * stride + i, lanes,
                        cpu::Vec::mul(act(cpu::load_some(gate + from, lanes)), cpu::load_some(up + from, lanes)));
      });
    }
  });
}

}  // namespace nibble::panels
