#include "core/simd_avx512.h"

#include "core/simd_math.h"

#include "kernels/cpu/simd_activations.h"

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

// Half a row of outputs.
void put(__m512 product, int row, int half, const Output& to) {
  __m512 sum = _mm512_add_ps(product, _mm512_loadu_ps(to.bias + half * 16));
  if (to.residual != nullptr) {
    sum = _mm512_add_ps(_mm512_loadu_ps(to.residual + row * to.residual_stride + half * 16), sum);
  }
  _mm512_storeu_ps(to.y + row * to.stride + half * 16, sum);
}

template <int R>
void f32_tile(const float* panel, std::int64_t k, const float* x, std::int64_t stride, const Output& to) {
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
      put(total, r, h, to);
    }
  }
}

// A pair's first element is the low half of its word: shifted up it is the float; the second needs only its mask.
template <int R>
void mixed_tile(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, const Output& to) {
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
      put(kUnroll == 2 ? _mm512_add_ps(sum[0][r][h], sum[kUnroll - 1][r][h]) : sum[0][r][h], r, h, to);
    }
  }
}

template <typename Panel>
using Tile = void(const Panel*, std::int64_t, const float*, std::int64_t, const Output&);

constexpr Tile<float>* kF32Tiles[kRows] = {f32_tile<1>, f32_tile<2>,  f32_tile<3>,  f32_tile<4>,
                                           f32_tile<5>, f32_tile<6>,  f32_tile<7>,  f32_tile<8>,
                                           f32_tile<9>, f32_tile<10>, f32_tile<11>, f32_tile<12>};
constexpr Tile<std::uint16_t>* kMixedTiles[kRows] = {mixed_tile<1>, mixed_tile<2>,  mixed_tile<3>,  mixed_tile<4>,
                                                     mixed_tile<5>, mixed_tile<6>,  mixed_tile<7>,  mixed_tile<8>,
                                                     mixed_tile<9>, mixed_tile<10>, mixed_tile<11>, mixed_tile<12>};

// The outputs from a row on.
Output from_row(Output to, std::int64_t row) {
  to.y += row * to.stride;
  if (to.residual != nullptr) to.residual += row * to.residual_stride;
  return to;
}

// All rows in tiles of as equal a height as can be: 16 rows are 8 + 8, not 12 + 4.
template <typename Panel>
void by_tiles(Tile<Panel>* const* tiles, const Panel* panel, std::int64_t k, const float* x, std::int64_t stride,
              std::int64_t rows, const Output& to) {
  for (std::int64_t m = 0, left = (rows + kRows - 1) / kRows; left > 0; --left) {
    const std::int64_t height = (rows - m + left - 1) / left;
    tiles[height - 1](panel, k, x + m * stride, stride, from_row(to, m));
    m += height;
  }
}

}  // namespace

void f32_avx512(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                const Output& to) {
  by_tiles(kF32Tiles, panel, k, x, stride, rows, to);
}

void mixed_avx512(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                  const Output& to) {
  by_tiles(kMixedTiles, panel, k, x, stride, rows, to);
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

void activate_avx512(ActivationKind kind, const float* x, std::int64_t rows, std::int64_t count, float* y,
                     std::int64_t stride) {
  cpu::with_activation(kind, [=](const auto& act) {
    for (std::int64_t m = 0; m < rows; ++m) {
      cpu::for_registers(count, [&](std::int64_t i, std::int64_t lanes) {
        cpu::store_some(y + m * stride + i, lanes, act(cpu::load_some(x + m * kWidth + i, lanes)));
      });
    }
  });
}

void gate_avx512(ActivationKind kind, const float* gate, const float* up, std::int64_t rows, std::int64_t count,
                 float* y, std::int64_t stride) {
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
