// What one call of the kernel for few rows is given, and how its work is divided.
//
// The work is a line of items, one a block of weights: inputs are cut into `slices` of whole blocks (so that a thread
// block can keep a slice of all tokens in shared memory), and in a slice strip follows strip. The thread blocks divide
// the line evenly, and in a thread block its warps. What they sum of a strip are pieces; pieces of several thread
// blocks meet in global memory, where the last to arrive adds them in their order. So results depend on the shape and
// the number of multiprocessors alone.
#pragma once

#include "kernels/cuda/nibble/packed_site.h"

#include <cstddef>
#include <cstdint>

namespace nibble::gpu {

constexpr int kSmallWarps = 8;
constexpr int kSmallThreads = kSmallWarps * 32;
constexpr int kMostParts = 4;

struct SmallRowsArgs {
  const std::byte* weights = nullptr;
  int block_bytes = 0;
  int blocks = 0;  // of a strip
  int strips = 0;
  bool zeros = false;
  float zero = 0;  // the zero point where none are kept

  int rows = 0;
  int inputs = 0;
  const void* x = nullptr;
  DType x_dtype = DType::f16;
  std::int64_t x_stride = 0;
  bool x_vectors = false;               // rows may be read 8 elements at a time
  const std::int32_t* order = nullptr;  // InputOrder::inputs, or null
  const float* norm_weight = nullptr;   // null: no norm
  float norm_eps = 0;

  int slices = 1;
  int slice_blocks = 0;  // of all slices but the last
  float* pieces = nullptr;
  float* squares = nullptr;          // [slices, 16] sums of squares of each token's inputs, with a norm
  std::uint32_t* tickets = nullptr;  // [strips]

  EpilogueKind epilogue = EpilogueKind::store;
  ActivationKind activation = ActivationKind::silu;
  const float* bias = nullptr;
  int parts = 1;
  int first_strip[kMostParts] = {};
  int outputs[kMostParts] = {};
  int bias_at[kMostParts] = {};
  void* y[kMostParts] = {};
  std::int64_t y_stride[kMostParts] = {};
  DType y_dtype = DType::f16;
  const void* residual = nullptr;
  std::int64_t residual_stride = 0;
};

/// How a call is divided and what it takes.
struct SmallRowsPlan {
  int slices = 1;
  int slice_blocks = 0;
  int grid = 1;
  int tiles = 1;  // of 8 tokens: 1 or 2
  int stage_blocks = 1;
  std::size_t shared_bytes = 0;
  std::size_t inputs_bytes = 0;  // of shared memory for the slice of inputs, or for pieces of warps
  std::size_t pieces = 0;        // in global memory
  std::size_t workspace_bytes() const;
};
SmallRowsPlan plan_small_rows(const PackedLayout& layout, std::int64_t rows, int multiprocessors);

}  // namespace nibble::gpu
