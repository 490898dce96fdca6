// AVX-512 without VNNI, and the staging of activations for all 512-bit units.
#include "kernels/cpu/packed/pairs512.h"
#include "kernels/cpu/packed/stage512.h"

namespace nibble::packed {
namespace {

struct MaddDot {
  // Adding to a sum takes one cycle: more chains bring nothing.
  template <int kByteRows>
  static constexpr int kChains = kByteRows <= 4 ? 2 : 1;

  // vpmaddubsw adds pairs of products in 16 bits: at most 2 * 15 * 128. Codes of 8 bits would not fit and go in halves.
  template <int kBits>
  static __attribute__((always_inline)) void add(__m512i& sum, __m512i codes, const std::int8_t* four) {
    std::int32_t bytes;
    __builtin_memcpy(&bytes, four, 4);
    const __m512i x = _mm512_set1_epi32(bytes);
    const __m512i ones = _mm512_set1_epi16(1);
    if constexpr (kBits == 8) {
      const __m512i mask = _mm512_set1_epi8(15);
      const __m512i low = _mm512_maddubs_epi16(_mm512_and_si512(codes, mask), x);
      const __m512i high = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi32(codes, 4), mask), x);
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(low, ones));
    } else {
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), ones));
    }
  }
};

__m128i slot_order(int planes) {
  if (planes == 4) return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if (planes == 2) return _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

}  // namespace

void stage_avx512(const StageCall& call, std::int64_t begin, std::int64_t end) {
  const PlanView& plan = call.plan;
  const std::int64_t per_tile = kTileRows / call.planes;
  const float limit = call.planes == 2 ? kMaxInt16 : kMaxInt8;
  const __m128i to_slots = slot_order(plan.planes_of_codes);
  const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* const x = call.x + row * call.stride;
    const std::int64_t tile = row / per_tile;
    const std::int64_t tile_rows = staged_tile_rows(call.rows, call.planes);
    std::int8_t* const q = call.to.q + tile * tile_rows * plan.lines * kLine + row % per_tile * call.planes * kLine;
    const OrderedRow ordered = ordered_row(call, x);
    for (int b = 0; b < plan.block_count; ++b) {
      const Block& block = plan.blocks[b];
      const int vectors = (block.chunks * plan.chunk_slots + 15) / 16;
      __m512 values[kLine / 16];
      __m512i largest = _mm512_setzero_si512();
      for (int v = 0; v < vectors; ++v) {
        values[v] = load_inputs(ordered, block, 16 * v);
        largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(values[v]), magnitude_bits));
      }
      const std::uint32_t bits = _mm512_reduce_max_epu32(largest);
      const bool finite = bits < 0x7f800000u;
      const float magnitude = bits_to_float(bits);
      const bool zero = !finite || magnitude < kTiny;
      const __m512 inverse = _mm512_set1_ps(zero ? 0.0f : limit / magnitude);
      const __mmask16 live = zero ? 0 : 0xffff;
      std::int8_t* const out = q + block.slot / kLine * tile_rows * kLine + block.slot % kLine;
      __m512i sums = _mm512_setzero_si512();
      for (int v = 0; v < vectors; ++v) {
        const __m512i value = _mm512_maskz_cvtps_epi32(live, _mm512_mul_ps(values[v], inverse));
        sums = _mm512_add_epi32(sums, value);
        const __m128i low = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(value), to_slots);
        auto* const at = reinterpret_cast<__m128i*>(out + 16 * v);
        if (call.planes == 2) {
          const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);
          _mm_storeu_si128(at, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(high), to_slots));
          _mm_storeu_si128(at + kLine / 16, low);
        } else {
          _mm_storeu_si128(at, low);
        }
      }
      const std::int64_t meta = (tile * plan.block_count + b) * per_tile + row % per_tile;
      call.to.scale[meta] = !finite ? __builtin_nanf("") : zero ? 0.0f : magnitude / limit;
      call.to.minus_sum[meta] = static_cast<float>(-_mm512_reduce_add_epi32(sums));
    }
  }
}

void multiply_avx512(const Call& call, const Rectangle& rectangle) { multiply_with<MaddDot>(call, rectangle); }

}  // namespace nibble::packed
