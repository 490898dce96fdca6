// vdpbf16ps for many rows whose operands may be rounded to bf16, where there is no AMX (Zen 4 and 5, Cooper Lake).
#include "kernels/cpu/packed/bf16_512.h"

namespace nibble::packed {
namespace {

// Half a tile of activations: 8 rows x 32 outputs are 16 sums, enough for two products a cycle of a latency of 6; 10
// loads stand against 16 products.
constexpr int kMostRows = 8;

template <int kRows>
void product(const std::uint16_t* x, const Slice& slice, int steps, const Sums& from, const Sums& to) {
  __m512 sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p)
      sum[r][p] = from.panel[0] == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(from.panel[p] + r * from.stride);
  }
  for (int step = 0; step < steps; ++step, x += kTileBytes / 2) {
    for (int pair = 0; pair < kStepSlots / 2; ++pair) {
      const int at = step * kTileBytes + pair * 64;
      const auto w0 = (__m512bh)_mm512_load_si512(slice.tiles[0] + at);
      const auto w1 = (__m512bh)_mm512_load_si512(slice.tiles[1] + at);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        std::int32_t two;
        __builtin_memcpy(&two, x + r * kStepSlots + 2 * pair, 4);
        const auto v = (__m512bh)_mm512_set1_epi32(two);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], w0, v);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], w1, v);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) _mm512_storeu_ps(to.panel[p] + r * to.stride, sum[r][p]);
  }
}

using ProductOfRows = void(const std::uint16_t*, const Slice&, int, const Sums&, const Sums&);
constexpr ProductOfRows* kProducts[kMostRows] = {product<1>, product<2>, product<3>, product<4>,
                                                 product<5>, product<6>, product<7>, product<8>};

struct VectorProduct {
  static constexpr int kRows = 1;
  static void rows(const std::uint16_t* x, std::int64_t tile_elements, const Slice& slice, int steps, const Sums& from,
                   const Sums& to, int count) {
    for (int first = 0; first < count; first += kMostRows) {
      const int height = count - first < kMostRows ? count - first : kMostRows;
      kProducts[height - 1](x + first / kTileRows * tile_elements + first % kTileRows * kStepSlots, slice, steps,
                            from.behind(first), to.behind(first));
    }
  }
};

}  // namespace

void multiply_bf16_avx512bf16(const Call& call, const Rectangle& area) { multiply_bf16<VectorProduct>(call, area); }

}  // namespace nibble::packed
