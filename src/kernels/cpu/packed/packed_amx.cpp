// AMX for more than one row: byte tiles of codes against byte tiles of activations, high and low bytes of 16-bit ones
// as rows of one tile. Exact sums of a block leave the tiles, and are scaled and added in vector registers.
#include "kernels/cpu/packed/chunk512.h"
#include "kernels/cpu/packed/finish.h"

namespace nibble::packed {
namespace {

constexpr int kTileBytes = 1024;
constexpr int kMaxSteps = kLine / 64;  // tiles of codes that a block takes at most: a tile is 64 slots of 16 outputs

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {};
  std::uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums (two tiles of activations times two panels), 4 and 5 activations, 6 and 7 codes. `slots`: 64,
// or 32 where no block is longer.
void configure(int activation_rows, int slots) {
  TileConfig config;
  for (int i = 0; i < 4; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(activation_rows);
    config.bytes_per_row[i] = 64;
  }
  for (int i = 4; i < 6; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(activation_rows);
    config.bytes_per_row[i] = static_cast<std::uint16_t>(slots);
  }
  for (int i = 6; i < 8; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(slots / 4);
    config.bytes_per_row[i] = 64;
  }
  _tile_loadconfig(&config);
}

// g++ 12 does not know that tile loads read memory: without this it may move the stores of unpack() behind them.
inline void memory_barrier() { __asm__ volatile("" ::: "memory"); }

// A block's codes as rows of four slots of 16 outputs, with zeros up to `steps` tiles of step_bytes.
template <int kBits>
const std::uint8_t* unpack(const std::uint8_t* codes, int chunks, std::uint8_t* to, const std::uint8_t* to_end) {
  for (int c = 0; c < chunks; ++c) {
    prefetch_codes(codes);
    const Chunk<kBits> chunk(codes);
    codes += Chunk<kBits>::kBytes;
#pragma GCC unroll 8
    for (int p = 0; p < Chunk<kBits>::kPlanes; ++p) _mm512_store_si512(to + 64 * p, chunk.plane[p]);
    to += 64 * Chunk<kBits>::kPlanes;
  }
  for (; to < to_end; to += 64) _mm512_store_si512(to, _mm512_setzero_si512());
  return codes;
}

using Unpack = const std::uint8_t*(const std::uint8_t*, int, std::uint8_t*, const std::uint8_t*);

Unpack* unpack_of(int bits) {
  switch (bits) {
    case 2:
      return unpack<2>;
    case 3:
      return unpack<3>;
    case 8:
      return unpack<8>;
    default:
      return unpack<4>;
  }
}

// One or two panels that read the same activations.
template <int kPanels>
struct Work {
  const Matrix* matrix[kPanels];
  const std::uint8_t* panel[kPanels];
};

struct alignas(64) Sums {
  std::int32_t tile[2][2][kTileBytes / 4];  // [tile of activations][panel]
};

// The sums of a block that have left the tiles and are yet to be scaled.
struct Pending {
  const Sums* sums = nullptr;
  int block = 0;
  std::int64_t tile = 0;
  int tiles = 0;
};

// tiles: 1 or 2 of activations from x on; codes: `steps` tiles a panel.
template <int kPanels>
void products(const std::int8_t* x, std::int64_t tile_bytes, int tiles, const std::uint8_t* codes, int steps, int slots,
              Sums& sums) {
  memory_barrier();
  const std::uint8_t* const second = codes + kMaxSteps * kTileBytes;
  const int codes_step = slots * 16;
  _tile_zero(0);
  if constexpr (kPanels == 2) _tile_zero(1);
  if (tiles == 2) {
    _tile_zero(2);
    if constexpr (kPanels == 2) _tile_zero(3);
    for (int step = 0; step < steps; ++step) {
      _tile_loadd(6, codes + step * codes_step, 64);
      _tile_loadd(4, x + step * slots, kLine);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(5, x + tile_bytes + step * slots, kLine);
      _tile_dpbsud(2, 5, 6);
      if constexpr (kPanels == 2) {
        _tile_loadd(7, second + step * codes_step, 64);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(3, 5, 7);
      }
    }
    _tile_stored(2, sums.tile[1][0], 64);
    if constexpr (kPanels == 2) _tile_stored(3, sums.tile[1][1], 64);
  } else {
    for (int step = 0; step < steps; ++step) {
      _tile_loadd(6, codes + step * codes_step, 64);
      _tile_loadd(4, x + step * slots, kLine);
      _tile_dpbsud(0, 4, 6);
      if constexpr (kPanels == 2) {
        _tile_loadd(7, second + step * codes_step, 64);
        _tile_dpbsud(1, 4, 7);
      }
    }
  }
  _tile_stored(0, sums.tile[0][0], 64);
  if constexpr (kPanels == 2) _tile_stored(1, sums.tile[0][1], 64);
}

// Scales the sums of a block and adds them to `totals`, [rows][kPairFloats] of the rows from first_tile's on.
template <int kPanels, int kPlanes>
void add_block(const Work<kPanels>& work, const Staged& staged, const Pending& pending, std::int64_t rows,
               std::int64_t first_tile, float* totals) {
  constexpr int kTileInputs = kTileRows / kPlanes;
  const int blocks = work.matrix[0]->plan.block_count;
  __m512 scale[kPanels];
  __m512 zero[kPanels];
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) {
    scale[p] = scales_at(*work.matrix[p], work.panel[p], pending.block);
    zero[p] = zeros_at(*work.matrix[p], work.panel[p], pending.block);
  }
  for (int t = 0; t < pending.tiles; ++t) {
    const std::int64_t tile = pending.tile + t;
    const std::int64_t first_row = (tile - first_tile) * kTileInputs;
    const std::int64_t meta = (tile * blocks + pending.block) * kTileInputs;
    const int count = static_cast<int>(rows - first_row < kTileInputs ? rows - first_row : kTileInputs);
    for (int r = 0; r < count; ++r) {
      const __m512 minus_sum = _mm512_set1_ps(staged.minus_sum[meta + r]);
      const __m512 x_scale = _mm512_set1_ps(staged.scale[meta + r]);
      float* const to = totals + (first_row + r) * kPairFloats;
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        const std::int32_t* const from = pending.sums->tile[t][p] + r * kPlanes * kPanel;
        __m512i dot = _mm512_load_si512(from);
        if constexpr (kPlanes == 2) dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 8), _mm512_load_si512(from + kPanel));
        const __m512 part = _mm512_fmadd_ps(zero[p], minus_sum, _mm512_cvtepi32_ps(dot));
        _mm512_store_ps(to + p * kPanel,
                        _mm512_fmadd_ps(_mm512_mul_ps(part, x_scale), scale[p], _mm512_load_ps(to + p * kPanel)));
      }
    }
  }
}

// totals [rows][kPairFloats] of the rows from first_tile's on, for one or two panels. The work is a chain of steps (a
// block times two tiles of rows); while the tiles of one step are multiplied, the sums of the one before are scaled.
template <int kPanels, int kPlanes>
void panels_times_rows(const Call& call, const Work<kPanels>& work, std::int64_t first_tile, std::int64_t rows,
                       int slots, float* totals) {
  constexpr int kTileInputs = kTileRows / kPlanes;
  alignas(64) std::uint8_t codes[2][kPanels][kMaxSteps * kTileBytes];
  Sums sums[2];
  for (std::int64_t r = 0; r < rows; ++r) {
    for (int p = 0; p < kPanels; ++p) _mm512_store_ps(totals + r * kPairFloats + p * kPanel, _mm512_setzero_ps());
  }
  const Staged& staged = call.staged[work.matrix[0]->staged];
  const PlanView& plan = work.matrix[0]->plan;
  const std::int64_t tile_rows = staged_tile_rows(call.rows, kPlanes);
  const std::int64_t tile_bytes = tile_rows * plan.lines * kLine;
  const std::int64_t tiles = (rows + kTileInputs - 1) / kTileInputs;
  const std::uint8_t* at[kPanels];
  Unpack* unpack_panel[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    at[p] = work.panel[p] + work.matrix[p]->codes_offset;
    unpack_panel[p] = unpack_of(work.matrix[p]->bits);
  }
  const auto unpack_block = [&](int b) {
    const int chunks = plan.blocks[b].chunks;
    const int steps = (chunks * plan.chunk_slots + slots - 1) / slots;
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p)
      at[p] = unpack_panel[p](at[p], chunks, codes[b % 2][p], codes[b % 2][p] + steps * slots * 16);
  };
  unpack_block(0);
  Pending pending;
  int flip = 0;
  for (int b = 0; b < plan.block_count; ++b) {
    const Block& block = plan.blocks[b];
    const int steps = (block.chunks * plan.chunk_slots + slots - 1) / slots;
    const std::int8_t* const x =
        staged.q + first_tile * tile_bytes + block.slot / kLine * tile_rows * kLine + block.slot % kLine;
    for (std::int64_t t = 0; t < tiles; t += 2, flip ^= 1) {
      const int both = tiles - t > 1 ? 2 : 1;
      products<kPanels>(x + t * tile_bytes, tile_bytes, both, codes[b % 2][0], steps, slots, sums[flip]);
      // Tiles do not read stores that have not reached the cache: the next block's codes are written a block ahead.
      if (t == 0 && b + 1 < plan.block_count) unpack_block(b + 1);
      if (pending.sums != nullptr) add_block<kPanels, kPlanes>(work, staged, pending, rows, first_tile, totals);
      pending = {&sums[flip], b, first_tile + t, both};
    }
  }
  add_block<kPanels, kPlanes>(work, staged, pending, rows, first_tile, totals);
}

template <int kPlanes>
void multiply(const Call& call, const Rectangle& area) {
  constexpr int kTileInputs = kTileRows / kPlanes;
  int longest = 0;
  for (int i = 0; i < call.part_count; ++i) {
    const PlanView& plan = call.parts[i].plan;
    for (int b = 0; b < plan.block_count; ++b) {
      const int slots = plan.blocks[b].chunks * plan.chunk_slots;
      longest = slots > longest ? slots : longest;
    }
  }
  const int slots = longest <= 32 ? 32 : 64;
  configure(static_cast<int>(staged_tile_rows(call.rows, kPlanes)), slots);
  alignas(64) float totals[kMaxSums * kPairFloats];
  for (std::int64_t index = area.pair_begin; index < area.pair_end; ++index) {
    const PairRef pair = pair_at(call, index);
    const Matrix& first = call.parts[pair.first_part];
    const Matrix& second = call.parts[pair.second_part];
    const std::uint8_t* const first_panel = first.panels + pair.first_panel * first.stride;
    const std::uint8_t* const second_panel = second.panels + pair.second_panel * second.stride;
    for (std::int64_t row = area.row_begin; row < area.row_end; row += kMaxSums) {
      const std::int64_t rows = area.row_end - row < kMaxSums ? area.row_end - row : kMaxSums;
      const std::int64_t tile = row / kTileInputs;
      if (pair.has_second && first.staged == second.staged) {
        panels_times_rows<2, kPlanes>(call, {{&first, &second}, {first_panel, second_panel}}, tile, rows, slots,
                                      totals);
      } else {
        panels_times_rows<1, kPlanes>(call, {{&first}, {first_panel}}, tile, rows, slots, totals);
        if (pair.has_second)
          panels_times_rows<1, kPlanes>(call, {{&second}, {second_panel}}, tile, rows, slots, totals + kPanel);
      }
      finish_pair(call, pair, row, static_cast<int>(rows), totals);
    }
  }
  // Tiles in use slow down the saving of a thread's state, and other code of the thread configures its own.
  _tile_release();
}

}  // namespace

void multiply_amx(const Call& call, const Rectangle& rectangle) {
  // One row is bound by memory, and vpdpbusd needs no way through tiles.
  if (call.rows == 1) {
    multiply_avx512vnni(call, rectangle);
  } else if (call.planes == 2) {
    multiply<2>(call, rectangle);
  } else {
    multiply<1>(call, rectangle);
  }
}

}  // namespace nibble::packed
