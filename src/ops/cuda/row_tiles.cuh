// Tiles of consecutive rows of the sequences of a pass, found from row_begin, which the host does not see.
#pragma once

#include <cstdint>

namespace nibble::cuda {

/// Rows [row, row + rows) of one sequence; rows 0: there is no such tile.
struct SequenceTile {
  int sequence = 0;
  int begin = 0;  // the sequence's first row, and how many it has
  int length = 0;
  int row = 0;
  int rows = 0;
};

/// Tile `index` of `kRows` rows, counted over the sequences in order. Every warp looks by itself, 32 sequences at a
/// time. There are at most rows / kRows + sequences tiles.
template <int kRows>
__device__ __forceinline__ SequenceTile find_sequence_tile(const std::int32_t* row_begin, int sequences, int index) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int done = 0; done < sequences; done += 32) {
    const int sequence = done + lane;
    int begin = 0;
    int length = 0;
    if (sequence < sequences) {
      begin = row_begin[sequence];
      length = row_begin[sequence + 1] - begin;
    }
    const int count = (length + kRows - 1) / kRows;
    int until = count;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(kAll, until, offset);
      if (lane >= offset) until += before;
    }
    const unsigned beyond = __ballot_sync(kAll, until > index);
    if (beyond != 0) {
      const int owner = __ffs(static_cast<int>(beyond)) - 1;
      SequenceTile tile;
      tile.sequence = done + owner;
      tile.begin = __shfl_sync(kAll, begin, owner);
      tile.length = __shfl_sync(kAll, length, owner);
      const int first = (index - __shfl_sync(kAll, until - count, owner)) * kRows;
      tile.row = tile.begin + first;
      tile.rows = min(kRows, tile.length - first);
      return tile;
    }
    index -= __shfl_sync(kAll, until, 31);
  }
  return {};
}

}  // namespace nibble::cuda
