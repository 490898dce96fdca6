// What one call of the kernel for few rows is given, and how its work is divided.
//
// A small kernel stages the inputs (stage_rows.cu); the product is another. Its work is a line of items, one a block of
// weights: inputs are cut into `slices` of whole blocks (so that a thread
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

/// Inputs as stage_small_rows() leaves them in global memory for the product.
struct StagedRows {
  std::byte* inputs = nullptr;  // f16 in the order of matrix B: [block][pair of steps][token][c] 16 bytes
  float* sums = nullptr;        // [set][token] of the staged inputs, times 2^-24
  float* factors = nullptr;     // [token]: what the product's sums are multiplied by
};

struct SmallRowsArgs {
  const std::byte* weights = nullptr;
  int block_bytes = 0;
  int blocks = 0;  // of a strip
  int strips = 0;
  bool zeros = false;
  float zero = 0;  // the zero point where none are kept

  int rows = 0;
  StagedRows staged;

  int slices = 1;
  int slice_blocks = 0;  // of all slices but the last
  int quotient = 0;      // items a thread block; the first `remainder` have one more
  int remainder = 0;
  float* pieces = nullptr;
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
  std::size_t staged_bytes = 0;  // in global memory: inputs, sums and factors
  std::size_t pieces = 0;        // in global memory
  std::size_t workspace_bytes() const;
};
SmallRowsPlan plan_small_rows(const PackedLayout& layout, std::int64_t rows, int multiprocessors);

/// Where stage_small_rows() puts its results in the workspace.
StagedRows staged_rows(const PackedLayout& layout, std::int64_t rows, std::byte* workspace);
/// Gathers, norms and scales the inputs once for all thread blocks of the product.
void stage_small_rows(const PackedSite& packed, const LinearArgs& args, const StagedRows& to, CudaStream& stream);

}  // namespace nibble::gpu
