// GPTQ's bit packing, for widths of 2, 3, 4 and 8 bits. One rule covers all: codes form a little-endian stream of bits,
// lowest bit first; code i takes bits [b*i, b*i + b), and stream bit p is bit p mod 32 of word p div 32. So 32 codes
// take b words, and a 3-bit code may lie across two.
#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// The words that `count` codes of `bits` bits take.
constexpr std::int64_t packed_words(std::int64_t count, int bits) { return (count * bits + 31) / 32; }

/// Code `index` of a stream whose words stand `stride` words apart (1: next to each other; the number of columns: down
/// a column of a row-major matrix). `words` points at the stream's first word.
inline std::uint32_t unpack_code(const std::uint32_t* words, std::int64_t stride, std::int64_t index, int bits) {
  const std::int64_t position = index * bits;
  const std::int64_t word = position / 32;
  const int shift = static_cast<int>(position % 32);
  std::uint64_t window = words[word * stride];
  if (shift + bits > 32) window |= static_cast<std::uint64_t>(words[(word + 1) * stride]) << 32;
  return static_cast<std::uint32_t>((window >> shift) & ((std::uint64_t{1} << bits) - 1));
}

/// Unpacks the first codes.size() codes of a stream. Throws Error where `words` is too short, or for another width.
void unpack_codes(std::span<const std::uint32_t> words, int bits, std::span<std::uint8_t> codes);

/// Packs codes into a stream of packed_words(codes.size(), bits) words; bits above `bits` of a code are dropped.
void pack_codes(std::span<const std::uint8_t> codes, int bits, std::span<std::uint32_t> words);

/// Packs each column of a row-major matrix [rows, columns] into a column of words [packed_words(rows, bits), columns],
/// as `qweight` has its input features. Throws Error where a span is too short, or for another width.
void pack_columns(std::span<const std::uint8_t> codes, std::int64_t rows, std::int64_t columns, int bits,
                  std::span<std::uint32_t> words);

/// Unpacks the block of rows [row0, row1) and columns [column0, column1) of a matrix that pack_columns made, whose rows
/// of words are `stride` words apart, into `codes`, row-major [row1 - row0, column1 - column0].
void unpack_columns(const std::uint32_t* words, std::int64_t stride, int bits, std::int64_t row0, std::int64_t row1,
                    std::int64_t column0, std::int64_t column1, std::uint8_t* codes);

}  // namespace nibble
