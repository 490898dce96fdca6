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

/// A row of inputs in the order of its plan.
struct OrderedRow {
  const float* x = nullptr;
  const float* norm_weight = nullptr;  // null where x is normalised already, or has no norm in front
  float factor = 1;
};

inline OrderedRow ordered_row(const StageCall& call, const float* x) {
  const float factor = norm_factor(call, x);
  const std::int32_t* const order = call.plan.order;
  if (order == nullptr) return {x, call.norm_weight, factor};
  const std::int64_t inputs = call.inputs;
  float* const ordered = call.scratch;
  const float* from = x;
  if (call.norm_weight != nullptr) {
    float* const normalised = ordered + scratch_stride(inputs);
    const __m512 f = _mm512_set1_ps(factor);
    for (std::int64_t k = 0; k < inputs; k += 16) {
      const std::int64_t left = inputs - k;
      const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1u);
      const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + k), f);
      _mm512_mask_storeu_ps(normalised + k, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, call.norm_weight + k)));
    }
    from = normalised;
  }
  // One at a time: with gathers, of which a norm takes one more, staging a prompt of SmolLM2 took 0.16 of the time of
  // its products, so 0.14 (perf on Zen 5, 1800 tokens).
  const auto move = [from, order, ordered](std::int64_t i) __attribute__((always_inline)) {
    std::int32_t word;
    __builtin_memcpy(&word, from + order[i], sizeof word);
    // Or the compiler makes gathers of it.
    __asm__("" : "+r"(word));
    __builtin_memcpy(ordered + i, &word, sizeof word);
  };
  std::int64_t i = 0;
  for (; i + 8 <= inputs; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) move(i + j);
  }
  for (; i < inputs; ++i) move(i);
  return {ordered, nullptr, 1};
}

/// Inputs [i, i + 16) of a block, normalised; zero past its end.
inline __m512 load_inputs(const OrderedRow& row, const Block& block, int i) {
  const int left = block.inputs - i;
  if (left <= 0) return _mm512_setzero_ps();
  const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1u);
  const std::int64_t at = block.first + i;
  const __m512 v = _mm512_maskz_loadu_ps(mask, row.x + at);
  if (row.norm_weight == nullptr) return v;
  return _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(row.factor)), _mm512_maskz_loadu_ps(mask, row.norm_weight + at));
}

}  // namespace
}  // namespace nibble::packed
