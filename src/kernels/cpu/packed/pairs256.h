// Rows of inputs times half panels of 8 outputs, in 256-bit registers. Included by the units whose byte dot product (a
// type Dot) it is given; the compiler's names stay in each unit's unnamed namespace.
#pragma once

#include "kernels/cpu/packed/finish.h"
#include "kernels/cpu/packed/prefetch.h"

#include <immintrin.h>

namespace nibble::packed {
namespace {

constexpr int kHalf = kPanel / 2;

/// The staged rows that one call reads.
struct Tile {
  const std::int8_t* q = nullptr;
  const float* scale = nullptr;
  const float* minus_sum = nullptr;
  std::int64_t line_bytes = 0;
  int meta_stride = 0;
};

inline __m256i load(const std::uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

/// Half of each word of a chunk, as planes of bytes.
template <int kBits>
struct HalfChunk {
  static constexpr int kPlanes = kBits == 3 ? 8 : 8 / kBits;
  static constexpr int kBytes = kBits == 3 ? 192 : 64;
  __m256i plane[kPlanes];

  HalfChunk() = default;
  __attribute__((always_inline)) explicit HalfChunk(const std::uint8_t* at) {
    const __m256i word = load(at);
    if constexpr (kBits == 8) {
      plane[0] = word;
    } else if constexpr (kBits == 4) {
      const __m256i mask = _mm256_set1_epi8(15);
      plane[0] = _mm256_and_si256(word, mask);
      plane[1] = _mm256_and_si256(_mm256_srli_epi32(word, 4), mask);
    } else if constexpr (kBits == 2) {
      const __m256i mask = _mm256_set1_epi8(3);
      plane[0] = _mm256_and_si256(word, mask);
      plane[1] = _mm256_and_si256(_mm256_srli_epi32(word, 2), mask);
      plane[2] = _mm256_and_si256(_mm256_srli_epi32(word, 4), mask);
      plane[3] = _mm256_and_si256(_mm256_srli_epi32(word, 6), mask);
    } else {
      const __m256i more = load(at + 64);
      const __m256i third = load(at + 128);
      plane[0] = low_and_third(word, _mm256_slli_epi32(third, 2));
      plane[1] = low_and_third(_mm256_srli_epi32(word, 2), _mm256_slli_epi32(third, 1));
      plane[2] = low_and_third(_mm256_srli_epi32(word, 4), third);
      plane[3] = low_and_third(_mm256_srli_epi32(word, 6), _mm256_srli_epi32(third, 1));
      plane[4] = low_and_third(more, _mm256_srli_epi32(third, 2));
      plane[5] = low_and_third(_mm256_srli_epi32(more, 2), _mm256_srli_epi32(third, 3));
      plane[6] = low_and_third(_mm256_srli_epi32(more, 4), _mm256_srli_epi32(third, 4));
      plane[7] = low_and_third(_mm256_srli_epi32(more, 6), _mm256_srli_epi32(third, 5));
    }
  }

 private:
  // Bits 0 and 1 of every byte from one, bit 2 from the other.
  static __attribute__((always_inline)) __m256i low_and_third(__m256i low, __m256i third) {
    return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(3)), _mm256_and_si256(third, _mm256_set1_epi8(4)));
  }
};

inline __m256 scales_at(const Matrix& matrix, const std::uint8_t* panel, int index) {
  if (matrix.wide_scales) return _mm256_loadu_ps(reinterpret_cast<const float*>(panel) + index);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + 2 * index)));
}

inline __m256 zeros_at(const Matrix& matrix, const std::uint8_t* panel, int index) {
  if (matrix.symmetric) return _mm256_set1_ps(matrix.middle);
  const auto* const at = reinterpret_cast<const __m128i*>(panel + matrix.zeros_offset + index);
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at)));
}

/// sums[row * kPairFloats + lane] for kRows rows of inputs, those of the tile from row `first` on.
template <class Dot, int kBits, int kRows, int kPlanes>
void panel_sums(const Matrix& matrix, const std::uint8_t* panel, const Tile& tile, int first, float* sums) {
  constexpr int kByteRows = kRows * kPlanes;
  // Both halves together load each activation once, where their sums leave room in 16 registers; else one after the
  // other, and the second finds the block's codes in the first-level cache.
  constexpr int kHalves = 2 * kByteRows * Dot::template kRegisters<kBits> <= 8 ? 2 : 1;
  using Sum = typename Dot::template Sum<kBits, (kByteRows <= 2 ? 2 : 1)>;
  const std::uint8_t* codes = panel + matrix.codes_offset;
  __m256 total[2][kRows];
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) total[half][r] = _mm256_setzero_ps();
  }
  const Block* const end = matrix.plan.blocks + matrix.plan.block_count;
  int b = 0;
  for (const Block* block = matrix.plan.blocks; block != end; ++block, ++b) {
    const std::int8_t* const first_x =
        tile.q + block->slot / kLine * tile.line_bytes + first * kPlanes * kLine + block->slot % kLine;
#pragma GCC unroll 2
    for (int first_half = 0; first_half < 2; first_half += kHalves) {
      const std::uint8_t* at = codes + 32 * first_half;
      const std::int8_t* x = first_x;
      Sum dot[kHalves][kByteRows];
      for (int c = 0, unwidened = 0; c < block->chunks; ++c) {
        if (first_half == 0) prefetch_codes(at);
        HalfChunk<kBits> chunk[kHalves];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) chunk[h] = HalfChunk<kBits>(at + 32 * h);
        at += HalfChunk<kBits>::kBytes;
#pragma GCC unroll 8
        for (int p = 0; p < HalfChunk<kBits>::kPlanes; ++p) {
#pragma GCC unroll 8
          for (int r = 0; r < kByteRows; ++r) {
            std::int32_t four;
            __builtin_memcpy(&four, x + r * kLine + 4 * p, 4);
            const __m256i fours = _mm256_set1_epi32(four);
#pragma GCC unroll 2
            for (int h = 0; h < kHalves; ++h) dot[h][r].add(chunk[h].plane[p], fours, p);
          }
        }
        x += 4 * HalfChunk<kBits>::kPlanes;
        if (++unwidened == Dot::template kChunks<kBits> || c + 1 == block->chunks) {
#pragma GCC unroll 2
          for (int h = 0; h < kHalves; ++h) {
#pragma GCC unroll 8
            for (int r = 0; r < kByteRows; ++r) dot[h][r].widen();
          }
          unwidened = 0;
        }
      }
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const int half = first_half + h;
        const __m256 scale = scales_at(matrix, panel, b * kPanel + half * kHalf);
        const __m256 zero = zeros_at(matrix, panel, b * kPanel + half * kHalf);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          __m256i whole = dot[h][r * kPlanes].value();
          if constexpr (kPlanes == 2)
            whole = _mm256_add_epi32(_mm256_slli_epi32(whole, 8), dot[h][r * kPlanes + 1].value());
          const std::int64_t meta = static_cast<std::int64_t>(b) * tile.meta_stride + first + r;
          const __m256 part = _mm256_fmadd_ps(zero, _mm256_set1_ps(tile.minus_sum[meta]), _mm256_cvtepi32_ps(whole));
          total[half][r] =
              _mm256_fmadd_ps(_mm256_mul_ps(part, _mm256_set1_ps(tile.scale[meta])), scale, total[half][r]);
        }
      }
    }
    codes += block->chunks * HalfChunk<kBits>::kBytes;
  }
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(sums + r * kPairFloats, total[0][r]);
    _mm256_storeu_ps(sums + r * kPairFloats + kHalf, total[1][r]);
  }
}

using PanelFunction = void(const Matrix&, const std::uint8_t*, const Tile&, int, float*);

template <class Dot, int kBits, int kPlanes>
PanelFunction* by_rows(int rows) {
  switch (rows) {
    case 4:
      return panel_sums<Dot, kBits, 4, kPlanes>;
    case 2:
      return panel_sums<Dot, kBits, 2, kPlanes>;
    default:
      return panel_sums<Dot, kBits, 1, kPlanes>;
  }
}

template <class Dot, int kPlanes>
PanelFunction* panel_function(int bits, int rows) {
  switch (bits) {
    case 2:
      return by_rows<Dot, 2, kPlanes>(rows);
    case 3:
      return by_rows<Dot, 3, kPlanes>(rows);
    case 8:
      return by_rows<Dot, 8, kPlanes>(rows);
    default:
      return by_rows<Dot, 4, kPlanes>(rows);
  }
}

/// Rows a pass: a power of two not above what is left. Four rows of two bytes each are eight sums of 16 registers.
inline int pass_rows(std::int64_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

template <class Dot, int kPlanes>
void multiply(const Call& call, const Rectangle& area) {
  constexpr int kTileInputs = kTileRows / kPlanes;
  const std::int64_t tile_rows = staged_tile_rows(call.rows, kPlanes);
  alignas(64) float sums[4 * kPairFloats];
  for (std::int64_t index = area.pair_begin; index < area.pair_end; ++index) {
    const PairRef pair = pair_at(call, index);
    for (std::int64_t row = area.row_begin; row < area.row_end;) {
      const std::int64_t tile_index = row / kTileInputs;
      const std::int64_t in_tile =
          call.rows - tile_index * kTileInputs < kTileInputs ? call.rows - tile_index * kTileInputs : kTileInputs;
      const int first = static_cast<int>(row - tile_index * kTileInputs);
      const int rows = pass_rows(in_tile - first);
      for (int second = 0; second < (pair.has_second ? 2 : 1); ++second) {
        const Matrix& matrix = call.parts[second == 0 ? pair.first_part : pair.second_part];
        const std::int64_t panel = second == 0 ? pair.first_panel : pair.second_panel;
        const Staged& staged = call.staged[matrix.staged];
        const std::int64_t meta = tile_index * matrix.plan.block_count * kTileInputs;
        const Tile tile = {staged.q + tile_index * tile_rows * matrix.plan.lines * kLine, staged.scale + meta,
                           staged.minus_sum + meta, tile_rows * kLine, kTileInputs};
        panel_function<Dot, kPlanes>(matrix.bits, rows)(matrix, matrix.panels + panel * matrix.stride, tile, first,
                                                        sums + second * kPanel);
      }
      finish_pair(call, pair, row, rows, sums);
      row += rows;
    }
  }
}

template <class Dot>
void multiply_with(const Call& call, const Rectangle& area) {
  if (call.planes == 2) {
    multiply<Dot, 2>(call, area);
  } else {
    multiply<Dot, 1>(call, area);
  }
}

}  // namespace
}  // namespace nibble::packed
