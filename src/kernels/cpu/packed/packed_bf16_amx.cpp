// AMX for many rows whose operands may be rounded to bf16. The making of weights is not mixed with the products: stores
// whose addresses agree in their lowest 12 bits with those of the tile loads behind them hold these up, which costs
// more than the overlap gains.
#include "kernels/cpu/packed/bf16_512.h"

namespace nibble::packed {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// g++ 12 does not know that tile loads read memory: without this it may move stores behind them.
inline void memory_barrier() { __asm__ volatile("" ::: "memory"); }

// 16 or 32 rows times both panels of a slice.
template <int kTiles>
void product(const std::uint16_t* x, std::int64_t tile_elements, const Slice& slice, int steps, const Sums& from,
             const Sums& to) {
  const auto* const second = x + tile_elements;
  memory_barrier();
  if (from.panel[0] == nullptr) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, from.panel[0], from.stride * 4);
    _tile_loadd(1, from.panel[1], from.stride * 4);
    if constexpr (kTiles == 2) {
      _tile_loadd(2, from.panel[0] + 16 * from.stride, from.stride * 4);
      _tile_loadd(3, from.panel[1] + 16 * from.stride, from.stride * 4);
    }
  }
  for (int step = 0; step < steps; ++step) {
    _tile_loadd(6, slice.tiles[0] + step * kTileBytes, 64);
    _tile_loadd(4, x + step * (kTileBytes / 2), 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, slice.tiles[1] + step * kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, second + step * (kTileBytes / 2), 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, to.panel[0], to.stride * 4);
  _tile_stored(1, to.panel[1], to.stride * 4);
  if constexpr (kTiles == 2) {
    _tile_stored(2, to.panel[0] + 16 * to.stride, to.stride * 4);
    _tile_stored(3, to.panel[1] + 16 * to.stride, to.stride * 4);
  }
}

struct AmxProduct {
  static constexpr int kRows = kTileRows;
  static void rows(const std::uint16_t* x, std::int64_t tile_elements, const Slice& slice, int steps, const Sums& from,
                   const Sums& to, int count) {
    if (count > kTileRows) {
      product<2>(x, tile_elements, slice, steps, from, to);
    } else {
      product<1>(x, tile_elements, slice, steps, from, to);
    }
  }
};

}  // namespace

void multiply_bf16_amx(const Call& call, const Rectangle& area) {
  const TileConfig config;
  _tile_loadconfig(&config);
  multiply_bf16<AmxProduct>(call, area);
  // Tiles in use slow down the saving of a thread's state, and other code of the thread configures its own.
  _tile_release();
}

}  // namespace nibble::packed
