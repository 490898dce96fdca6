// Up to eight rows of inputs times panels of 16 outputs, in 512-bit registers. Included by the units whose byte dot
// product (a type Dot) it is given: add<kBits>(sum, codes, x) adds to each of the 16 sums the products of its four
// codes and of the four bytes at x; the compiler's names stay in each unit's unnamed namespace.
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

template <int kChains>
__attribute__((always_inline)) inline __m512i sum_of(const __m512i (&chains)[kChains]) {
  if constexpr (kChains == 4) {
    return _mm512_add_epi32(_mm512_add_epi32(chains[0], chains[1]), _mm512_add_epi32(chains[2], chains[3]));
  } else if constexpr (kChains == 2) {
    return _mm512_add_epi32(chains[0], chains[1]);
  } else {
    return chains[0];
  }
}

/// sums[row * kPairFloats + lane] for kRows rows of inputs, those of the tile from row `first` on.
template <class Dot, int kBits, int kRows, int kPlanes>
void panel_sums(const Matrix& matrix, const std::uint8_t* panel, const Tile& tile, int first, float* sums) {
  constexpr int kByteRows = kRows * kPlanes;
  // With few sums, those of neighbouring planes, and of neighbouring chunks where these have fewer planes, are kept
  // apart.
  constexpr int kChains = Dot::template kChains<kByteRows>;
  constexpr int kPlanesOfCodes = Chunk<kBits>::kPlanes;
  constexpr int kUnroll = kChains > kPlanesOfCodes ? kChains / kPlanesOfCodes : 1;
  const std::uint8_t* codes = panel + matrix.codes_offset;
  prefetch_head(panel, matrix.codes_offset);
  __m512 total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  // Little is kept for the whole loop: where the general registers run out, g++ 12 keeps some in vector registers, and
  // the next block's addresses then wait for this block's sums. (One row of 1536 x 576 in a cache, a core of Zen 5: 8.5
  // us with that, codes loaded once a plane and copied sums; 8.0 without the first, 6.9 without all.)
  const std::int8_t* const inputs = tile.q + first * kPlanes * kLine;
  const float* meta = tile.scale + first;
  const std::int64_t to_sums = tile.minus_sum - tile.scale;
  const Block* block = matrix.plan.blocks;
  for (int b = 0; b < matrix.plan.block_count; ++b, ++block, meta += tile.meta_stride) {
    const auto slot = static_cast<std::uint32_t>(block->slot);
    const std::int8_t* x = inputs + slot / kLine * tile.line_bytes + slot % kLine;
    __m512i dot[kByteRows][kChains];
#pragma GCC unroll 32
    for (int r = 0; r < kByteRows * kChains; ++r) dot[r / kChains][r % kChains] = _mm512_setzero_si512();
    const auto add_chunk = [&](int u) __attribute__((always_inline)) {
      prefetch_codes(codes);
      const Chunk<kBits> chunk(codes);
      codes += Chunk<kBits>::kBytes;
#pragma GCC unroll 8
      for (int p = 0; p < kPlanesOfCodes; ++p) {
#pragma GCC unroll 16
        for (int r = 0; r < kByteRows; ++r)
          Dot::template add<kBits>(dot[r][(u * kPlanesOfCodes + p) % kChains], chunk.plane[p], x + r * kLine + 4 * p);
      }
      x += 4 * kPlanesOfCodes;
    };
    int left = block->chunks;
    for (; left >= kUnroll; left -= kUnroll) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) add_chunk(u);
    }
    if constexpr (kUnroll > 1) {
      for (; left > 0; --left) add_chunk(0);
    }
    const __m512 scale = scales_at(matrix, panel, b);
    const __m512 zero = zeros_at(matrix, panel, b);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      __m512i whole = sum_of(dot[r * kPlanes]);
      if constexpr (kPlanes == 2) {
        const __m512i low = sum_of(dot[r * kPlanes + 1]);
        whole = _mm512_add_epi32(_mm512_slli_epi32(whole, 8), low);
      }
      const __m512 part = _mm512_fmadd_ps(zero, _mm512_set1_ps(meta[to_sums + r]), _mm512_cvtepi32_ps(whole));
      total[r] = _mm512_fmadd_ps(_mm512_mul_ps(part, _mm512_set1_ps(meta[r])), scale, total[r]);
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
