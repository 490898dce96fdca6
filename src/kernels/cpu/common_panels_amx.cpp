#include "kernels/cpu/common_panels.h"

#include <immintrin.h>

namespace nibble::panels {
namespace {

// What ldtilecfg reads: 64 bytes, all tiles 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 16 cache lines, 2 KiB ahead (the panel's next step). Two such halves a step, apart from each other: all 32 at once
// would wait for free fill buffers (measured at 8 rows: 13.4 GB/s a core without, 15 with all at once, 19 so).
void prefetch(const std::uint16_t* at, int half) {
  constexpr int kAhead = 2048;
#pragma GCC unroll 16
  for (int line = 0; line < 16; ++line) {
    _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + (half * 16 + line) * 64, _MM_HINT_T0);
  }
}

// Rows of products from the tiles, which can only be stored as they are.
void put(const float* products, std::int64_t first, std::int64_t rows, const Output& to) {
  for (int half = 0; half < 2; ++half) {
    const __m512 bias = _mm512_loadu_ps(to.bias + half * 16);
    for (std::int64_t r = 0; r < rows; ++r) {
      __m512 sum = _mm512_add_ps(_mm512_load_ps(products + r * kWidth + half * 16), bias);
      if (to.residual != nullptr) {
        sum = _mm512_add_ps(_mm512_loadu_ps(to.residual + (first + r) * to.residual_stride + half * 16), sum);
      }
      _mm512_storeu_ps(to.y + (first + r) * to.stride + half * 16, sum);
    }
  }
}

}  // namespace

// 32 rows x 32 outputs a step: four accumulator tiles (0 to 3), two of inputs (4, 5), two of weights (6, 7), so that
// each loaded tile is used twice. One tile of weights is 16 pairs of k by 16 outputs.
void bf16_amx(const std::uint16_t* panel, std::int64_t k, const std::uint16_t* x, std::int64_t stride,
              std::int64_t rows, const Output& to) {
  constexpr std::int64_t kPanelRow = kWidth * 4;  // bytes of a pair of k, and of a row of out
  alignas(64) float products[32 * kWidth];
  const TileConfig config;
  _tile_loadconfig(&config);
  for (std::int64_t m = 0; m < rows; m += 32) {
    const std::uint16_t* first = x + m * stride;
    const std::uint16_t* second = first + 16 * stride;
    _tile_zero(0);
    _tile_zero(1);
    if (rows - m > 16) {
      _tile_zero(2);
      _tile_zero(3);
      for (std::int64_t i = 0; i < k; i += 32) {
        const std::uint16_t* at = panel + i * kWidth;
        prefetch(at, 0);
        _tile_loadd(6, at, kPanelRow);
        _tile_loadd(4, first + i, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        prefetch(at, 1);
        _tile_loadd(7, at + 32, kPanelRow);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, second + i, stride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(2, products + 16 * kWidth, kPanelRow);
      _tile_stored(3, products + 16 * kWidth + 16, kPanelRow);
    } else {
      for (std::int64_t i = 0; i < k; i += 32) {
        const std::uint16_t* at = panel + i * kWidth;
        prefetch(at, 0);
        _tile_loadd(6, at, kPanelRow);
        _tile_loadd(4, first + i, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        prefetch(at, 1);
        _tile_loadd(7, at + 32, kPanelRow);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
    _tile_stored(0, products, kPanelRow);
    _tile_stored(1, products + 16, kPanelRow);
    put(products, m, rows - m < 32 ? rows - m : 32, to);
  }
  _tile_release();
}

}  // namespace nibble::panels
