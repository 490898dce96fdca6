// Attention's inner loops over the registers of core/simd_avx2.h or core/simd_avx512.h, with core/simd_math.h
// included before. A template over how elements of the cache are multiplied (see Floats below); everything is in an
// unnamed namespace.
//
// Four rows of queries meet a tile of 64 keys at a time: their scores and probabilities (1 KiB) stay in L1, and each
// element of the cache that is loaded serves four multiplications. Rows are the queries of a prompt, or the heads of a
// group at decode. head_dim is a multiple of 8.
#pragma once

#include "ops/cpu/op_table.h"

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {
namespace {

// Words are what one multiplication takes of q or of the probabilities: a float, two floats, or two bf16.
struct Floats {
  static constexpr std::int64_t kElementsAWord = 1;  // of the cache
  static constexpr std::int64_t kWordBytes = 4;      // in the cache
  static constexpr std::int64_t kFloatsAWord = 1;    // of q
  static Reg load(const std::byte* p) { return Vec::load(reinterpret_cast<const float*>(p)); }
  static Reg multiply(const float* a, Reg b, Reg sum) { return Vec::fma(Vec::set1(*a), b, sum); }
  static void store_probabilities(float* row, std::int64_t key, Reg p) { Vec::store(row + key, p); }
  static void prepare(const float* q, std::int64_t n, Reg factor, float* out) {
    for_registers(n, [&](std::int64_t d, std::int64_t lanes) {
      store_some(out + d, lanes, Vec::mul(load_some(q + d, lanes), factor));
    });
  }
};

struct Halves : Floats {
  static constexpr std::int64_t kWordBytes = 2;
  static Reg load(const std::byte* p) { return Vec::from_half(reinterpret_cast<const std::uint16_t*>(p)); }
};

// The sum of one block of M rows by N registers: c = c * scale + a b. a: rows of `a_stride` floats; b: `words` rows of
// registers, b_step bytes apart, its registers b_next bytes apart. scale: one a row, null for c = a b.
// half_word: one more row of b follows of which only the first element of each pair counts.
template <typename P, int M, int N>
inline void multiply_block(const float* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_step,
                           std::int64_t b_next, std::int64_t words, bool half_word, const float* scale, float* c,
                           std::int64_t c_stride) {
  Reg sum[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      sum[m][n] =
          scale == nullptr ? Vec::zero() : Vec::mul(Vec::load(c + m * c_stride + n * Vec::kLanes), Vec::set1(scale[m]));
    }
  }
  for (std::int64_t w = 0; w < words; ++w) {
    Reg column[N];
    for (int n = 0; n < N; ++n) column[n] = P::load(b + w * b_step + n * b_next);
    for (int m = 0; m < M; ++m) {
      const float* word = a + m * a_stride + w * P::kFloatsAWord;
      for (int n = 0; n < N; ++n) sum[m][n] = P::multiply(word, column[n], sum[m][n]);
    }
  }
  if constexpr (P::kElementsAWord == 2) {
    if (half_word) {
      for (int m = 0; m < M; ++m) {
        const float* word = a + m * a_stride + words * P::kFloatsAWord;
        for (int n = 0; n < N; ++n)
          sum[m][n] = P::multiply(word, P::load_first(b + words * b_step + n * b_next), sum[m][n]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) Vec::store(c + m * c_stride + n * Vec::kLanes, sum[m][n]);
  }
}

// Registers side by side in multiply_block: with 4 rows 16 sums of 32 registers of AVX-512, 8 of 16 of AVX2.
constexpr int kSide = Vec::kLanes == 16 ? 4 : 2;

// The sum over any number of registers side by side.
template <typename P, int M>
inline void multiply_rows(const float* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_step,
                          std::int64_t b_next, std::int64_t words, bool half_word, const float* scale, float* c,
                          std::int64_t c_stride, std::int64_t registers) {
  std::int64_t n = 0;
  for (; n + kSide <= registers; n += kSide) {
    multiply_block<P, M, kSide>(a, a_stride, b + n * b_next, b_step, b_next, words, half_word, scale,
                                c + n * Vec::kLanes, c_stride);
  }
  if constexpr (kSide == 4) {
    if (n + 2 <= registers) {
      multiply_block<P, M, 2>(a, a_stride, b + n * b_next, b_step, b_next, words, half_word, scale, c + n * Vec::kLanes,
                              c_stride);
      n += 2;
    }
  }
  if (n < registers) {
    multiply_block<P, M, 1>(a, a_stride, b + n * b_next, b_step, b_next, words, half_word, scale, c + n * Vec::kLanes,
                            c_stride);
  }
}

// Scores of M rows with keys [first, last) of a tile, in whole blocks of 16 keys; scores is [M, kKeyTile].
template <typename P, int M>
inline void score(const AttendArgs& a, const float* q, std::int64_t q_stride, std::int64_t key, std::int64_t first,
                  std::int64_t last, float* scores) {
  constexpr std::int64_t kBlock = 16;
  const std::int64_t words = a.head_dim / P::kElementsAWord;
  const std::int64_t block_bytes = words * kBlock * P::kWordBytes;
  const std::int64_t begin = first / kBlock;
  const std::int64_t end = (last + kBlock - 1) / kBlock;
  const std::byte* k = a.k + (key / kBlock + begin) * block_bytes;
  if constexpr (Vec::kLanes == kBlock) {
    multiply_rows<P, M>(q, q_stride, k, kBlock * P::kWordBytes, block_bytes, words, false, nullptr,
                        scores + begin * kBlock, kKeyTile, end - begin);
  } else {
    for (std::int64_t i = begin; i < end; ++i, k += block_bytes) {
      multiply_block<P, M, 2>(q, q_stride, k, kBlock * P::kWordBytes, Vec::kLanes * P::kWordBytes, words, false,
                              nullptr, scores + i * kBlock, kKeyTile);
    }
  }
}

// The keys of a tile that a row sees, counted from the tile's first: [first, last), empty where first >= last.
struct Seen {
  std::int64_t first;
  std::int64_t last;
};
inline Seen seen_by(const AttendArgs& a, std::int64_t row, std::int64_t key, std::int64_t keys) {
  const std::int64_t position = a.position + row * a.position_step;
  Seen s{0, position + 1 - key};
  if (s.last > keys) s.last = keys;
  if (a.window > 0 && position - a.window + 1 > key) s.first = position - a.window + 1 - key;
  return s;
}

// Below all scores, but finite: the difference of two of them is 0 and not NaN.
constexpr float kLowest = -3e38f;

// One row's scores of keys [begin, end), whole registers, into probabilities, 0 for those that it does not see; its max
// and sum brought up to date; returns the factor of what was summed before. edge: whether any is unseen. The loops are
// as long for all rows of a block, which spares the processor wrong guesses.
template <typename P>
inline float soften(const AttendArgs& a, const Seen& seen, std::int64_t begin, std::int64_t end, bool edge,
                    float* scores, float* probabilities, float* max, float* sum) {
  constexpr std::int64_t kLanes = Vec::kLanes;
  if (a.cap > 0) {
    const Reg cap = Vec::set1(a.cap);
    for (std::int64_t j = begin; j < end; j += kLanes)
      Vec::store(scores + j, Vec::mul(cap, tanh(Vec::load(scores + j))));
  }
  if (edge) {
    for (std::int64_t j = begin; j < end; j += kLanes) {
      Vec::store(scores + j, Vec::keep_range(Vec::load(scores + j), j, seen.first, seen.last));
    }
  }
  Reg largest = Vec::load(scores + begin);
  for (std::int64_t j = begin + kLanes; j < end; j += kLanes) largest = Vec::max(largest, Vec::load(scores + j));
  const float before = *max;
  const float here = Vec::largest(largest);
  const float top = here > before ? here : before;
  const Reg base = Vec::set1(top);
  Reg total = Vec::zero();
  for (std::int64_t j = begin; j < end; j += kLanes) {
    const Reg p = exp2(Vec::sub(Vec::load(scores + j), base));
    total = Vec::add(total, p);
    P::store_probabilities(probabilities, j, p);
  }
  float factor[kLanes];
  Vec::store(factor, exp2(Vec::set1(before - top)));
  *max = top;
  *sum = *sum * factor[0] + Vec::sum(total);
  return factor[0];
}

// M rows from `row` on against one tile of keys.
template <typename P, int M>
inline void attend_rows(const AttendArgs& a, std::int64_t row, std::int64_t key, std::int64_t keys) {
  constexpr std::int64_t kLanes = Vec::kLanes;
  alignas(64) float scores[M * kKeyTile];
  alignas(64) float probabilities[M * kKeyTile];
  alignas(64) float factors[M];
  Seen seen[M];
  Seen any{kKeyTile, 0};
  for (int m = 0; m < M; ++m) {
    seen[m] = seen_by(a, row + m, key, keys);
    if (seen[m].first >= seen[m].last) continue;
    any.first = seen[m].first < any.first ? seen[m].first : any.first;
    any.last = seen[m].last > any.last ? seen[m].last : any.last;
  }
  if (any.first >= any.last) return;
  const std::int64_t q_stride = a.head_dim / P::kElementsAWord * P::kFloatsAWord;
  const float* q = static_cast<const float*>(a.q) + row * q_stride;
  score<P, M>(a, q, q_stride, key, any.first, any.last, scores);
  const std::int64_t begin = any.first / kLanes * kLanes;
  const std::int64_t end = (any.last + kLanes - 1) / kLanes * kLanes;
  constexpr std::int64_t kRow = kKeyTile / P::kElementsAWord * P::kFloatsAWord;
  bool edge = false;
  for (int m = 0; m < M; ++m) edge = edge || seen[m].first > begin || seen[m].last < end;
  for (int m = 0; m < M; ++m) {
    factors[m] = soften<P>(a, seen[m], begin, end, edge, scores + m * kKeyTile, probabilities + m * kRow,
                           a.max + row + m, a.sum + row + m);
  }
  // From a whole register's first key on, of which the unseen have probability 0, to the last seen and not beyond: what
  // lies there has perhaps never been stored, and 0 * NaN is NaN.
  std::int64_t first = any.first;
  if constexpr (P::kElementsAWord == 2) first -= first % 2;
  const std::int64_t words = (any.last - first) / P::kElementsAWord;
  const bool half_word = P::kElementsAWord == 2 && any.last % 2 == 1;
  const std::int64_t step = a.head_dim * P::kWordBytes;
  multiply_rows<P, M>(probabilities + first / P::kElementsAWord * P::kFloatsAWord, kRow,
                      a.v + (key + first) / P::kElementsAWord * step, step, kLanes * P::kWordBytes, words, half_word,
                      factors, a.acc + row * a.acc_stride, a.acc_stride, (a.head_dim + kLanes - 1) / kLanes);
}

inline void clear(const AttendArgs& a) {
  for (int r = 0; r < a.rows; ++r) {
    for (std::int64_t d = 0; d < a.acc_stride; d += Vec::kLanes) Vec::store(a.acc + r * a.acc_stride + d, Vec::zero());
    a.max[r] = kLowest;
    a.sum[r] = 0;
  }
}

template <typename P>
void attend(const AttendArgs& a) {
  clear(a);
  for (std::int64_t key = a.key_begin; key < a.key_end; key += kKeyTile) {
    const std::int64_t keys = a.key_end - key < kKeyTile ? a.key_end - key : kKeyTile;
    int row = 0;
    for (; row + 4 <= a.rows; row += 4) attend_rows<P, 4>(a, row, key, keys);
    switch (a.rows - row) {
      case 3:
        attend_rows<P, 3>(a, row, key, keys);
        break;
      case 2:
        attend_rows<P, 2>(a, row, key, keys);
        break;
      case 1:
        attend_rows<P, 1>(a, row, key, keys);
        break;
      default:
        break;
    }
  }
}

template <typename P>
void prepare_q(const float* q, std::int64_t stride, int rows, std::int64_t head_dim, float factor, void* out) {
  for (int r = 0; r < rows; ++r) {
    const std::int64_t row_floats = head_dim / P::kElementsAWord * P::kFloatsAWord;
    P::prepare(q + r * stride, head_dim, Vec::set1(factor), static_cast<float*>(out) + r * row_floats);
  }
}

}  // namespace
}  // namespace nibble::cpu
