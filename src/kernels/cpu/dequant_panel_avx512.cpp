#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/dequant_panel.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

__m512 dequantize(__m128i codes, __m512 scale, __m512 zero) {
  return _mm512_mul_ps(scale, _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), zero));
}

__m128i load16(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

}  // namespace

void dequant_f32_avx512(const PanelCodes& from, float* panel) {
  const __m128i low = _mm_set1_epi8(15);
  std::int64_t group = -1;
  __m512 scale[2] = {};
  __m512 zero[2] = {};
  for (std::int64_t k = 0; k < from.inputs; ++k) {
    if (from.group[k] != group) {
      group = from.group[k];
      for (int v = 0; v < 2; ++v) {
        scale[v] = _mm512_loadu_ps(from.scales + group * kWidth + v * 16);
        zero[v] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(from.zeros + group * kWidth + v * 16)));
      }
    }
    const std::uint8_t* at = from.codes + (from.wide ? k * kWidth : k / 2 * kWidth);
    float* out = panel + k * kWidth;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      __m128i codes = load16(at + v * 16);
      if (!from.wide) codes = _mm_and_si128(k % 2 == 0 ? codes : _mm_srli_epi16(codes, 4), low);
      _mm512_storeu_ps(out + v * 16, dequantize(codes, scale[v], zero[v]));
    }
  }
}

}  // namespace nibble::panels
