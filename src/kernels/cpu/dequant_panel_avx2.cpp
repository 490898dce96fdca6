#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/dequant_panel.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

// 8 codes in the low bytes.
__m256 dequantize(__m128i codes, __m256 scale, __m256 zero) {
  return _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)), zero));
}

__m128i load8(const std::uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }

}  // namespace

void dequant_f32_avx2(const PanelCodes& from, float* panel) {
  const __m128i low = _mm_set1_epi8(15);
  std::int64_t group = -1;
  __m256 scale[4] = {};
  __m256 zero[4] = {};
  for (std::int64_t k = 0; k < from.inputs; ++k) {
    if (from.group[k] != group) {
      group = from.group[k];
      for (int v = 0; v < 4; ++v) {
        scale[v] = _mm256_loadu_ps(from.scales + group * kWidth + v * 8);
        zero[v] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load8(from.zeros + group * kWidth + v * 8)));
      }
    }
    const std::uint8_t* at = from.codes + (from.wide ? k * kWidth : k / 2 * kWidth);
    float* out = panel + k * kWidth;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      __m128i codes = load8(at + v * 8);
      if (!from.wide) codes = _mm_and_si128(k % 2 == 0 ? codes : _mm_srli_epi16(codes, 4), low);
      _mm256_storeu_ps(out + v * 8, dequantize(codes, scale[v], zero[v]));
    }
  }
}

}  // namespace nibble::panels
