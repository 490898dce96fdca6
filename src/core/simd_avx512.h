// Sixteen floats of AVX-512 (F, BW, VL, DQ), as core/simd_math.h and what is built on it want them. Only for units
// compiled for it: everything is in an unnamed namespace, so that none of it is merged with code for other processors.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {
namespace {

struct Vec {
  using Reg = __m512;
  static constexpr int kLanes = 16;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  // The first n of the sixteen, 0 < n < 16; the rest 0.
  static Reg load_part(const float* p, std::int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_part(float* p, std::int64_t n, Reg x) { _mm512_mask_storeu_ps(p, first(n), x); }

  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  // The second operand where either is NaN.
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg abs(Reg a) { return _mm512_abs_ps(a); }
  // One Newton step takes the 14 bits of the estimate to 23, in a third of the time of a division. a: finite, not 0.
  static Reg reciprocal(Reg a) {
    const Reg estimate = _mm512_rcp14_ps(a);
    return _mm512_mul_ps(estimate, _mm512_fnmadd_ps(a, estimate, _mm512_set1_ps(2)));
  }

  struct Split {
    Reg floor;
    Reg fraction;
  };
  // VSCALEFPS rounds its exponent down and covers its whole range, so that nothing is clamped and floor is x itself.
  static Split split_clamped(Reg x) { return {x, _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF)}; }
  // p * 2^floor(x).
  static Reg scale(Reg p, Reg /*whole*/, Reg x) { return _mm512_scalef_ps(p, x); }

  static Reg from_half(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void to_half(std::uint16_t* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static Reg from_bf16(const std::uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  // Each float's bf16, rounded to nearest even, in the lower half of its lane; NaN stays NaN.
  static __m512i bf16_words(Reg x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000)), 16);
  }
  // x where first <= j + lane < last, -infinity elsewhere.
  static Reg keep_range(Reg x, std::int64_t j, std::int64_t first_kept, std::int64_t last_kept) {
    const __m512i lane = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                          _mm512_set1_epi32(static_cast<int>(j)));
    const __mmask16 from = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(static_cast<int>(first_kept)));
    const __mmask16 kept = _mm512_mask_cmplt_epi32_mask(from, lane, _mm512_set1_epi32(static_cast<int>(last_kept)));
    return _mm512_mask_blend_ps(kept, set1(-__builtin_inff()), x);
  }
  // Sixteen words of two bf16: low from a, high from b.
  static void store_bf16_pairs(std::uint16_t* p, Reg a, Reg b) {
    _mm512_storeu_si512(p, _mm512_or_si512(bf16_words(a), _mm512_slli_epi32(bf16_words(b), 16)));
  }
  static void store_bf16_words(std::uint32_t* p, Reg a) { _mm512_storeu_si512(p, bf16_words(a)); }
  // The first or second elements of sixteen words of two bf16, as floats; the words with their second elements 0.
  static Reg even_bf16(Reg x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16)); }
  static Reg odd_bf16(Reg x) { return _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(-65536))); }
  static Reg first_of_pairs(Reg x) { return _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff))); }
  // p[0], p[stride], p[2 * stride], ...
  static Reg gather(const float* p, std::int64_t stride) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_i32gather_ps(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride))), p, 4);
  }

  // Rows become columns: pairs of rows are interleaved, then pairs of pairs, then quarters of registers, twice.
  static void transpose(Reg (&x)[kLanes]) {
    Reg t[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      x[i] = unpack_low(t[i], t[i + 2]);
      x[i + 1] = unpack_high(t[i], t[i + 2]);
      x[i + 2] = unpack_low(t[i + 1], t[i + 3]);
      x[i + 3] = unpack_high(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
      x[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      x[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
  }

  static float sum(Reg x) { return _mm512_reduce_add_ps(x); }
  static float largest(Reg x) { return _mm512_reduce_max_ps(x); }
  // A bit for each lane that equals y.
  static unsigned equal(Reg x, Reg y) { return _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ); }

  static Reg unpack_low(Reg a, Reg b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static Reg unpack_high(Reg a, Reg b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }

  // A sum in double, in a fixed order.
  struct DoubleSum {
    __m512d low = _mm512_setzero_pd();
    __m512d high = _mm512_setzero_pd();
    void add(Reg x) {
      low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
      high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
  };
};

}  // namespace
}  // namespace nibble::cpu
