// Short sequences packed into tiles of rows: whole ones, so that a tile holds all that its rows attend to.
#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// Where a tile begins.
struct TileBegin {
  std::int32_t sequence = 0;
  std::int32_t row = 0;
};

struct SequenceTiles {
  static constexpr std::int64_t kRows = 64;  // of a tile, at most

  std::int64_t tiles = 0;
  std::int64_t least = 1;                   // of them that are not empty
  const TileBegin* begin = nullptr;         // [tiles + 1]; tiles behind the last are empty
  const std::int32_t* row_begin = nullptr;  // [sequences + 1] the first row of each; both in device memory
};

/// Tiles that are enough for any so many sequences of together at most so many rows, each of at most
/// SequenceTiles::kRows.
std::int64_t most_tiles(std::int64_t rows, std::int64_t sequences);

/// most_tiles() where so many tiles hold the sequences; 0 where one has more rows than a tile, or there are none.
std::int64_t places_for_tiles(std::span<const std::int32_t> row_begin, std::int64_t rows);

/// Sets SequenceTiles::begin, of one element more than most_tiles(), for sequences that begin at `row_begin`
/// [sequences + 1]; the tiles that are not empty. Error for a sequence of more rows than a tile's.
std::int64_t pack_tiles(std::span<const std::int32_t> row_begin, std::span<TileBegin> begin);

}  // namespace nibble
