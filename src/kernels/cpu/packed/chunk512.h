// Codes, scales and zero points of a panel in 512-bit registers. Included by units into their own unnamed namespaces.
#pragma once

#include "kernels/cpu/packed/isa.h"
#include "kernels/cpu/packed/prefetch.h"

// The intrinsics' own header uses values that it leaves undefined on purpose, which g++ 12 warns about (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace nibble::packed {
namespace {

/// The codes of a chunk, as planes of bytes: four slots of each of the 16 outputs.
template <int kBits>
struct Chunk {
  static constexpr int kPlanes = kBits == 3 ? 8 : 8 / kBits;
  static constexpr int kBytes = kBits == 3 ? 192 : 64;
  __m512i plane[kPlanes];

  __attribute__((always_inline)) explicit Chunk(const std::uint8_t* at) {
    __m512i word = _mm512_loadu_si512(at);
    // Or g++ 12 loads it again for each plane: loads are what few rows of inputs are short of.
    __asm__("" : "+v"(word));
    if constexpr (kBits == 8) {
      plane[0] = word;
    } else if constexpr (kBits == 4) {
      const __m512i mask = _mm512_set1_epi8(15);
      plane[0] = _mm512_and_si512(word, mask);
      plane[1] = _mm512_and_si512(_mm512_srli_epi32(word, 4), mask);
    } else if constexpr (kBits == 2) {
      const __m512i mask = _mm512_set1_epi8(3);
      plane[0] = _mm512_and_si512(word, mask);
      plane[1] = _mm512_and_si512(_mm512_srli_epi32(word, 2), mask);
      plane[2] = _mm512_and_si512(_mm512_srli_epi32(word, 4), mask);
      plane[3] = _mm512_and_si512(_mm512_srli_epi32(word, 6), mask);
    } else {
      const __m512i more = _mm512_loadu_si512(at + 64);
      const __m512i third = _mm512_loadu_si512(at + 128);
      plane[0] = low_and_third(word, _mm512_slli_epi32(third, 2));
      plane[1] = low_and_third(_mm512_srli_epi32(word, 2), _mm512_slli_epi32(third, 1));
      plane[2] = low_and_third(_mm512_srli_epi32(word, 4), third);
      plane[3] = low_and_third(_mm512_srli_epi32(word, 6), _mm512_srli_epi32(third, 1));
      plane[4] = low_and_third(more, _mm512_srli_epi32(third, 2));
      plane[5] = low_and_third(_mm512_srli_epi32(more, 2), _mm512_srli_epi32(third, 3));
      plane[6] = low_and_third(_mm512_srli_epi32(more, 4), _mm512_srli_epi32(third, 4));
      plane[7] = low_and_third(_mm512_srli_epi32(more, 6), _mm512_srli_epi32(third, 5));
    }
  }

 private:
  // Bits 0 and 1 of every byte from one, bit 2 from the other: 0xCA chooses by the third operand, then the rest is
  // cleared.
  static __attribute__((always_inline)) __m512i low_and_third(__m512i low, __m512i third) {
    const __m512i chosen = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), low, third, 0xCA);
    return _mm512_and_si512(chosen, _mm512_set1_epi8(7));
  }
};

inline __m512 scales_at(const Matrix& matrix, const std::uint8_t* panel, int block) {
  if (matrix.wide_scales) return _mm512_loadu_ps(panel + 64 * block);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * block)));
}

inline __m512 zeros_at(const Matrix& matrix, const std::uint8_t* panel, int block) {
  if (matrix.symmetric) return _mm512_set1_ps(matrix.middle);
  const auto* const at = reinterpret_cast<const __m128i*>(panel + matrix.zeros_offset + 16 * block);
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at)));
}

}  // namespace
}  // namespace nibble::packed
