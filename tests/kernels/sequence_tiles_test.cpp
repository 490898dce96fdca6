// Tiles of whole sequences: every row in one, none beyond what a tile holds, never more tiles than most_tiles() says.
#include "kernels/sequence_tiles.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace nibble::test {
namespace {

std::vector<std::int32_t> begin_of(const std::vector<std::int32_t>& lengths) {
  std::vector<std::int32_t> out = {0};
  for (const std::int32_t length : lengths) out.push_back(out.back() + length);
  return out;
}

std::vector<TileBegin> tiles_of(const std::vector<std::int32_t>& lengths) {
  const std::vector<std::int32_t> row_begin = begin_of(lengths);
  const std::int64_t most = most_tiles(row_begin.back(), static_cast<std::int64_t>(lengths.size()));
  std::vector<TileBegin> out(static_cast<std::size_t>(most) + 1, TileBegin{-1, -1});
  const std::int64_t filled = pack_tiles(row_begin, out);
  for (std::size_t i = 0; i + 1 < out.size(); ++i)
    EXPECT_EQ(out[i + 1].row > out[i].row, static_cast<std::int64_t>(i) < filled) << "tile " << i << " of " << filled;
  return out;
}

void expect_tiles(const std::vector<std::int32_t>& lengths) {
  const std::vector<std::int32_t> row_begin = begin_of(lengths);
  const std::vector<TileBegin> tiles = tiles_of(lengths);
  EXPECT_EQ(tiles.front().sequence, 0);
  EXPECT_EQ(tiles.back().sequence, static_cast<std::int32_t>(lengths.size()));
  for (std::size_t t = 0; t < tiles.size(); ++t) {
    ASSERT_GE(tiles[t].sequence, 0);
    EXPECT_EQ(tiles[t].row, row_begin[static_cast<std::size_t>(tiles[t].sequence)]);
    if (t == 0) continue;
    EXPECT_GE(tiles[t].sequence, tiles[t - 1].sequence);
    EXPECT_LE(tiles[t].row - tiles[t - 1].row, SequenceTiles::kRows);
  }
}

TEST(SequenceTiles, HoldWholeSequences) {
  expect_tiles({1});
  expect_tiles({64});
  expect_tiles({64, 64, 64});
  expect_tiles({1, 64, 1, 64, 1, 64, 1});
  expect_tiles({32, 33, 32, 33, 32, 33, 32, 33});
  expect_tiles(std::vector<std::int32_t>(300, 1));
  expect_tiles({5, 0, 0, 64, 0});
  std::mt19937 random(3);
  for (int i = 0; i < 500; ++i) {
    std::vector<std::int32_t> lengths(1 + random() % 90);
    const unsigned most = 1 + random() % 64;
    for (std::int32_t& length : lengths) length = static_cast<std::int32_t>(1 + random() % most);
    expect_tiles(lengths);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SequenceTiles, FillTilesBeforeTheNext) {
  const std::vector<TileBegin> tiles = tiles_of({20, 20, 24, 1, 63, 2});
  const std::vector<std::int32_t> want = {0, 3, 5, 6};
  ASSERT_GE(tiles.size(), want.size());
  for (std::size_t i = 0; i < tiles.size(); ++i)
    EXPECT_EQ(tiles[i].sequence, want[std::min(i, want.size() - 1)]) << "tile " << i;
}

TEST(SequenceTiles, NoSequences) {
  EXPECT_EQ(most_tiles(0, 0), 0);
  const std::vector<TileBegin> tiles = tiles_of({});
  ASSERT_EQ(tiles.size(), 1U);
  EXPECT_EQ(tiles.front().sequence, 0);
}

TEST(SequenceTiles, HaveNoPlacesForLongSequences) {
  EXPECT_EQ(places_for_tiles(begin_of({3, 64, 64}), 131), most_tiles(131, 3));
  EXPECT_EQ(places_for_tiles(begin_of({3, 65, 64}), 132), 0);
  EXPECT_EQ(places_for_tiles(begin_of({}), 0), 0);
}

TEST(SequenceTiles, RefuseWithASentence) {
  std::vector<TileBegin> begin(2);
  expect_error("sequence 1 has 65 rows", [&] { pack_tiles(begin_of({3, 65}), begin); });
  expect_error("1 tiles are too few for 2 sequences", [&] { pack_tiles(begin_of({60, 60}), begin); });
}

}  // namespace
}  // namespace nibble::test
