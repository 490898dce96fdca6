// The pieces that convolutions over time are made of on the GPU.
#pragma once

#include "core/cuda/cuda_device.h"
#include "ops/backend.h"
#ifdef __CUDACC__
#include "ops/cuda/row_tiles.cuh"
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace nibble::cuda {

/// weight [outputs, kernel, inputs / groups] of the type computed in: as a window lies in memory.
class CudaConvolution final : public PackedConvolution {
 public:
  ConvolutionShape shape;
  std::unique_ptr<Buffer> weight;
  std::unique_ptr<Buffer> bias;       // [outputs] f32; null: none
  std::unique_ptr<Buffer> same_bias;  // the same, of the type computed in
  int capability = 0;
  int multiprocessors = 0;

  const float* bias_values() const { return bias ? reinterpret_cast<const float*>(bias->data()) : nullptr; }
};

/// Frames [y_begin, y_begin + y_rows) of a sequence whose rows are [x_begin, x_begin + x_rows); the first frame's
/// window begins Frames::padding rows before x_begin.
struct FrameSpan {
  std::int64_t x_begin = 0, x_rows = 0, y_begin = 0, y_rows = 0;
};

/// Frames to be made.
struct Frames {
  MatrixRef x, y;
  std::vector<FrameSpan> spans;
  std::int64_t padding = 0;
  const std::int32_t* begin = nullptr;  // ConvolveArgs::begin, which kernels look at in place of `spans`
};

/// Where the rows of some sequences are, and which tiles of so many of y's rows they make: what a kernel is handed.
struct SequenceRows {
  static constexpr int kMost = 64;
  int count = 0;
  const std::int32_t* begin = nullptr;  // Frames::begin; the lists below are not filled then
  std::array<std::int64_t, kMost> x_begin, x_rows, y_begin, y_rows;
  std::array<int, kMost + 1> tile_begin;

  int tiles() const { return tile_begin[static_cast<std::size_t>(count)]; }
#ifdef __CUDACC__
  /// Where tile `index` of kRows frames is, and from which frame of its sequence on; to be called by whole warps.
  struct Tile {
    std::int64_t x_begin, x_rows, y_begin, frame, frames;  // frames 0: there is no such tile
  };
  template <int kRows>
  __device__ __forceinline__ Tile tile(int index) const {
    if (begin != nullptr) {
      const SequenceTile at = find_sequence_tile<kRows>(begin, count, index);
      return {at.begin, at.length, at.begin, at.row - at.begin, at.rows};
    }
    int low = 0;
    int high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (tile_begin.data()[middle] <= index) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const std::int64_t frame = static_cast<std::int64_t>(index - tile_begin.data()[low]) * kRows;
    return {x_begin.data()[low], x_rows.data()[low], y_begin.data()[low], frame,
            min(static_cast<std::int64_t>(kRows), y_rows.data()[low] - frame)};
  }
#endif
};

/// Up to SequenceRows::kMost spans, in tiles of `tile_rows` rows of y.
SequenceRows rows_of(std::span<const FrameSpan> spans, int tile_rows);

/// Any convolution in f16 or bf16, on tensor cores; x may be f32.
void convolve_tiles(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);
/// Any convolution in f32.
void convolve_f32(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);
/// The same for many taps, one frame apart, and few channels a group.
bool takes_taps_f32(const ConvolutionShape& shape, const Frames& frames);
void convolve_taps_f32(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);
/// Few frames of each sequence, of one group; x, whose rows follow each other, is of the type computed in.
bool takes_edges(const Frames& frames);
void convolve_edges(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);
/// Convolutions of few inputs for each output, as those of samples are: they take as long as y takes to write.
bool is_narrow(const ConvolutionShape& shape);
void convolve_narrow(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);

/// Calls launch(sequences, tiles) for all spans, up to SequenceRows::kMost at a time; where Frames::begin is given
/// once, with as many tiles as there can be.
template <typename Launch>
void for_sequences(const Frames& frames, int tile_rows, const Launch& launch) {
  std::span<const FrameSpan> spans = frames.spans;
  if (frames.begin != nullptr) {
    SequenceRows sequences;
    sequences.count = static_cast<int>(spans.size());
    sequences.begin = frames.begin;
    launch(sequences, static_cast<unsigned>(frames.y.rows / tile_rows) + static_cast<unsigned>(spans.size()));
    return;
  }
  while (!spans.empty()) {
    const std::size_t count = std::min(spans.size(), static_cast<std::size_t>(SequenceRows::kMost));
    const SequenceRows sequences = rows_of(spans.first(count), tile_rows);
    if (sequences.tiles() > 0) launch(sequences, static_cast<unsigned>(sequences.tiles()));
    spans = spans.subspan(count);
  }
}

}  // namespace nibble::cuda
