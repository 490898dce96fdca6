// AMX for many rows whose operands may be rounded to bf16. Weights are made bf16 once for up to 512 rows; while the
// tiles multiply by some, the vector units make the next ones, which hides that work from some 100 rows on.
#include "kernels/cpu/packed/chunk512.h"
#include "kernels/cpu/packed/finish.h"

namespace nibble::packed {
namespace {

constexpr int kTileBytes = 1024;
constexpr int kStepSlots = 32;
constexpr int kLineSteps = kLine / kStepSlots;
// Weights of two panels that are multiplied at a time: 24 steps of 2 KiB, which the second-level cache keeps beside the
// next ones and 32 rows of activations, and which spare inputs of up to 768 the way of the sums through memory.
constexpr int kSliceLines = 6;
constexpr int kSliceSteps = kSliceLines * kLineSteps;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// g++ 12 does not know that tile loads read memory: without this it may move stores behind them.
inline void memory_barrier() { __asm__ volatile("" ::: "memory"); }

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

// Where the making of one panel's weights stands.
struct Maker {
  const Matrix* matrix = nullptr;
  const std::uint8_t* panel = nullptr;
  const std::uint8_t* codes = nullptr;  // of the next chunk
  std::uint8_t* out = nullptr;          // tiles of the present slice
  int block = 0;
  int chunk = 0;
  int first_slot = 0;  // of the slice
  __m512 scale = {};
  __m512 offset = {};
};

// One chunk.
template <int kBits>
void make_chunk(Maker& maker) {
  const PlanView& plan = maker.matrix->plan;
  const Block& block = plan.blocks[maker.block];
  if (maker.chunk == 0) {
    maker.scale = scales_at(*maker.matrix, maker.panel, maker.block);
    const __m512 zero = zeros_at(*maker.matrix, maker.panel, maker.block);
    maker.offset = _mm512_mul_ps(maker.scale, _mm512_sub_ps(_mm512_set1_ps(-256.0f), zero));
  }
  _mm_prefetch(maker.codes + kPrefetchBytes, _MM_HINT_T0);
  const Chunk<kBits> chunk(maker.codes);
  maker.codes += Chunk<kBits>::kBytes;
  // Two slots are a row of a tile: 64 bytes.
  std::uint8_t* to = maker.out + (block.slot - maker.first_slot + maker.chunk * plan.chunk_slots) * 32;
  const __m512 scale = maker.scale;
  const __m512 offset = maker.offset;
#pragma GCC unroll 8
  for (int p = 0; p < Chunk<kBits>::kPlanes; ++p, to += 128) {
    const __m512i plane = chunk.plane[p];
    _mm512_store_si512(to, bf16_pair(weights<0>(plane, scale, offset), weights<1>(plane, scale, offset)));
    _mm512_store_si512(to + 64, bf16_pair(weights<2>(plane, scale, offset), weights<3>(plane, scale, offset)));
  }
  if (++maker.chunk == block.chunks) {
    maker.chunk = 0;
    ++maker.block;
  }
}

using MakeChunk = void(Maker&);

MakeChunk* make_chunk_of(int bits) {
  switch (bits) {
    case 2:
      return make_chunk<2>;
    case 3:
      return make_chunk<3>;
    case 8:
      return make_chunk<8>;
    default:
      return make_chunk<4>;
  }
}

/// Goes through the weights of a run of pairs, slice by slice, chunk by chunk.
class Weights {
 public:
  Weights(const Call& call, std::int64_t pair, std::int64_t pair_end)
      : call_(call), plan_(call.parts[0].plan), pair_(pair), pair_end_(pair_end) {
    const int slices = (plan_.lines + kSliceLines - 1) / kSliceLines;
    slice_lines_ = (plan_.lines + slices - 1) / slices;
    open_pair();
  }

  int slices() const { return (plan_.lines + slice_lines_ - 1) / slice_lines_; }
  int first_step(int slice) const { return slice * slice_lines_ * kLineSteps; }
  int end_step(int slice) const {
    const int end = first_step(slice + 1);
    return end < plan_.steps ? end : plan_.steps;
  }

  /// Begins the next slice: its first panel's tiles go to `to`, its second's behind kSliceSteps of them.
  void open_slice(std::uint8_t* to) {
    chunks_left_ = 0;
    if (pair_ == pair_end_) return;
    const int first_slot = first_step(slice_) * kStepSlots;
    const int end_slot = end_step(slice_) * kStepSlots;
    for (int b = maker_[0].block; b < plan_.block_count && plan_.blocks[b].slot < end_slot; ++b)
      chunks_left_ += plan_.blocks[b].chunks;
    panel_chunks_ = chunks_left_;
    if (has_second_) chunks_left_ *= 2;
    for (int p = 0; p < 2; ++p) {
      maker_[p].out = to + p * kSliceSteps * kTileBytes;
      maker_[p].first_slot = first_slot;
      if (plan_.gaps) {
        for (int i = 0; i < (end_slot - first_slot) * 32; i += 64)
          _mm512_store_si512(maker_[p].out + i, _mm512_setzero_si512());
      }
    }
    if (++slice_ == slices()) {
      slice_ = 0;
      ++pair_;
      pair_done_ = true;
    }
  }

  int chunks_left() const { return chunks_left_; }

  /// The next chunk of the slice.
  __attribute__((always_inline)) void make_one() {
    const int p = has_second_ && chunks_left_ <= panel_chunks_ ? 1 : 0;
    make_[p](maker_[p]);
    --chunks_left_;
    if (chunks_left_ == 0 && pair_done_ && pair_ != pair_end_) open_pair();
  }

 private:
  void open_pair() {
    const PairRef ref = pair_at(call_, pair_);
    has_second_ = ref.has_second;
    pair_done_ = false;
    open_panel(0, call_.parts[ref.first_part], ref.first_panel);
    if (has_second_) open_panel(1, call_.parts[ref.second_part], ref.second_panel);
  }

  void open_panel(int p, const Matrix& matrix, std::int64_t panel) {
    maker_[p] = {};
    maker_[p].matrix = &matrix;
    maker_[p].panel = matrix.panels + panel * matrix.stride;
    maker_[p].codes = maker_[p].panel + matrix.codes_offset;
    make_[p] = make_chunk_of(matrix.bits);
  }

  const Call& call_;
  const PlanView& plan_;
  std::int64_t pair_;
  std::int64_t pair_end_;
  int slice_lines_ = 0;
  int slice_ = 0;
  int chunks_left_ = 0;
  int panel_chunks_ = 0;
  bool has_second_ = false;
  bool pair_done_ = false;
  Maker maker_[2];
  MakeChunk* make_[2] = {};
};

// 16 or 32 rows times both panels over `steps` steps, making `chunks` chunks of the next weights meanwhile.
template <int kTiles>
void product(const std::uint16_t* x, std::int64_t tile_elements, const std::uint8_t* panels, int steps, bool fresh,
             float* totals, Weights& next, int chunks) {
  constexpr int kTotalBytes = kPairFloats * 4;
  const auto* const second = x + tile_elements;
  memory_barrier();
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, totals, kTotalBytes);
    _tile_loadd(1, totals + kPanel, kTotalBytes);
    if constexpr (kTiles == 2) {
      _tile_loadd(2, totals + 16 * kPairFloats, kTotalBytes);
      _tile_loadd(3, totals + 16 * kPairFloats + kPanel, kTotalBytes);
    }
  }
  int due = 0;
  for (int step = 0; step < steps; ++step) {
    _tile_loadd(6, panels + step * kTileBytes, 64);
    _tile_loadd(4, x + step * (kTileBytes / 2), 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panels + (kSliceSteps + step) * kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, second + step * (kTileBytes / 2), 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    for (due += chunks; due >= steps; due -= steps) next.make_one();
  }
  _tile_stored(0, totals, kTotalBytes);
  _tile_stored(1, totals + kPanel, kTotalBytes);
  if constexpr (kTiles == 2) {
    _tile_stored(2, totals + 16 * kPairFloats, kTotalBytes);
    _tile_stored(3, totals + 16 * kPairFloats + kPanel, kTotalBytes);
  }
}

// Up to kMaxSums rows times a run of pairs.
void rows_times_pairs(const Call& call, std::int64_t pair_begin, std::int64_t pair_end, std::int64_t row,
                      std::int64_t rows, std::uint8_t (*buffers)[2 * kSliceSteps * kTileBytes], float* totals) {
  const PlanView& plan = call.parts[0].plan;
  const std::int64_t tile_elements = static_cast<std::int64_t>(plan.steps) * (kTileBytes / 2);
  const std::uint16_t* const x = call.staged[0].bf16 + row / kTileRows * tile_elements;
  const std::int64_t tile_pairs = (rows + 31) / 32;
  Weights weights(call, pair_begin, pair_end);
  int flip = 0;
  weights.open_slice(buffers[0]);
  while (weights.chunks_left() > 0) weights.make_one();
  for (std::int64_t pair = pair_begin; pair < pair_end; ++pair) {
    const PairRef ref = pair_at(call, pair);
    for (int slice = 0; slice < weights.slices(); ++slice, flip ^= 1) {
      const int first_step = weights.first_step(slice);
      const int steps = weights.end_step(slice) - first_step;
      weights.open_slice(buffers[flip ^ 1]);
      for (std::int64_t t = 0; t < tile_pairs; ++t) {
        const int chunks = static_cast<int>((weights.chunks_left() + tile_pairs - t - 1) / (tile_pairs - t));
        const std::uint16_t* const from = x + 2 * t * tile_elements + first_step * (kTileBytes / 2);
        float* const to = totals + 32 * t * kPairFloats;
        if (rows - 32 * t > 16) {
          product<2>(from, tile_elements, buffers[flip], steps, slice == 0, to, weights, chunks);
        } else {
          product<1>(from, tile_elements, buffers[flip], steps, slice == 0, to, weights, chunks);
        }
        if (slice + 1 == weights.slices()) {
          const std::int64_t left = rows - 32 * t;
          finish_pair(call, ref, row + 32 * t, static_cast<int>(left < 32 ? left : 32), to);
        }
      }
    }
  }
}

}  // namespace

void multiply_bf16_amx(const Call& call, const Rectangle& area) {
  alignas(64) std::uint8_t buffers[2][2 * kSliceSteps * kTileBytes];
  alignas(64) float totals[kMaxSums * kPairFloats];
  const TileConfig config;
  _tile_loadconfig(&config);
  for (std::int64_t row = area.row_begin; row < area.row_end; row += kMaxSums) {
    const std::int64_t rows = area.row_end - row < kMaxSums ? area.row_end - row : kMaxSums;
    rows_times_pairs(call, area.pair_begin, area.pair_end, row, rows, buffers, totals);
  }
  // Tiles in use slow down the saving of a thread's state, and other code of the thread configures its own.
  _tile_release();
}

}  // namespace nibble::packed
