// Eight floats of AVX2, as core/simd_math.h and what is built on it want them. Only for units compiled for AVX2
// with FMA and F16C: everything is in an unnamed namespace, so that none of it is merged with code for other
// processors.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {
namespace {

struct Vec {
  using Reg = __m256;
  static constexpr int kLanes = 8;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static __m256i first(std::int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // The first n of the eight, 0 < n < 8; the rest 0.
  static Reg load_part(const float* p, std::int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store_part(float* p, std::int64_t n, Reg x) { _mm256_maskstore_ps(p, first(n), x); }

  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  // The second operand where either is NaN.
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Reg reciprocal(Reg a) { return _mm256_div_ps(_mm256_set1_ps(1), a); }

  struct Split {
    Reg floor;
    Reg fraction;
  };
  static Split split(Reg x) {
    const Reg whole = _mm256_floor_ps(x);
    return {whole, _mm256_sub_ps(x, whole)};
  }
  // x in [-126, 128]: 2^x into a float's exponent; from 128 on infinity.
  static Split split_clamped(Reg x) { return split(min(set1(128), max(set1(-126), x))); }
  // p * 2^floor(x), 0 for x below -126.
  static Reg scale(Reg p, Reg whole, Reg x) {
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    const Reg keep = _mm256_cmp_ps(x, set1(-126), _CMP_NLT_UQ);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(bits)), keep);
  }

  static Reg from_half(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void to_half(std::uint16_t* p, Reg x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static Reg from_bf16(const std::uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  // Each float's bf16, rounded to nearest even, in the lower half of its lane; NaN stays NaN.
  static __m256i bf16_words(Reg x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  }
  // x where first <= j + lane < last, -infinity elsewhere.
  static Reg keep_range(Reg x, std::int64_t j, std::int64_t first_kept, std::int64_t last_kept) {
    const __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(static_cast<int>(j)));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(first_kept)), lane);
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(last_kept)), lane);
    return _mm256_blendv_ps(set1(-__builtin_inff()), x, _mm256_castsi256_ps(_mm256_andnot_si256(below, inside)));
  }
  // Eight words of two bf16: low from a, high from b.
  static void store_bf16_pairs(std::uint16_t* p, Reg a, Reg b) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_or_si256(bf16_words(a), _mm256_slli_epi32(bf16_words(b), 16)));
  }
  static void store_bf16_words(std::uint32_t* p, Reg a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bf16_words(a));
  }
  // The first or second elements of eight words of two bf16, as floats; the words with their second elements 0.
  static Reg even_bf16(Reg x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16)); }
  static Reg odd_bf16(Reg x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(-65536))); }
  static Reg first_of_pairs(Reg x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff))); }
  // p[0], p[stride], p[2 * stride], ...
  static Reg gather(const float* p, std::int64_t stride) {
    const __m256i index =
        _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(static_cast<int>(stride)));
    return _mm256_i32gather_ps(p, index, 4);
  }

  // Rows become columns: pairs of rows are interleaved, then pairs of pairs, then halves of registers exchanged.
  static void transpose(Reg (&x)[kLanes]) {
    Reg t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
      x[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      x[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      x[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      x[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) {
      const Reg low = x[i];
      x[i] = _mm256_permute2f128_ps(low, x[i + 4], 0x20);
      x[i + 4] = _mm256_permute2f128_ps(low, x[i + 4], 0x31);
    }
  }

  static float sum(Reg x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float largest(Reg x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // A bit for each lane that equals y.
  static unsigned equal(Reg x, Reg y) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_EQ_OQ)));
  }

  // A sum in double, in a fixed order.
  struct DoubleSum {
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();
    void add(Reg x) {
      low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
      high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    }
    double total() const {
      double lanes[4];
      _mm256_storeu_pd(lanes, _mm256_add_pd(low, high));
      return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    }
  };
};

}  // namespace
}  // namespace nibble::cpu
