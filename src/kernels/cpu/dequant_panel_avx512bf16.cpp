#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/dequant_panel.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

// The scales and zeros of one group for 32 outputs.
struct Group {
  __m512 scale[2];
  __m512 zero[2];
};

__m128i load16(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

void load(const PanelCodes& from, std::int64_t k, std::int64_t& loaded, Group& group) {
  const std::int64_t g = from.group[k];
  if (g == loaded) return;
  loaded = g;
  for (int v = 0; v < 2; ++v) {
    group.scale[v] = _mm512_loadu_ps(from.scales + g * kWidth + v * 16);
    group.zero[v] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(from.zeros + g * kWidth + v * 16)));
  }
}

// 16 weights as bf16, each in the low half of a word.
__m512i dequantize(__m128i codes, __m512 scale, __m512 zero) {
  const __m512 w = _mm512_mul_ps(scale, _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), zero));
  return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(w)));
}

}  // namespace

void dequant_bf16_avx512bf16(const PanelCodes& from, std::int64_t padded, std::uint16_t* panel) {
  const __m128i low = _mm_set1_epi8(15);
  // Without act-order the two inputs of a pair share a group (all sizes but odd ones): then only one of these changes.
  std::int64_t first_loaded = -1;
  std::int64_t second_loaded = -1;
  Group first;
  Group second;
  std::int64_t k = 0;
  for (; k < from.inputs; k += 2) {
    const bool pair = k + 1 < from.inputs;
    load(from, k, first_loaded, first);
    if (pair) load(from, k + 1, second_loaded, second);
    const std::uint8_t* at = from.codes + (from.wide ? k * kWidth : k / 2 * kWidth);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      __m128i even = load16(at + v * 16);
      __m128i odd = from.wide ? load16(at + kWidth + v * 16) : _mm_and_si128(_mm_srli_epi16(even, 4), low);
      if (!from.wide) even = _mm_and_si128(even, low);
      __m512i words = dequantize(even, first.scale[v], first.zero[v]);
      if (pair) words = _mm512_or_si512(words, _mm512_slli_epi32(dequantize(odd, second.scale[v], second.zero[v]), 16));
      _mm512_storeu_si512(panel + k * kWidth + v * 32, words);
    }
  }
  for (; k < padded; k += 2) {
    _mm512_storeu_si512(panel + k * kWidth, _mm512_setzero_si512());
    _mm512_storeu_si512(panel + k * kWidth + 32, _mm512_setzero_si512());
  }
}

}  // namespace nibble::panels
