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

/// Tiles of `size` rows, counted over the sequences in order; there are at most rows / size + sequences. A warp looks
/// by itself, at 32 sequences at a time, and keeps the last ones it looked at.
class SequenceTileFinder {
 public:
  __device__ __forceinline__ SequenceTileFinder(const std::int32_t* row_begin, int sequences, int size)
      : row_begin_(row_begin), sequences_(sequences), size_(size) {
    look_at(0);
  }

  /// Tile `index`.
  __device__ __forceinline__ SequenceTile find(int index) {
    for (int total = __shfl_sync(kAll, until_, 31); index < before_ || index >= before_ + total;) {
      const bool back = index < before_;
      if (!back && first_ + kWindow >= sequences_) return {};
      if (!back) before_ += total;
      look_at(back ? first_ - kWindow : first_ + kWindow);
      total = __shfl_sync(kAll, until_, 31);
      if (back) before_ -= total;
    }
    index -= before_;
    const int owner = __ffs(static_cast<int>(__ballot_sync(kAll, until_ > index))) - 1;
    const int until = __shfl_sync(kAll, until_, max(owner - 1, 0));
    const int first = (index - (owner > 0 ? until : 0)) * size_;
    SequenceTile tile;
    tile.sequence = first_ + owner;
    tile.begin = row_begin_[tile.sequence];
    tile.length = row_begin_[tile.sequence + 1] - tile.begin;
    tile.row = tile.begin + first;
    tile.rows = min(size_, tile.length - first);
    return tile;
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;
  static constexpr int kWindow = 32;

  __device__ __forceinline__ void look_at(int first) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    first_ = first;
    int length = 0;
    if (first + lane < sequences_) length = row_begin_[first + lane + 1] - row_begin_[first + lane];
    until_ = (length + size_ - 1) / size_;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(kAll, until_, offset);
      if (lane >= offset) until_ += before;
    }
  }

  const std::int32_t* row_begin_;
  int sequences_;
  int size_;
  int before_ = 0;  // tiles of the sequences ahead of first_
  int first_ = 0;   // of the sequences looked at, one by each lane
  int until_ = 0;   // tiles up to and with the lane's, from first_ on
};

/// One tile by itself.
template <int kRows>
__device__ __forceinline__ SequenceTile find_sequence_tile(const std::int32_t* row_begin, int sequences, int index) {
  return SequenceTileFinder(row_begin, sequences, kRows).find(index);
}

}  // namespace nibble::cuda
