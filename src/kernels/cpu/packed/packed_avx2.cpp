// AVX2: byte dot products by vpmaddubsw, and the staging of activations for the 256-bit units.
#include "kernels/cpu/packed/pairs256.h"

namespace nibble::packed {
namespace {

// vpmaddubsw adds two products of a code and a byte in 16 bits. Several such sums fit in 16 bits before they must go on
// to 32: 2 * 128 * code each.
constexpr int sums_that_fit(int bits) {
  const int largest = bits == 8 ? 15 : (1 << bits) - 1;
  return 32767 / (2 * 128 * largest);
}

struct MaddDot {
  template <int kBits, int>
  class Sum {
   public:
    __attribute__((always_inline)) void add(__m256i codes, __m256i x, int) {
      if constexpr (kBits == 8) {
        // Codes of 8 bits would not fit, and go in halves.
        const __m256i mask = _mm256_set1_epi8(15);
        low_ = _mm256_add_epi16(low_, _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), x));
        high_ = _mm256_add_epi16(high_, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi32(codes, 4), mask), x));
      } else {
        low_ = _mm256_add_epi16(low_, _mm256_maddubs_epi16(codes, x));
      }
    }
    /// Moves what has been added to 32 bits.
    __attribute__((always_inline)) void widen() {
      sum_ = _mm256_add_epi32(sum_, _mm256_madd_epi16(low_, _mm256_set1_epi16(1)));
      low_ = _mm256_setzero_si256();
      if constexpr (kBits == 8) {
        sum_ = _mm256_add_epi32(sum_, _mm256_madd_epi16(high_, _mm256_set1_epi16(16)));
        high_ = _mm256_setzero_si256();
      }
    }
    __attribute__((always_inline)) __m256i value() const { return sum_; }

   private:
    __m256i sum_ = _mm256_setzero_si256();
    __m256i low_ = _mm256_setzero_si256();
    __m256i high_ = _mm256_setzero_si256();
  };

  template <int kBits>
  static constexpr int kRegisters = kBits == 8 ? 3 : 2;

  // Chunks after which widen() must be called. A chunk adds a sum for each of its planes.
  template <int kBits>
  static constexpr int kChunks = sums_that_fit(kBits) / HalfChunk<kBits>::kPlanes;
};

// The order of packed_scalar.cpp's sum.
float sum_of_squares(const float* x, std::int64_t count) {
  alignas(32) float sums[16] = {};
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16) {
    const __m256 a = _mm256_loadu_ps(x + k);
    const __m256 b = _mm256_loadu_ps(x + k + 8);
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  _mm256_store_ps(sums, low);
  _mm256_store_ps(sums + 8, high);
  for (std::int64_t i = 0; k < count; ++k, ++i) sums[i] = __builtin_fmaf(x[k], x[k], sums[i]);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

__m128i slot_order(int planes) {
  if (planes == 4) return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if (planes == 2) return _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The inputs of a block, normalised, and zeros behind them.
void load_inputs(const StageCall& call, const float* x, float factor, const Block& block, int count, float* values) {
  for (int i = block.inputs; i < count; ++i) values[i] = 0;
  const std::int32_t* const order = call.plan.order;
  const float* const weight = call.norm_weight;
  for (int i = 0; i < block.inputs; ++i) {
    const std::int64_t k = order == nullptr ? block.first + i : order[block.first + i];
    values[i] = weight == nullptr ? x[k] : x[k] * factor * weight[k];
  }
}

// The low bytes of 16 integers.
__m128i low_bytes(__m256i a, __m256i b) {
  const __m256i mask = _mm256_set1_epi32(255);
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

}  // namespace

void stage_avx2(const StageCall& call, std::int64_t begin, std::int64_t end) {
  const PlanView& plan = call.plan;
  const std::int64_t per_tile = kTileRows / call.planes;
  const float limit = call.planes == 2 ? kMaxInt16 : kMaxInt8;
  const __m128i to_slots = slot_order(plan.planes_of_codes);
  const __m256i magnitude_bits = _mm256_set1_epi32(0x7fffffff);
  const __m256i round_high = _mm256_set1_epi32(128);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* const x = call.x + row * call.stride;
    const std::int64_t tile = row / per_tile;
    const std::int64_t tile_rows = staged_tile_rows(call.rows, call.planes);
    std::int8_t* const q = call.to.q + tile * tile_rows * plan.lines * kLine + row % per_tile * call.planes * kLine;
    float factor = 1;
    if (call.norm_weight != nullptr) {
      factor = 1.0f / __builtin_sqrtf(sum_of_squares(x, call.inputs) / static_cast<float>(call.inputs) + call.eps);
    }
    for (int b = 0; b < plan.block_count; ++b) {
      const Block& block = plan.blocks[b];
      const int count = (block.chunks * plan.chunk_slots + 15) / 16 * 16;
      alignas(32) float values[kLine];
      load_inputs(call, x, factor, block, count, values);
      __m256i largest = _mm256_setzero_si256();
      for (int i = 0; i < count; i += 8) {
        largest = _mm256_max_epu32(largest,
                                   _mm256_and_si256(_mm256_castps_si256(_mm256_load_ps(values + i)), magnitude_bits));
      }
      alignas(32) std::uint32_t lanes[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
      std::uint32_t bits = 0;
      for (const std::uint32_t lane : lanes) bits = lane > bits ? lane : bits;
      const bool finite = bits < 0x7f800000u;
      const float magnitude = bits_to_float(bits);
      const bool zero = !finite || magnitude < kTiny;
      const __m256 inverse = _mm256_set1_ps(zero ? 0.0f : limit / magnitude);
      const __m256i live = _mm256_set1_epi32(zero ? 0 : -1);
      std::int8_t* const out = q + block.slot / kLine * tile_rows * kLine + block.slot % kLine;
      __m256i sums = _mm256_setzero_si256();
      for (int i = 0; i < count; i += 16) {
        const __m256i v0 =
            _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(values + i), inverse)), live);
        const __m256i v1 =
            _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(values + i + 8), inverse)), live);
        sums = _mm256_add_epi32(sums, _mm256_add_epi32(v0, v1));
        const __m128i low = _mm_shuffle_epi8(low_bytes(v0, v1), to_slots);
        auto* const at = reinterpret_cast<__m128i*>(out + i);
        if (call.planes == 2) {
          const __m256i h0 = _mm256_srai_epi32(_mm256_add_epi32(v0, round_high), 8);
          const __m256i h1 = _mm256_srai_epi32(_mm256_add_epi32(v1, round_high), 8);
          _mm_storeu_si128(at, _mm_shuffle_epi8(low_bytes(h0, h1), to_slots));
          _mm_storeu_si128(at + kLine / 16, low);
        } else {
          _mm_storeu_si128(at, low);
        }
      }
      alignas(32) std::int32_t parts[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sums);
      std::int32_t sum = 0;
      for (const std::int32_t part : parts) sum += part;
      const std::int64_t meta = (tile * plan.block_count + b) * per_tile + row % per_tile;
      call.to.scale[meta] = !finite ? __builtin_nanf("") : zero ? 0.0f : magnitude / limit;
      call.to.minus_sum[meta] = static_cast<float>(-sum);
    }
  }
}

void multiply_avx2(const Call& call, const Rectangle& rectangle) { multiply_with<MaddDot>(call, rectangle); }

}  // namespace nibble::packed
