#include "kernels/cpu/common_panels.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

// 12 rows x 32 outputs are 24 accumulators; 2 to 4 registers hold weights, and the inputs are broadcast from memory.
constexpr int kRows = 12;

// Fewer rows sum alternate k apart, so that at least 8 chains hide the FMA's latency of 4 cycles on 2 ports.
template <int R>
constexpr int kChains = R == 1   ? 4
                        : R <= 3 ? 2
                                 : 1;

// Two cache lines, 2 KiB ahead: panels follow each other in memory, and the processor's own prefetch alone leaves a
// fifth of the bandwidth unused (one core, 1 GiB of weights, medians: 13.6 GB/s without, 16.5 with, which is what a
// loop that only reads gets; 1 to 8 KiB are within 6%).
void prefetch(const void* at) {
  constexpr int kAhead = 2048;
  _mm_prefetch(static_cast<const char*>(at) + kAhead, _MM_HINT_T0);
  _mm_prefetch(static_cast<const char*>(at) + kAhead + 64, _MM_HINT_T0);
}

template <int R>
void f32_tile(const float* panel, std::int64_t k, const float* x, std::int64_t stride, float* out) {
  constexpr int kUnroll = kChains<R>;
  __m512 sum[kUnroll][R][2];
#pragma GCC unroll 16
  for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[u][r][0] = sum[u][r][1] = _mm512_setzero_ps();
  }
  std::int64_t i = 0;
  for (; i + kUnroll <= k; i += kUnroll) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnroll; ++u) {
      prefetch(panel + (i + u) * kWidth);
      const __m512 w0 = _mm512_loadu_ps(panel + (i + u) * kWidth);
      const __m512 w1 = _mm512_loadu_ps(panel + (i + u) * kWidth + 16);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m512 v = _mm512_set1_ps(x[r * stride + i + u]);
        sum[u][r][0] = _mm512_fmadd_ps(v, w0, sum[u][r][0]);
        sum[u][r][1] = _mm512_fmadd_ps(v, w1, sum[u][r][1]);
      }
    }
  }
  for (; i < k; ++i) {
    const __m512 w0 = _mm512_loadu_ps(panel + i * kWidth);
    const __m512 w1 = _mm512_loadu_ps(panel + i * kWidth + 16);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512 v = _mm512_set1_ps(x[r * stride + i]);
      sum[0][r][0] = _mm512_fmadd_ps(v, w0, sum[0][r][0]);
      sum[0][r][1] = _mm512_fmadd_ps(v, w1, sum[0][r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int h = 0; h < 2; ++h) {
      __m512 total = sum[0][r][h];
#pragma GCC unroll 16
      for (int u = 1; u < kUnroll; ++u) total = _mm512_add_ps(total, sum[u][r][h]);
      _mm512_storeu_ps(out + r * kWidth + h * 16, total);
    }
  }
}

// A pair's first element is the low half of its word: shifted up it is the float; the second needs only its mask.
template <int R>
void mixed_tile(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, float* out) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  // Up to 3 rows sum even and odd k apart, for more chains.
  constexpr int kUnroll = R <= 3 ? 2 : 1;
  __m512 sum[kUnroll][R][2];
#pragma GCC unroll 16
  for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[u][r][0] = sum[u][r][1] = _mm512_setzero_ps();
  }
  for (std::int64_t i = 0; i + 2 <= k; i += 2) {
    const std::uint16_t* at = panel + i * kWidth;
    prefetch(at);
    const __m512i p0 = _mm512_loadu_si512(at);
    const __m512i p1 = _mm512_loadu_si512(at + 32);
    const __m512 e0 = _mm512_castsi512_ps(_mm512_slli_epi32(p0, 16));
    const __m512 e1 = _mm512_castsi512_ps(_mm512_slli_epi32(p1, 16));
    const __m512 o0 = _mm512_castsi512_ps(_mm512_and_si512(p0, high));
    const __m512 o1 = _mm512_castsi512_ps(_mm512_and_si512(p1, high));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512 a = _mm512_set1_ps(x[r * stride + i]);
      sum[0][r][0] = _mm512_fmadd_ps(a, e0, sum[0][r][0]);
      sum[0][r][1] = _mm512_fmadd_ps(a, e1, sum[0][r][1]);
      const __m512 b = _mm512_set1_ps(x[r * stride + i + 1]);
      sum[kUnroll - 1][r][0] = _mm512_fmadd_ps(b, o0, sum[kUnroll - 1][r][0]);
      sum[kUnroll - 1][r][1] = _mm512_fmadd_ps(b, o1, sum[kUnroll - 1][r][1]);
    }
  }
  if (k % 2 != 0) {
    const std::uint16_t* at = panel + (k - 1) * kWidth;
    const __m512 e0 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(at), 16));
    const __m512 e1 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(at + 32), 16));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512 a = _mm512_set1_ps(x[r * stride + k - 1]);
      sum[0][r][0] = _mm512_fmadd_ps(a, e0, sum[0][r][0]);
      sum[0][r][1] = _mm512_fmadd_ps(a, e1, sum[0][r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int h = 0; h < 2; ++h) {
      _mm512_storeu_ps(out + r * kWidth + h * 16,
                       kUnroll == 2 ? _mm512_add_ps(sum[0][r][h], sum[kUnroll - 1][r][h]) : sum[0][r][h]);
    }
  }
}

template <typename Panel>
using Tile = void(const Panel*, std::int64_t, const float*, std::int64_t, float*);

constexpr Tile<float>* kF32Tiles[kRows] = {f32_tile<1>, f32_tile<2>,  f32_tile<3>,  f32_tile<4>,
                                           f32_tile<5>, f32_tile<6>,  f32_tile<7>,  f32_tile<8>,
                                           f32_tile<9>, f32_tile<10>, f32_tile<11>, f32_tile<12>};
constexpr Tile<std::uint16_t>* kMixedTiles[kRows] = {mixed_tile<1>, mixed_tile<2>,  mixed_tile<3>,  mixed_tile<4>,
                                                     mixed_tile<5>, mixed_tile<6>,  mixed_tile<7>,  mixed_tile<8>,
                                                     mixed_tile<9>, mixed_tile<10>, mixed_tile<11>, mixed_tile<12>};

// All rows in tiles of as equal a height as can be: 16 rows are 8 + 8, not 12 + 4.
template <typename Panel>
void by_tiles(Tile<Panel>* const* tiles, const Panel* panel, std::int64_t k, const float* x, std::int64_t stride,
              std::int64_t rows, float* out) {
  for (std::int64_t m = 0, left = (rows + kRows - 1) / kRows; left > 0; --left) {
    const std::int64_t height = (rows - m + left - 1) / left;
    tiles[height - 1](panel, k, x + m * stride, stride, out + m * kWidth);
    m += height;
  }
}

// e^v for |v| <= 87: 2^n times the Taylor series of e^r to r^7, |r| <= ln(2)/2, where the next term is below 6e-9.
// ln(2) is taken off in two parts (Cody and Waite), the first with few digits, so that n times it is exact.
__m512 exp_of(__m512 v) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), v);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

}  // namespace

void f32_avx512(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                float* out) {
  by_tiles(kF32Tiles, panel, k, x, stride, rows, out);
}

void mixed_avx512(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                  float* out) {
  by_tiles(kMixedTiles, panel, k, x, stride, rows, out);
}

float sum_squares_avx512(const float* x, std::int64_t k) {
  __m512 sum = _mm512_setzero_ps();
  std::int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  const __m512 tail = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (k - i)) - 1u), x + i);
  return _mm512_reduce_add_ps(_mm512_fmadd_ps(tail, tail, sum));
}

void scale_avx512(const float* x, const float* weight, float factor, std::int64_t k, float* out) {
  const __m512 f = _mm512_set1_ps(factor);
  for (std::int64_t i = 0; i < k; i += 16) {
    const __mmask16 mask = static_cast<__mmask16>(k - i >= 16 ? 0xffffu : (1u << (k - i)) - 1u);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), f);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, weight + i)));
  }
}

void gated_sigmoid_avx512(const float* gate, const float* up, std::int64_t count, bool gelu, float* out) {
  const __m512 limit = _mm512_set1_ps(87.0f);
  for (std::int64_t i = 0; i < count; i += 16) {
    const __m512 g = _mm512_loadu_ps(gate + i);
    __m512 t = g;
    if (gelu) {
      const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(0.044715f), _mm512_mul_ps(g, g)), g, g);
      t = _mm512_mul_ps(cubic, _mm512_set1_ps(1.5957691216f));  // 2 sqrt(2 / pi)
    }
    // The operand order keeps a NaN: min and max return their second operand then.
    const __m512 e = exp_of(_mm512_min_ps(
        limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), _mm512_sub_ps(_mm512_setzero_ps(), t))));
    const __m512 product = _mm512_mul_ps(g, _mm512_loadu_ps(up + i));
    _mm512_storeu_ps(out + i, _mm512_div_ps(product, _mm512_add_ps(_mm512_set1_ps(1.0f), e)));
  }
}

void finish_avx512(const float* products, const float* bias, const float* residual, std::int64_t residual_stride,
                   std::int64_t rows, std::int64_t count, float* y, std::int64_t y_stride) {
  const std::uint32_t all = count == kWidth ? 0xffffffffu : (1u << count) - 1u;
  const __mmask16 mask[2] = {static_cast<__mmask16>(all), static_cast<__mmask16>(all >> 16)};
  for (int h = 0; h < 2; ++h) {
    const __m512 b = _mm512_maskz_loadu_ps(mask[h], bias + h * 16);
    for (std::int64_t m = 0; m < rows; ++m) {
      __m512 sum = _mm512_add_ps(_mm512_loadu_ps(products + m * kWidth + h * 16), b);
      if (residual != nullptr)
        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask[h], residual + m * residual_stride + h * 16), sum);
      _mm512_mask_storeu_ps(y + m * y_stride + h * 16, mask[h], sum);
    }
  }
}

}  // namespace nibble::panels
