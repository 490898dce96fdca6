// Up to eight rows of inputs times panels of 16 outputs, in 512-bit registers. Included by the units whose byte dot
// product (a type Dot) it is given; the compiler's names stay in each unit's unnamed namespace.
#pragma once

#include "kernels/cpu/packed/chunk512.h"
#include "kernels/cpu/packed/finish.h"

namespace nibble::packed {
namespace {

/// The staged rows that one call reads.
struct Tile {
  const std::int8_t* q = nullptr;
  const float* scale = nullptr;
  const float* minus_sum = nullptr;
  std::int64_t line_bytes = 0;
  int meta_stride = 0;
};

/// sums[row * kPairFloats + lane] for kRows rows of inputs, those of the tile from row `first` on.
template <class Dot, int kBits, int kRows, int kPlanes>
void panel_sums(const Matrix& matrix, const std::uint8_t* panel, const Tile& tile, int first, float* sums) {
  constexpr int kByteRows = kRows * kPlanes;
  // A dot product takes 5 cycles and two start in each: below ten sums, those of odd and even planes are kept apart.
  constexpr int kChains = kByteRows <= 4 ? 2 : 1;
  const std::uint8_t* codes = panel + matrix.codes_offset;
  __m512 total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  const Block* const end = matrix.plan.blocks + matrix.plan.block_count;
  int b = 0;
  for (const Block* block = matrix.plan.blocks; block != end; ++block, ++b) {
    const std::int8_t* x =
        tile.q + block->slot / kLine * tile.line_bytes + first * kPlanes * kLine + block->slot % kLine;
    __m512i dot[kByteRows][kChains];
#pragma GCC unroll 32
    for (int r = 0; r < kByteRows * kChains; ++r) dot[r / kChains][r % kChains] = _mm512_setzero_si512();
    for (int c = block->chunks; c > 0; --c) {
      prefetch_codes(codes);
      const Chunk<kBits> chunk(codes);
      codes += Chunk<kBits>::kBytes;
#pragma GCC unroll 8
      for (int p = 0; p < Chunk<kBits>::kPlanes; ++p) {
#pragma GCC unroll 16
        for (int r = 0; r < kByteRows; ++r) {
          __m512i& sum = dot[r][p % kChains];
          std::int32_t four;
          __builtin_memcpy(&four, x + r * kLine + 4 * p, 4);
          sum = Dot::template add<kBits>(sum, chunk.plane[p], _mm512_set1_epi32(four));
        }
      }
      x += 4 * Chunk<kBits>::kPlanes;
    }
    const __m512 scale = scales_at(matrix, panel, b);
    const __m512 zero = zeros_at(matrix, panel, b);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      __m512i whole = dot[r * kPlanes][0];
      if constexpr (kChains == 2) whole = _mm512_add_epi32(whole, dot[r * kPlanes][1]);
      if constexpr (kPlanes == 2) {
        __m512i low = dot[r * kPlanes + 1][0];
        if constexpr (kChains == 2) low = _mm512_add_epi32(low, dot[r * kPlanes + 1][1]);
        whole = _mm512_add_epi32(_mm512_slli_epi32(whole, 8), low);
      }
      const std::int64_t meta = static_cast<std::int64_t>(b) * tile.meta_stride + first + r;
      const __m512 part = _mm512_fmadd_ps(zero, _mm512_set1_ps(tile.minus_sum[meta]), _mm512_cvtepi32_ps(whole));
      total[r] = _mm512_fmadd_ps(_mm512_mul_ps(part, _mm512_set1_ps(tile.scale[meta])), scale, total[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sums + r * kPairFloats, total[r]);
}

using PanelFunction = void(const Matrix&, const std::uint8_t*, const Tile&, int, float*);

template <class Dot, int kBits, int kPlanes>
PanelFunction* by_rows(int rows) {
  switch (rows) {
    case 8:
      return panel_sums<Dot, kBits, 8, kPlanes>;
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

/// Rows a pass: the largest power of two, at most 8, that is not above what is left.
inline int pass_rows(std::int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

template <class Dot, int kPlanes>
void multiply(const Call& call, const Rectangle& area) {
  constexpr int kTileInputs = kTileRows / kPlanes;
  const std::int64_t tile_rows = staged_tile_rows(call.rows, kPlanes);
  alignas(64) float sums[8 * kPairFloats];
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
