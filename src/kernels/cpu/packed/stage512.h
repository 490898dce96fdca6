// Reading a row of inputs for staging, in 512-bit registers. Included by units into their own unnamed namespaces.
#pragma once

#include "kernels/cpu/packed/isa.h"

// The intrinsics' own header uses values that it leaves undefined on purpose, which g++ 12 warns about (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace nibble::packed {
namespace {

// The order of packed_scalar.cpp's sum.
inline float sum_of_squares(const float* x, std::int64_t count) {
  __m512 sums = _mm512_setzero_ps();
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16) {
    const __m512 v = _mm512_loadu_ps(x + k);
    sums = _mm512_fmadd_ps(v, v, sums);
  }
  if (k < count) {
    const __mmask16 rest = static_cast<__mmask16>((1u << (count - k)) - 1u);
    const __m512 v = _mm512_maskz_loadu_ps(rest, x + k);
    sums = _mm512_mask3_fmadd_ps(v, v, sums, rest);
  }
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// What RMS norm multiplies the row with; 1 where there is none.
inline float norm_factor(const StageCall& call, const float* x) {
  if (call.norm_weight == nullptr) return 1;
  return 1.0f / __builtin_sqrtf(sum_of_squares(x, call.inputs) / static_cast<float>(call.inputs) + call.eps);
}

/// Inputs [i, i + 16) of a block, normalised; zero past its end.
inline __m512 load_inputs(const StageCall& call, const float* x, float factor, const Block& block, int i) {
  const int left = block.inputs - i;
  if (left <= 0) return _mm512_setzero_ps();
  const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1u);
  const std::int64_t at = block.first + i;
  if (call.plan.order == nullptr) {
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + at);
    if (call.norm_weight == nullptr) return v;
    return _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(factor)), _mm512_maskz_loadu_ps(mask, call.norm_weight + at));
  }
  const __m512i order = _mm512_maskz_loadu_epi32(mask, call.plan.order + at);
  const __m512 zero = _mm512_setzero_ps();
  const __m512 v = _mm512_mask_i32gather_ps(zero, mask, order, x, 4);
  if (call.norm_weight == nullptr) return v;
  return _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(factor)),
                       _mm512_mask_i32gather_ps(zero, mask, order, call.norm_weight, 4));
}

}  // namespace
}  // namespace nibble::packed
