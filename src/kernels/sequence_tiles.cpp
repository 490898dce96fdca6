#include "kernels/sequence_tiles.h"

#include "core/error.h"

#include <algorithm>

namespace nibble {

std::int64_t most_tiles(std::int64_t rows, std::int64_t sequences) {
  // A tile ends where the next sequence does not fit, so two tiles beside each other have more rows than one holds.
  return std::min(sequences, 2 * (rows / (SequenceTiles::kRows + 1)) + 1);
}

std::int64_t places_for_tiles(std::span<const std::int32_t> row_begin, std::int64_t rows) {
  for (std::size_t s = 0; s + 1 < row_begin.size(); ++s) {
    if (row_begin[s + 1] - row_begin[s] > SequenceTiles::kRows) return 0;
  }
  return most_tiles(rows, static_cast<std::int64_t>(row_begin.size()) - 1);
}

std::int64_t pack_tiles(std::span<const std::int32_t> row_begin, std::span<TileBegin> begin) {
  std::size_t tile = 0;
  begin[0] = {};
  for (std::size_t s = 0; s + 1 < row_begin.size(); ++s) {
    const std::int32_t end = row_begin[s + 1];
    if (end - row_begin[s] > SequenceTiles::kRows) {
      fail("sequence {} has {} rows; tiles of whole sequences take at most {}", s, end - row_begin[s],
           SequenceTiles::kRows);
    }
    if (end - begin[tile].row > SequenceTiles::kRows) {
      if (tile + 2 >= begin.size())
        fail("{} tiles are too few for {} sequences: take most_tiles()", begin.size() - 1, row_begin.size() - 1);
      begin[++tile] = {static_cast<std::int32_t>(s), row_begin[s]};
    }
  }
  const TileBegin end{static_cast<std::int32_t>(row_begin.size()) - 1, row_begin.back()};
  std::fill(begin.begin() + static_cast<std::ptrdiff_t>(tile) + 1, begin.end(), end);
  return end.row > 0 ? static_cast<std::int64_t>(tile) + 1 : 0;
}

}  // namespace nibble
