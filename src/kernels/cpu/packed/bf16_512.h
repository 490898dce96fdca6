// Many rows whose operands may be rounded to bf16, for the units that multiply pairs of bf16. Weights are made bf16
// once for up to 512 rows, a slice that fits the first-level cache at a time. How a slice is multiplied is the unit's
// affair (a type Product). Included by units into their own unnamed namespaces.
#pragma once

#include "kernels/cpu/packed/chunk512.h"
#include "kernels/cpu/packed/finish.h"

namespace nibble::packed {
namespace {

constexpr int kTileBytes = 1024;
constexpr int kStepSlots = 32;
constexpr int kLineSteps = kLine / kStepSlots;
// The bytes of a slot of 16 outputs.
constexpr int kSlotBytes = 32;
// Lines of two panels that are multiplied at a time: 256 slots are 16 KiB of weights, which stay in the first-level
// cache beside 32 rows of activations that pass. The sums then go through memory once a slice, which takes less than
// loading longer slices from the second-level cache again and again (measured at 576 and 1536 inputs: 2 lines, 3, 4 and
// 6).
constexpr int kSliceLines = 2;
constexpr int kSliceSteps = kSliceLines * kLineSteps;

// Byte kByte of each word as weights: scale * code + offset.
template <int kByte>
__attribute__((always_inline)) inline __m512 weights(__m512i words, __m512 scale, __m512 offset) {
  // The byte is turned to bits 15 to 22. There it is worth 1 a unit in a float of exponent 8: 256 + code.
  const __m512i turned = _mm512_rol_epi32(words, (15 - 8 * kByte + 32) % 32);
  const __m512i biased =
      _mm512_ternarylogic_epi32(turned, _mm512_set1_epi32(0xff << 15), _mm512_set1_epi32(0x43800000), 0xEA);
  return _mm512_fmadd_ps(scale, _mm512_castsi512_ps(biased), offset);
}

// The upper halves of two floats, rounded, in one word: the first in the lower half. Rounding is to nearest, ties away
// from zero, which takes one addition where ties to even take four instructions; ties are rare and of no sign.
__attribute__((always_inline)) inline __m512i bf16_pair(__m512 first, __m512 second) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), half), 16);
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_add_epi32(_mm512_castps_si512(second), half));
}

// Tiles of a slice: 16 pairs of slots by 16 outputs each, one a step, of the first panel and then of the second.
struct alignas(64) Slice {
  std::uint8_t tiles[2][kSliceSteps * kTileBytes];
};

// The blocks [first, last) of a panel as tiles from `to` on, which stands for slot first_slot. Returns the codes behind
// them.
template <int kBits>
const std::uint8_t* make_weights(const Matrix& matrix, const std::uint8_t* panel, const std::uint8_t* codes, int first,
                                 int last, int first_slot, std::uint8_t* to) {
  const PlanView& plan = matrix.plan;
  for (int b = first; b < last; ++b) {
    const Block& block = plan.blocks[b];
    const __m512 scale = scales_at(matrix, panel, b);
    const __m512 offset = _mm512_mul_ps(scale, _mm512_sub_ps(_mm512_set1_ps(-256.0f), zeros_at(matrix, panel, b)));
    std::uint8_t* at = to + (block.slot - first_slot) * kSlotBytes;
    for (int c = 0; c < block.chunks; ++c) {
      prefetch_codes(codes);
      const Chunk<kBits> chunk(codes);
      codes += Chunk<kBits>::kBytes;
#pragma GCC unroll 8
      for (int p = 0; p < Chunk<kBits>::kPlanes; ++p, at += 4 * kSlotBytes) {
        const __m512i plane = chunk.plane[p];
        _mm512_store_si512(at, bf16_pair(weights<0>(plane, scale, offset), weights<1>(plane, scale, offset)));
        _mm512_store_si512(at + 2 * kSlotBytes,
                           bf16_pair(weights<2>(plane, scale, offset), weights<3>(plane, scale, offset)));
      }
    }
  }
  return codes;
}

using MakeWeights = const std::uint8_t*(const Matrix&, const std::uint8_t*, const std::uint8_t*, int, int, int,
                                        std::uint8_t*);

MakeWeights* make_weights_of(int bits) {
  switch (bits) {
    case 2:
      return make_weights<2>;
    case 3:
      return make_weights<3>;
    case 8:
      return make_weights<8>;
    default:
      return make_weights<4>;
  }
}

// Floats [rows][16] of one panel and of the other, rows `stride` apart.
struct Sums {
  float* panel[2] = {};
  std::int64_t stride = 0;

  // From row `row` on; none stay none.
  Sums behind(std::int64_t row) const {
    if (panel[0] == nullptr) return *this;
    return {{panel[0] + row * stride, panel[1] + row * stride}, stride};
  }
};

// A Product multiplies 1 to 32 rows by both panels of a slice, adds that to `from` (null: to zeros) and writes `to`, up
// to the next multiple of its kRows:
//
//   static void rows(const std::uint16_t* x, std::int64_t tile_elements, const Slice& slice, int steps,
//                    const Sums& from, const Sums& to, int count);
//
// x: tiles of 16 rows, tile_elements apart, each [steps][16 rows][32 slots].

// May tiles of whole panels go straight to the outputs (and start from the residual)?
bool direct(const Call& call, const PairRef& pair) {
  const Matrix& matrix = call.parts[pair.first_part];
  return call.finish <= Finish::residual && pair.has_second && matrix.bias == nullptr &&
         (pair.second_panel + 1) * kPanel <= matrix.outputs;
}

// Up to kMaxSums rows times a pair.
template <class Product>
void rows_times_pair(const Call& call, std::int64_t index, std::int64_t row, std::int64_t rows, Slice& slice,
                     float* totals) {
  const PairRef pair = pair_at(call, index);
  const Matrix* const matrix[2] = {&call.parts[pair.first_part], &call.parts[pair.second_part]};
  const std::int64_t panel_index[2] = {pair.first_panel, pair.second_panel};
  const int panels = pair.has_second ? 2 : 1;
  const std::uint8_t* panel[2];
  const std::uint8_t* codes[2];
  for (int p = 0; p < panels; ++p) {
    panel[p] = matrix[p]->panels + panel_index[p] * matrix[p]->stride;
    codes[p] = panel[p] + matrix[p]->codes_offset;
  }
  const PlanView& plan = call.parts[0].plan;
  const std::int64_t tile_elements = static_cast<std::int64_t>(plan.steps) * (kTileBytes / 2);
  const std::uint16_t* const x = call.staged[0].bf16 + row / kTileRows * tile_elements;
  const bool straight = direct(call, pair);
  int block = 0;
  for (int line = 0; line < plan.lines; line += kSliceLines) {
    const int first_step = line * kLineSteps;
    const int end_step = line + kSliceLines < plan.lines ? (line + kSliceLines) * kLineSteps : plan.steps;
    const int steps = end_step - first_step;
    int end_block = block;
    while (end_block < plan.block_count && plan.blocks[end_block].slot < end_step * kStepSlots) ++end_block;
    for (int p = 0; p < panels; ++p) {
      if (plan.gaps) {
        for (int i = 0; i < steps * kTileBytes; i += 64) _mm512_store_si512(slice.tiles[p] + i, _mm512_setzero_si512());
      }
      codes[p] = make_weights_of(matrix[p]->bits)(*matrix[p], panel[p], codes[p], block, end_block,
                                                  first_step * kStepSlots, slice.tiles[p]);
    }
    block = end_block;
    const bool last = end_step == plan.steps;
    for (std::int64_t r = 0; r < rows; r += 32) {
      const std::int64_t count = rows - r < 32 ? rows - r : 32;
      const std::uint16_t* const inputs = x + r / kTileRows * tile_elements + first_step * (kTileBytes / 2);
      float* const mine = totals + r * kPairFloats;
      Sums to = {{mine, mine + kPanel}, kPairFloats};
      Sums from;
      const bool in_place = straight && count % Product::kRows == 0;
      if (in_place) {
        const Output& y = call.y[pair.first_part];
        float* const at = y.y + (row + r) * y.stride + pair.first_panel * kPanel;
        to = {{at, at + kPanel}, y.stride};
        if (call.finish == Finish::residual) {
          // Tiles of the residual are only read.
          float* const residual =
              const_cast<float*>(call.residual) + (row + r) * call.residual_stride + pair.first_panel * kPanel;
          from = {{residual, residual + kPanel}, call.residual_stride};
        }
      }
      if (line > 0) from = to;
      Product::rows(inputs, tile_elements, slice, steps, from, to, static_cast<int>(count));
      if (last && !in_place) finish_pair(call, pair, row + r, static_cast<int>(count), mine);
    }
  }
}

/// The whole rectangle.
template <class Product>
void multiply_bf16(const Call& call, const Rectangle& area) {
  Slice slice;
  alignas(64) float totals[kMaxSums * kPairFloats];
  for (std::int64_t row = area.row_begin; row < area.row_end; row += kMaxSums) {
    const std::int64_t rows = area.row_end - row < kMaxSums ? area.row_end - row : kMaxSums;
    for (std::int64_t pair = area.pair_begin; pair < area.pair_end; ++pair)
      rows_times_pair<Product>(call, pair, row, rows, slice, totals);
  }
}

}  // namespace
}  // namespace nibble::packed
