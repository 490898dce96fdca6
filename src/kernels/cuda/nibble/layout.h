// How the kernels `nibble` and `dequant` keep quantised weights on the GPU: one layout for all numbers of rows.
//
// Outputs go in strips of 16, inputs in blocks of 128. Two strips make a pair, whose blocks follow each other in turns,
// block 0 of both, then block 1: so a pair is one stream of memory, and what meets the same inputs lies together. Where
// the last pair has one strip, the other's blocks are zeros. A block holds its 16 x 128 codes in the order in which a
// warp's tensor core takes them as matrix A (mma m16n8k16: lane = 4 g + c has rows g and g + 8, inputs 2c, 2c + 1, 2c +
// 8, 2c + 9 of each 16), then its scales, then, unless all zero points are 2^(bits-1), its zero points:
//
//   4 bits: [unit of 64 inputs][lane] 16 bytes, a word for each 16 inputs ("step"). In each half of a word (low: input
//     2c or 2c + 8, high: 2c + 1 or 2c + 9) bits 0-3 are row g, input 2c; 4-7 row g, 2c + 8; 8-11 row g + 8, 2c; 12-15
//     row g + 8, 2c + 8.
//   8 bits: [unit][pair of steps][lane] 16 bytes, two words a step: row g, then g + 8, each bytes of inputs 2c, 2c + 1,
//     2c + 8, 2c + 9.
//   2 bits: [lane] 16 bytes, word j for steps 2j and 2j + 1. In each half bits 0-7 are row g: step 2j input 2c, 2c + 8,
//     step 2j + 1 input 2c, 2c + 8; bits 8-15 row g + 8.
//   3 bits: the low two bits as for 2 bits, then [lane] 8 bytes, word v for steps 4v to 4v + 3: the high bits. In each
//     half row g has bits 2, 4, 6, 8 (in the order of the low bits' pairs), row g + 8 bits 3, 5, 7, 9; for steps 4v + 2
//     and 4v + 3 the same with the half's two bytes swapped.
//
// Scales are f16, [set][g] pairs (row g, row g + 8); zero points bytes in the same order. A set is what 128 / sets
// inputs share. Inputs are sorted by group first (act-order), and groups that are no whole number of sets are padded:
// `order` says which input stands where.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble::gpu {

constexpr int kStripRows = 16;
constexpr int kBlockInputs = 128;

struct PackedLayout {
  int bits = 4;
  int sets = 1;        // of scales in a block: 1, 2, 4 or 8
  bool zeros = false;  // zero points are kept
  bool gated = false;  // two parts: rows 0-7 of a strip are of the first, 8-15 of the second
  std::int64_t inputs = 0;
  std::int64_t blocks = 0;                // of a strip
  std::vector<std::int64_t> part_strips;  // strips of each part; gated: one entry for both

  std::int64_t packed_inputs() const { return blocks * kBlockInputs; }
  std::int64_t strips() const;
  std::int64_t pairs() const { return (strips() + 1) / 2; }
  int block_bytes() const { return bits * 256 + sets * (32 + (zeros ? 16 : 0)); }
  std::size_t bytes() const;
};

/// Where a block stands, in blocks from the first.
constexpr std::int64_t block_place(std::int64_t strip, std::int64_t block, std::int64_t blocks) {
  return (strip / 2 * blocks + block) * 2 + strip % 2;
}

/// The layout of a site by its description alone: groups are taken to be as large as group_size says.
PackedLayout layout_of(const LinearSite& site);

/// Which input stands at each packed place (-1: none, a zero), and the group of each set (-1: none).
struct InputOrder {
  std::vector<std::int32_t> inputs;  // [packed_inputs]
  std::vector<std::int32_t> groups;  // [packed_inputs / (128 / sets)]
  bool sorted = false;               // packed place p holds input p for all p < K
};

/// From g_idx; sets and blocks of `layout` are set to what it takes.
InputOrder order_inputs(std::span<const std::int32_t> g_idx, std::int64_t groups, PackedLayout& layout);

}  // namespace nibble::gpu
