// Attention over a bf16 cache with AMX tiles, for many rows of queries. The cache's layout is that of the tiles: 16
// pairs of dimensions of a block of 16 keys are one tile of K, 16 pairs of tokens by 16 dimensions one of V, so that
// nothing is rearranged. q and the probabilities are rounded to bf16, all sums are float.
#include "core/simd_avx512.h"

#include "core/simd_math.h"

#include "ops/cpu/simd_attention.h"

#include "ops/cpu/attention_amx.h"

namespace nibble::cpu {
namespace {

// Keys at a time: the sums over values are loaded, rescaled and stored once for so many, and their scores (32 KiB) with
// the probabilities (16 KiB) still fit into an L1 cache of 48 KiB.
constexpr std::int64_t kKeys = 256;
constexpr int kTileRows = 16;
// Elements from row to row: a line more than the keys, as rows a power of two apart would share a few sets of the
// cache.
constexpr std::int64_t kScoreStride = kKeys + 16;
constexpr std::int64_t kProbabilityStride = kKeys + 32;

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

// Buffers of one call: one row of queries a line.
struct alignas(64) Scratch {
  std::uint16_t q[kMaxQueryRows * kMaxHeadDim];
  float scores[kMaxQueryRows * kScoreStride];
  std::uint16_t probabilities[kMaxQueryRows * kProbabilityStride];
  std::uint16_t tail[kTileRows * 2 * kMaxHeadDim];  // the last values, filled up with zeros to 32 tokens
  // One a row: the largest score of these keys, the factor of what was summed before, the sum of these probabilities.
  float largest[kMaxQueryRows];
  float factors[kMaxQueryRows];
  float sums[kMaxQueryRows];
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
    float* lower = upper + kTileRows * kScoreStride;
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
    _tile_stored(0, upper, kScoreStride * 4);
    _tile_stored(1, lower, kScoreStride * 4);
    if (two) {
      _tile_stored(2, upper + kBlock, kScoreStride * 4);
      _tile_stored(3, lower + kBlock, kScoreStride * 4);
    }
  }
}

// Calls body(key, chain) for each register of keys in [from, to): four chains, of which an addition to one need not
// wait for those to the others.
template <typename Body>
inline void for_chains(std::int64_t from, std::int64_t to, const Body& body) {
  std::int64_t j = from;
  for (; j + 4 * Vec::kLanes <= to; j += 4 * Vec::kLanes) {
    body(j, 0);
    body(j + Vec::kLanes, 1);
    body(j + 2 * Vec::kLanes, 2);
    body(j + 3 * Vec::kLanes, 3);
  }
  for (; j < to; j += Vec::kLanes) body(j, 0);
}

// Scores of keys [begin, end) into probabilities, 0 for those that a row does not see. In steps over all rows, so that
// one row's chain of dependent operations does not hold up the next row's, and with loops as long for all rows, which
// spares the processor wrong guesses.
void soften_rows(const AttendArgs& a, std::int64_t key, std::int64_t keys, std::int64_t begin, std::int64_t end,
                 Scratch& s) {
  constexpr std::int64_t kLanes = Vec::kLanes;
  // The first row sees the first key, the last row the last.
  const bool edge = seen_by(a, a.rows - 1, key, keys).first > begin || seen_by(a, 0, key, keys).last < end;
  for (int r = 0; r < a.rows; ++r) {
    float* scores = s.scores + r * kScoreStride;
    if (a.cap > 0) {
      const Reg cap = Vec::set1(a.cap);
      for (std::int64_t j = begin; j < end; j += kLanes)
        Vec::store(scores + j, Vec::mul(cap, tanh(Vec::load(scores + j))));
    }
    Reg most[4] = {Vec::set1(kLowest), Vec::set1(kLowest), Vec::set1(kLowest), Vec::set1(kLowest)};
    if (edge) {
      const Seen seen = seen_by(a, r, key, keys);
      for_chains(begin, end, [&](std::int64_t j, int chain) {
        const Reg kept = Vec::keep_range(Vec::load(scores + j), j, seen.first, seen.last);
        Vec::store(scores + j, kept);
        most[chain] = Vec::max(most[chain], kept);
      });
    } else {
      for_chains(begin, end,
                 [&](std::int64_t j, int chain) { most[chain] = Vec::max(most[chain], Vec::load(scores + j)); });
    }
    s.largest[r] = Vec::largest(Vec::max(Vec::max(most[0], most[1]), Vec::max(most[2], most[3])));
  }
  for (int r = 0; r < kMaxQueryRows; r += kLanes) {
    const Reg before = Vec::load(a.max + r);
    const Reg top = Vec::max(before, Vec::load(s.largest + r));
    Vec::store(a.max + r, top);
    Vec::store(s.factors + r, exp2(Vec::sub(before, top)));
  }
  for (int r = 0; r < a.rows; ++r) {
    const float* scores = s.scores + r * kScoreStride;
    std::uint16_t* probabilities = s.probabilities + r * kProbabilityStride;
    const Reg base = Vec::set1(a.max[r]);
    Reg total[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    for_chains(begin, end, [&](std::int64_t j, int chain) {
      const Reg p = exp2_coarse(Vec::sub(Vec::load(scores + j), base));
      total[chain] = Vec::add(total[chain], p);
      store_bf16(probabilities + j, p);
    });
    s.sums[r] = Vec::sum(Vec::add(Vec::add(total[0], total[1]), Vec::add(total[2], total[3])));
  }
  for (int r = 0; r < kMaxQueryRows; r += kLanes) {
    Vec::store(a.sum + r, Vec::fma(Vec::load(a.sum + r), Vec::load(s.factors + r), Vec::load(s.sums + r)));
  }
}

// acc = acc (0 at first) + probabilities * values, over the tokens [begin, end) from `key` on; begin a multiple of 32.
void add_values(const AttendArgs& a, std::int64_t key, std::int64_t begin, std::int64_t end, bool at_first,
                Scratch& s) {
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
  const std::int64_t p_bytes = kProbabilityStride * 2;
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
      const std::byte* v =
          token < whole ? a.v + (key + token) / 2 * v_bytes : reinterpret_cast<const std::byte*>(s.tail);
      _tile_loadd(4, s.probabilities + token, p_bytes);
      _tile_loadd(5, s.probabilities + kTileRows * kProbabilityStride + token, p_bytes);
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
    a.max[r] = kLowest;
    a.sum[r] = 0;
    if (r >= a.rows) {
      s.largest[r] = kLowest;
      s.sums[r] = 0;
      for (std::int64_t j = 0; j < kKeys; j += Vec::kLanes)
        store_bf16(s.probabilities + r * kProbabilityStride + j, Vec::zero());
    }
  }
  bool at_first = true;
  for (std::int64_t key = a.key_begin; key < a.key_end; key += kKeys) {
    const std::int64_t keys = a.key_end - key < kKeys ? a.key_end - key : kKeys;
    score_tiles(a, key, keys, s);
    // Row 0 is the first to see a key and the last row the last; between, in whole tiles, probabilities are 0.
    const std::int64_t begin = seen_by(a, 0, key, keys).first / 32 * 32;
    const std::int64_t end = seen_by(a, a.rows - 1, key, keys).last;
    soften_rows(a, key, keys, begin, (end + 31) / 32 * 32, s);
    for (int r = 0; r < a.rows && !at_first; ++r) {
      if (s.factors[r] != 1) rescale(a.acc + r * a.acc_stride, a.head_dim, s.factors[r]);
    }
    add_values(a, key, begin, end, at_first, s);
    at_first = false;
  }
  _tile_release();
}

}  // namespace nibble::cpu
