// Attention over a bf16 cache with AMX tiles, for many rows of queries. The cache's layout is that of the tiles: 16 pairs of
// dimensions of a block of 16 keys are one tile of K, 16 pairs of tokens by 16 dimensions one of V, so that nothing is
// rearranged. q and the probabilities are rounded to bf16, all sums are float.
#include "ops/cpu/simd_avx512.h"

#include "ops/cpu/simd_math.h"

#include "ops/cpu/simd_attention.h"

#include "ops/cpu/attention_amx.h"

namespace nibble::cpu {
namespace {

// Keys at a time: the sums over values are loaded, rescaled and stored once for so many, and their scores (32 KiB) with the
// probabilities (16 KiB) still fit into an L1 cache of 48 KiB.
constexpr std::int64_t kKeys = 256;
constexpr int kTileRows = 16;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void store_bf16(std::uint16_t* p, Reg x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// What soften() does with probabilities.
struct RoundedProbabilities {
  static Reg exp(Reg x) { return exp2_coarse(x); }
  static void store_probabilities(float* row, std::int64_t key, Reg p) { store_bf16(reinterpret_cast<std::uint16_t*>(row) + key, p); }
};

// Buffers of one call: one row of queries a line.
struct alignas(64) Scratch {
  std::uint16_t q[kMaxQueryRows * kMaxHeadDim];
  float scores[kMaxQueryRows * kKeys];
  std::uint16_t probabilities[kMaxQueryRows * kKeys];
  std::uint16_t tail[kTileRows * 2 * kMaxHeadDim];  // the last values, filled up with zeros to 32 tokens
};

// Scores of 32 rows with `keys` keys from `key` on, in whole blocks of 16.
void score_tiles(const AttendArgs& a, std::int64_t key, std::int64_t keys, Scratch& s) {
  constexpr std::int64_t kBlock = 16;
  const std::int64_t block_bytes = a.head_dim * kBlock * 2;
  const std::int64_t q_bytes = a.head_dim * 2;
  const std::uint16_t* lower_q = s.q + kTileRows * a.head_dim;
  for (std::int64_t block = 0; block * kBlock < keys; block += 2) {
    const bool two = (block + 1) * kBlock < keys;
    const std::byte* k = a.k + (key / kBlock + block) * block_bytes;
    float* upper = s.scores + block * kBlock;
    float* lower = upper + kTileRows * kKeys;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t d = 0; d < a.head_dim; d += 32, k += 1024) {
      _tile_loadd(4, s.q + d, q_bytes);
      _tile_loadd(5, lower_q + d, q_bytes);
      _tile_loadd(6, k, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if (two) {
        _tile_loadd(7, k + block_bytes, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, upper, kKeys * 4);
    _tile_stored(1, lower, kKeys * 4);
    if (two) {
      _tile_stored(2, upper + kBlock, kKeys * 4);
      _tile_stored(3, lower + kBlock, kKeys * 4);
    }
  }
}

// acc = acc (0 at first) + probabilities * values, over the tokens [begin, end) from `key` on; begin a multiple of 32.
void add_values(const AttendArgs& a, std::int64_t key, std::int64_t begin, std::int64_t end, bool at_first, Scratch& s) {
  const std::int64_t v_bytes = a.head_dim * 4;  // a pair of tokens
  const std::int64_t whole = end / 32 * 32;
  if (whole < end) {
    // What lies beyond the last token has perhaps never been stored, and 0 * NaN is NaN.
    auto* to = reinterpret_cast<float*>(s.tail);
    const std::byte* from = a.v + (key + whole) / 2 * v_bytes;
    for (std::int64_t pair = 0; pair < kTileRows; ++pair) {
      const std::int64_t left = end - whole - 2 * pair;
      for (std::int64_t d = 0; d < a.head_dim; d += Vec::kLanes) {
        Reg words = left > 0 ? Vec::load(reinterpret_cast<const float*>(from + pair * v_bytes) + d) : Vec::zero();
        if (left == 1) words = Vec::first_of_pairs(words);
        Vec::store(to + pair * a.head_dim + d, words);
      }
    }
  }
  const std::int64_t acc_bytes = a.acc_stride * 4;
  const std::int64_t p_bytes = kKeys * 2;
  for (std::int64_t d = 0; d < a.head_dim; d += 32) {
    float* upper = a.acc + d;
    float* lower = upper + kTileRows * a.acc_stride;
    if (at_first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, upper, acc_bytes);
      _tile_loadd(1, lower, acc_bytes);
      _tile_loadd(2, upper + 16, acc_bytes);
      _tile_loadd(3, lower + 16, acc_bytes);
    }
    for (std::int64_t token = begin; token < end; token += 32) {
      const std::byte* v = token < whole ? a.v + (key + token) / 2 * v_bytes : reinterpret_cast<const std::byte*>(s.tail);
      _tile_loadd(4, s.probabilities + token, p_bytes);
      _tile_loadd(5, s.probabilities + kTileRows * kKeys + token, p_bytes);
      _tile_loadd(6, v + d * 4, v_bytes);
      _tile_loadd(7, v + d * 4 + 64, v_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, upper, acc_bytes);
    _tile_stored(1, lower, acc_bytes);
    _tile_stored(2, upper + 16, acc_bytes);
    _tile_stored(3, lower + 16, acc_bytes);
  }
}

void rescale(float* row, std::int64_t n, float factor) {
  const Reg by = Vec::set1(factor);
  for (std::int64_t d = 0; d < n; d += Vec::kLanes) Vec::store(row + d, Vec::mul(Vec::load(row + d), by));
}

}  // namespace

bool amx_takes(const AttendArgs& a) {
  // Up to half a tile of rows the tiles are mostly empty.
  return a.head_dim % 32 == 0 && a.rows > kTileRows / 2;
}

void attend_amx(const AttendArgs& a) {
  Scratch s;
  const TileConfig config;
  _tile_loadconfig(&config);
  const float* q = static_cast<const float*>(a.q);
  for (int r = 0; r < kMaxQueryRows; ++r) {
    for (std::int64_t d = 0; d < a.head_dim; d += Vec::kLanes) {
      store_bf16(s.q + r * a.head_dim + d, r < a.rows ? Vec::load(q + r * a.head_dim + d) : Vec::zero());
    }
    if (r < a.rows) {
      a.max[r] = kLowest;
      a.sum[r] = 0;
    } else {
      for (std::int64_t j = 0; j < kKeys; j += Vec::kLanes) store_bf16(s.probabilities + r * kKeys + j, Vec::zero());
    }
  }
  bool at_first = true;
  for (std::int64_t key = a.key_begin; key < a.key_end; key += kKeys) {
    const std::int64_t keys = a.key_end - key < kKeys ? a.key_end - key : kKeys;
    score_tiles(a, key, keys, s);
    // Row 0 is the first to see a key and the last row the last; between, in whole tiles, probabilities are 0.
    const std::int64_t begin = seen_by(a, 0, key, keys).first / 32 * 32;
    const std::int64_t end = seen_by(a, a.rows - 1, key, keys).last;
    for (int r = 0; r < a.rows; ++r) {
      const float factor = soften<RoundedProbabilities>(a, seen_by(a, r, key, keys), begin, (end + 31) / 32 * 32, s.scores + r * kKeys,
                                                        reinterpret_cast<float*>(s.probabilities + r * kKeys), a.max + r, a.sum + r);
      if (!at_first && factor != 1) rescale(a.acc + r * a.acc_stride, a.head_dim, factor);
    }
    add_values(a, key, begin, end, at_first, s);
    at_first = false;
  }
  _tile_release();
}

}  // namespace nibble::cpu
