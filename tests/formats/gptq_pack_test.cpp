#include "formats/gptq_pack.h"

#include "core/thread_pool.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace nibble {
namespace {

std::vector<std::uint8_t> random_codes(std::size_t count, int bits, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> codes(count);
  for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random() & ((1u << bits) - 1u));
  return codes;
}

class GptqPackTest : public testing::TestWithParam<int> {};

TEST_P(GptqPackTest, RoundTripsAStreamOfAnyLength) {
  const int bits = GetParam();
  for (const std::size_t count : {1, 7, 31, 32, 33, 64, 100}) {
    const auto codes = random_codes(count, bits, static_cast<unsigned>(count));
    std::vector<std::uint32_t> words(static_cast<std::size_t>(packed_words(static_cast<std::int64_t>(count), bits)));
    pack_codes(codes, bits, words);
    std::vector<std::uint8_t> back(count);
    unpack_codes(words, bits, back);
    EXPECT_EQ(back, codes) << count;
  }
}

TEST_P(GptqPackTest, RoundTripsColumnsAndBlocksOfThem) {
  const int bits = GetParam();
  constexpr std::int64_t kRows = 70;
  constexpr std::int64_t kColumns = 5;
  const auto codes = random_codes(kRows * kColumns, bits, 3);
  std::vector<std::uint32_t> words(static_cast<std::size_t>(packed_words(kRows, bits) * kColumns));
  pack_columns(codes, kRows, kColumns, bits, words);
  std::vector<std::uint8_t> block(3 * 2);
  unpack_columns(words.data(), kColumns, bits, 9, 12, 2, 4, block.data());
  for (std::int64_t k = 0; k < kRows; ++k) {
    for (std::int64_t n = 0; n < kColumns; ++n) {
      const std::uint8_t code = codes[k * kColumns + n];
      EXPECT_EQ(unpack_code(words.data() + n, kColumns, k, bits), code);
      if (k >= 9 && k < 12 && n >= 2 && n < 4) {
        EXPECT_EQ(block[(k - 9) * 2 + n - 2], code);
      }
    }
  }
}

// Enough codes that all threads take part: each column must be the stream that a column by itself is.
TEST_P(GptqPackTest, PacksTheSameWithAnyNumberOfThreads) {
  const int bits = GetParam();
  constexpr std::int64_t kRows = 1013;
  constexpr std::int64_t kColumns = 130;
  const auto codes = random_codes(kRows * kColumns, bits, 5);
  const std::int64_t rows_of_words = packed_words(kRows, bits);
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  for (const int threads : {1, 3}) {
    pool.set_threads(threads);
    std::vector<std::uint32_t> words(static_cast<std::size_t>(rows_of_words * kColumns), 0xDEADBEEFu);
    pack_columns(codes, kRows, kColumns, bits, words);
    for (std::int64_t n = 0; n < kColumns; ++n) {
      std::vector<std::uint8_t> column(kRows);
      for (std::int64_t k = 0; k < kRows; ++k) column[k] = codes[k * kColumns + n];
      std::vector<std::uint32_t> want(static_cast<std::size_t>(rows_of_words));
      pack_codes(column, bits, want);
      for (std::int64_t w = 0; w < rows_of_words; ++w)
        ASSERT_EQ(words[w * kColumns + n], want[w]) << threads << " threads, column " << n << ", word " << w;
    }
  }
  pool.set_threads(before);
}

INSTANTIATE_TEST_SUITE_P(Widths, GptqPackTest, testing::Values(2, 3, 4, 8));

// The words of the symmetric zero points, as AutoGPTQ stores them: known from its files, not from this code.
TEST(GptqPackWordsTest, MatchesTheFormatsConstants) {
  const auto words_of = [](int bits, std::uint8_t value) {
    std::vector<std::uint32_t> words(static_cast<std::size_t>(bits));
    pack_codes(std::vector<std::uint8_t>(32, value), bits, words);
    return words;
  };
  EXPECT_EQ(words_of(2, 1), (std::vector<std::uint32_t>{0x55555555, 0x55555555}));
  EXPECT_EQ(words_of(3, 3), (std::vector<std::uint32_t>{0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D}));
  EXPECT_EQ(words_of(3, 4), (std::vector<std::uint32_t>{0x24924924, 0x49249249, 0x92492492}));
  EXPECT_EQ(words_of(4, 7), std::vector<std::uint32_t>(4, 0x77777777));
  EXPECT_EQ(words_of(8, 127), std::vector<std::uint32_t>(8, 0x7F7F7F7F));
}

TEST(GptqPackWordsTest, PutsTheFirstFourBitCodeLowest) {
  std::vector<std::uint32_t> words(1);
  pack_codes(std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6, 7, 8}, 4, words);
  EXPECT_EQ(words[0], 0x87654321u);
}

// Code 10 of a 3-bit run has its low 2 bits in word 0, code 21 its low bit in word 1.
TEST(GptqPackWordsTest, SplitsThreeBitCodesAcrossWords) {
  std::vector<std::uint8_t> codes(32, 0);
  std::vector<std::uint32_t> words(3);
  codes[10] = 7;
  pack_codes(codes, 3, words);
  EXPECT_EQ(words, (std::vector<std::uint32_t>{0xC0000000, 0x00000001, 0}));
  codes[10] = 0;
  codes[21] = 7;
  pack_codes(codes, 3, words);
  EXPECT_EQ(words, (std::vector<std::uint32_t>{0, 0x80000000, 0x00000003}));
}

TEST(GptqPackWordsTest, RefusesSpansThatAreTooShortAndOtherWidths) {
  std::vector<std::uint8_t> codes(33);
  std::vector<std::uint32_t> words(3);
  test::expect_error("do not fit in 3 words", [&] { unpack_codes(words, 3, codes); });
  test::expect_error("too few", [&] { pack_codes(codes, 3, words); });
  for (const int bits : {0, 5, 33}) {
    test::expect_error("GPTQ has those of 2, 3, 4 and 8", [&] { pack_codes(codes, bits, words); });
    test::expect_error("GPTQ has those of 2, 3, 4 and 8", [&] { unpack_codes(words, bits, codes); });
  }
}

}  // namespace
}  // namespace nibble
