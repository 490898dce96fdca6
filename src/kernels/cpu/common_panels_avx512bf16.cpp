#include "kernels/cpu/common_panels.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

// As for f32: 24 accumulators.
constexpr int kRows = 12;

// As for f32.
void prefetch(const void* at) {
  constexpr int kAhead = 2048;
  _mm_prefetch(static_cast<const char*>(at) + kAhead, _MM_HINT_T0);
  _mm_prefetch(static_cast<const char*>(at) + kAhead + 64, _MM_HINT_T0);
}

// vdpbf16ps has a latency of some 6 cycles on one port, so few rows need 8 chains too.
template <int R>
constexpr int kChains = R == 1   ? 4
                        : R <= 3 ? 2
                                 : 1;

// Half a row of outputs.
void put(__m512 product, int row, int half, const Output& to) {
  __m512 sum = _mm512_add_ps(product, _mm512_loadu_ps(to.bias + half * 16));
  if (to.residual != nullptr) {
    sum = _mm512_add_ps(_mm512_loadu_ps(to.residual + row * to.residual_stride + half * 16), sum);
  }
  _mm512_storeu_ps(to.y + row * to.stride + half * 16, sum);
}

template <int R>
void bf16_tile(const std::uint16_t* panel, std::int64_t k, const std::uint16_t* x, std::int64_t stride,
               const Output& to) {
  constexpr int kSums = kChains<R>;
  __m512 sum[kSums][R][2];
#pragma GCC unroll 16
  for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[u][r][0] = sum[u][r][1] = _mm512_setzero_ps();
  }
  // K is a multiple of 32, so of 2 kSums.
  for (std::int64_t i = 0; i < k; i += 2 * kSums) {
#pragma GCC unroll 16
    for (int u = 0; u < kSums; ++u) {
      const std::uint16_t* at = panel + (i + 2 * u) * kWidth;
      prefetch(at);
      const __m512bh w0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(at));
      const __m512bh w1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(at + 32));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        int pair;
        __builtin_memcpy(&pair, x + r * stride + i + 2 * u, 4);
        const __m512bh v = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
        sum[u][r][0] = _mm512_dpbf16_ps(sum[u][r][0], w0, v);
        sum[u][r][1] = _mm512_dpbf16_ps(sum[u][r][1], w1, v);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int h = 0; h < 2; ++h) {
      __m512 total = sum[0][r][h];
#pragma GCC unroll 16
      for (int u = 1; u < kSums; ++u) total = _mm512_add_ps(total, sum[u][r][h]);
      put(total, r, h, to);
    }
  }
}

// The outputs from a row on.
Output from_row(Output to, std::int64_t row) {
  to.y += row * to.stride;
  if (to.residual != nullptr) to.residual += row * to.residual_stride;
  return to;
}

using Tile = void(const std::uint16_t*, std::int64_t, const std::uint16_t*, std::int64_t, const Output&);
constexpr Tile* kTiles[kRows] = {bf16_tile<1>, bf16_tile<2>, bf16_tile<3>, bf16_tile<4>,  bf16_tile<5>,  bf16_tile<6>,
                                 bf16_tile<7>, bf16_tile<8>, bf16_tile<9>, bf16_tile<10>, bf16_tile<11>, bf16_tile<12>};

}  // namespace

void bf16_avx512bf16(const std::uint16_t* panel, std::int64_t k, const std::uint16_t* x, std::int64_t stride,
                     std::int64_t rows, const Output& to) {
  for (std::int64_t m = 0, left = (rows + kRows - 1) / kRows; left > 0; --left) {
    const std::int64_t height = (rows - m + left - 1) / left;
    kTiles[height - 1](panel, k, x + m * stride, stride, from_row(to, m));
    m += height;
  }
}

void scale_bf16_avx512bf16(const float* x, const float* weight, float factor, std::int64_t k, std::int64_t padded,
                           std::uint16_t* out) {
  const __m512 f = _mm512_set1_ps(factor);
  for (std::int64_t i = 0; i < padded; i += 16) {
    const std::int64_t left = k - i;
    const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : left > 0 ? (1u << left) - 1u : 0u);
    __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), f);
    if (weight != nullptr) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, weight + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
}

}  // namespace nibble::panels
