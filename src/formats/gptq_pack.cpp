#include "formats/gptq_pack.h"

#include "core/error.h"

#include <algorithm>

namespace nibble {

void unpack_codes(std::span<const std::uint32_t> words, int bits, std::span<std::uint8_t> codes) {
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
  const std::int64_t needed = packed_words(rows, bits) * columns;
  if (static_cast<std::int64_t>(codes.size()) < rows * columns || static_cast<std::int64_t>(words.size()) < needed) {
    fail("{} codes and {} words are too few for a matrix of {} x {} codes of {} bits", codes.size(), words.size(), rows,
         columns, bits);
  }
  std::fill_n(words.begin(), needed, 0u);
  const std::uint32_t mask = (1u << bits) - 1u;
  for (std::int64_t k = 0; k < rows; ++k) {
    const std::int64_t position = k * bits;
    const int shift = static_cast<int>(position % 32);
    const bool crosses = shift + bits > 32;
    std::uint32_t* const low = words.data() + position / 32 * columns;
    const std::uint8_t* const row = codes.data() + k * columns;
    for (std::int64_t n = 0; n < columns; ++n) {
      const std::uint32_t code = row[n] & mask;
      low[n] |= code << shift;
      if (crosses) low[n + columns] |= code >> (32 - shift);
    }
  }
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
