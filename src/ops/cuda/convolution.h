// The pieces that convolutions over time are made of on the GPU.
#pragma once

#include "core/cuda/cuda_device.h"
#include "ops/backend.h"

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
};

/// Where the rows of some sequences are, and which tiles of so many of y's rows they make: what a kernel is handed.
struct SequenceRows {
  static constexpr int kMost = 64;
  int count = 0;
  std::array<std::int64_t, kMost> x_begin, x_rows, y_begin, y_rows;
  std::array<int, kMost + 1> tile_begin;

  int tiles() const { return tile_begin[static_cast<std::size_t>(count)]; }
#ifdef __CUDACC__
  __device__ __forceinline__ int of_tile(int tile) const {
    int low = 0;
    int high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (tile_begin.data()[middle] <= tile) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
#endif
};

/// Up to SequenceRows::kMost spans, in tiles of `tile_rows` rows of y.
SequenceRows rows_of(std::span<const FrameSpan> spans, int tile_rows);

/// Any convolution in f16 or bf16, on tensor cores; x may be f32.
void convolve_tiles(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);
/// Any convolution in f32.
void convolve_f32(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);
/// Convolutions of few inputs for each output, as those of samples are: they take as long as y takes to write.
bool is_narrow(const ConvolutionShape& shape);
void convolve_narrow(const CudaConvolution& packed, const Frames& frames, CudaStream& stream);

/// Calls launch(sequences) for all spans, up to SequenceRows::kMost at a time.
template <typename Launch>
void for_sequences(std::span<const FrameSpan> spans, int tile_rows, const Launch& launch) {
  while (!spans.empty()) {
    const std::size_t count = std::min(spans.size(), static_cast<std::size_t>(SequenceRows::kMost));
    const SequenceRows sequences = rows_of(spans.first(count), tile_rows);
    if (sequences.tiles() > 0) launch(sequences);
    spans = spans.subspan(count);
  }
}

}  // namespace nibble::cuda
