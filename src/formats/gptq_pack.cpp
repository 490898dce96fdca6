#include "formats/gptq_pack.h"

#include "core/error.h"
#include "core/thread_pool.h"

#include <algorithm>

namespace nibble {
namespace {

void check_width(int bits) {
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    fail("codes of {} bits cannot be packed: GPTQ has those of 2, 3, 4 and 8", bits);
}

/// Puts the codes of row k of a matrix into its words, whose bits for them are still 0.
void add_row(const std::uint8_t* row, std::int64_t k, std::int64_t columns, int bits, std::uint32_t* words) {
  const std::uint32_t mask = (1u << bits) - 1u;
  const std::int64_t position = k * bits;
  const int shift = static_cast<int>(position % 32);
  const bool crosses = shift + bits > 32;
  std::uint32_t* const low = words + position / 32 * columns;
  for (std::int64_t n = 0; n < columns; ++n) {
    const std::uint32_t code = row[n] & mask;
    low[n] |= code << shift;
    if (crosses) low[n + columns] |= code >> (32 - shift);
  }
}

}  // namespace

void unpack_codes(std::span<const std::uint32_t> words, int bits, std::span<std::uint8_t> codes) {
  check_width(bits);
  const auto count = static_cast<std::int64_t>(codes.size());
  if (static_cast<std::int64_t>(words.size()) < packed_words(count, bits)) {
    fail("{} codes of {} bits do not fit in {} words", count, bits, words.size());
  }
  for (std::int64_t i = 0; i < count; ++i) codes[i] = static_cast<std::uint8_t>(unpack_code(words.data(), 1, i, bits));
}

void pack_codes(std::span<const std::uint8_t> codes, int bits, std::span<std::uint32_t> words) {
  pack_columns(codes, static_cast<std::int64_t>(codes.size()), 1, bits, words);
}

void pack_columns(std::span<const std::uint8_t> codes, std::int64_t rows, std::int64_t columns, int bits,
                  std::span<std::uint32_t> words) {
  check_width(bits);
  const std::int64_t needed = packed_words(rows, bits) * columns;
  if (static_cast<std::int64_t>(codes.size()) < rows * columns || static_cast<std::int64_t>(words.size()) < needed) {
    fail("{} codes and {} words are too few for a matrix of {} x {} codes of {} bits", codes.size(), words.size(), rows,
         columns, bits);
  }
  // A thread takes whole words: 32 rows of codes end where a word does, whatever the width. A few words are not worth
  // waking the others.
  constexpr std::int64_t kRun = 32;
  constexpr std::int64_t kWorthThreads = 1 << 16;
  const auto pack = [&](std::int64_t begin, std::int64_t end) {
    std::fill_n(words.data() + packed_words(begin, bits) * columns,
                (packed_words(end, bits) - packed_words(begin, bits)) * columns, 0u);
    for (std::int64_t k = begin; k < end; ++k) add_row(codes.data() + k * columns, k, columns, bits, words.data());
  };
  if (rows * columns < kWorthThreads) return pack(0, rows);
  ThreadPool::instance().run([&](int thread, int threads) {
    const auto [begin, end] = split_range(rows, kRun, thread, threads);
    pack(begin, end);
  });
}

void unpack_columns(const std::uint32_t* words, std::int64_t stride, int bits, std::int64_t row0, std::int64_t row1,
                    std::int64_t column0, std::int64_t column1, std::uint8_t* codes) {
  const std::uint32_t mask = (1u << bits) - 1u;
  for (std::int64_t k = row0; k < row1; ++k) {
    const std::int64_t position = k * bits;
    const int shift = static_cast<int>(position % 32);
    const bool crosses = shift + bits > 32;
    const std::uint32_t* const low = words + position / 32 * stride;
    for (std::int64_t n = column0; n < column1; ++n) {
      std::uint32_t code = low[n] >> shift;
      if (crosses) code |= low[n + stride] << (32 - shift);
      *codes++ = static_cast<std::uint8_t>(code & mask);
    }
  }
}

}  // namespace nibble
