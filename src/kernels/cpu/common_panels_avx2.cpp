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

template <int R>
void f32_part(const float* panel, std::int64_t k, const float* x, std::int64_t stride, float* out) {
  constexpr int V = kWide<R>;
  __m256 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = _mm256_setzero_ps();
  }
  for (std::int64_t i = 0; i < k; ++i) {
    prefetch(panel + i * kWidth);
    __m256 a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (V == 4) a[r] = _mm256_broadcast_ss(x + r * stride + i);
    }
    __m256 w[V];
    if (V == 2) {
      w[0] = _mm256_loadu_ps(panel + i * kWidth);
      w[1] = _mm256_loadu_ps(panel + i * kWidth + 8);
    }
#pragma GCC unroll 8
    for (int outer = 0; outer < (V == 4 ? V : R); ++outer) {
      if (V == 4) {
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
    for (int v = 0; v < V; ++v) _mm256_storeu_ps(out + r * kWidth + v * 8, sum[r][v]);
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
void mixed_part(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, float* out) {
  constexpr int V = kWide<R>;
  __m256 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = _mm256_setzero_ps();
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
    for (int v = 0; v < V; ++v) _mm256_storeu_ps(out + r * kWidth + v * 8, sum[r][v]);
  }
}

template <typename Panel>
using Part = void(const Panel*, std::int64_t, const float*, std::int64_t, float*);
constexpr Part<float>* kF32Parts[kRows] = {f32_part<1>, f32_part<2>, f32_part<3>,
                                           f32_part<4>, f32_part<5>, f32_part<6>};
constexpr Part<std::uint16_t>* kMixedParts[kRows] = {mixed_part<1>, mixed_part<2>, mixed_part<3>,
                                                     mixed_part<4>, mixed_part<5>, mixed_part<6>};

// `half` is the distance in the panel from output 0 to output 16.
template <typename Panel>
void by_parts(Part<Panel>* const* parts, std::int64_t half, const Panel* panel, std::int64_t k, const float* x,
              std::int64_t stride, std::int64_t rows, float* out) {
  for (std::int64_t m = 0, left = (rows + kRows - 1) / kRows; left > 0; --left) {
    const std::int64_t height = (rows - m + left - 1) / left;
    parts[height - 1](panel, k, x + m * stride, stride, out + m * kWidth);
    if (height > 3) parts[height - 1](panel + half, k, x + m * stride, stride, out + m * kWidth + 16);
    m += height;
  }
}

// As in the AVX-512 unit: 2^n times the Taylor series of e^r to r^7.
__m256 exp_of(__m256 v) {
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), v);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

}  // namespace

void f32_avx2(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows, float* out) {
  by_parts(kF32Parts, 16, panel, k, x, stride, rows, out);
}

void mixed_avx2(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                float* out) {
  by_parts(kMixedParts, 32, panel, k, x, stride, rows, out);
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

void gated_sigmoid_avx2(const float* gate, const float* up, std::int64_t count, bool gelu, float* out) {
  const __m256 limit = _mm256_set1_ps(87.0f);
  for (std::int64_t i = 0; i < count; i += 8) {
    const __m256 g = _mm256_loadu_ps(gate + i);
    __m256 t = g;
    if (gelu) {
      const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(0.044715f), _mm256_mul_ps(g, g)), g, g);
      t = _mm256_mul_ps(cubic, _mm256_set1_ps(1.5957691216f));  // 2 sqrt(2 / pi)
    }
    // The operand order keeps a NaN: min and max return their second operand then.
    const __m256 zero = _mm256_setzero_ps();
    const __m256 e = exp_of(_mm256_min_ps(limit, _mm256_max_ps(_mm256_sub_ps(zero, limit), _mm256_sub_ps(zero, t))));
    const __m256 product = _mm256_mul_ps(g, _mm256_loadu_ps(up + i));
    _mm256_storeu_ps(out + i, _mm256_div_ps(product, _mm256_add_ps(_mm256_set1_ps(1.0f), e)));
  }
}

void finish_avx2(const float* products, const float* bias, const float* residual, std::int64_t residual_stride,
                 std::int64_t rows, std::int64_t count, float* y, std::int64_t y_stride) {
  for (std::int64_t m = 0; m < rows; ++m) {
    std::int64_t n = 0;
    for (; n + 8 <= count; n += 8) {
      __m256 sum = _mm256_add_ps(_mm256_loadu_ps(products + m * kWidth + n), _mm256_loadu_ps(bias + n));
      if (residual != nullptr) sum = _mm256_add_ps(_mm256_loadu_ps(residual + m * residual_stride + n), sum);
      _mm256_storeu_ps(y + m * y_stride + n, sum);
    }
    for (; n < count; ++n) {
      const float sum = products[m * kWidth + n] + bias[n];
      y[m * y_stride + n] = residual == nullptr ? sum : residual[m * residual_stride + n] + sum;
    }
  }
}

}  // namespace nibble::panels
