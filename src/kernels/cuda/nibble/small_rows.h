// How a product of few rows is divided, and what one call of its kernel is given.
//
// Weights go to warps in items: one block of weights of each of two neighbouring strips, a pair, which share the inputs
// that they meet. A cluster of thread blocks has whole pairs; inside it each thread block has a slice of the inputs,
// so that it keeps and stages no more than that, and inside a thread block its warps divide the line of items (pair
// after pair) evenly. What a warp sums of a pair is a piece. A thread block adds the pieces of its warps, then the
// cluster those of its thread blocks, through shared memory, each in a fixed order: nothing goes through global
// memory, and results depend on the shape and the device alone.
#pragma once

#include "kernels/cuda/nibble/packed_site.h"

#include <cstddef>
#include <cstdint>

namespace nibble::gpu {

constexpr int kSmallWarps = 16;
constexpr int kSmallThreads = kSmallWarps * 32;
constexpr int kMostStages = 4;
constexpr int kMostCluster = 8;  // the most thread blocks that a cluster can have everywhere
constexpr int kMostPairs = 256;  // of a cluster
constexpr int kMostParts = 4;
// Whose kernel exists for two thread blocks a multiprocessor, too: 4 bits with one scale a block of weights.
constexpr int kResidentBits = 4;
constexpr int kResidentSets = 1;
// Places for barriers and what else a thread block keeps beside rings and inputs.
constexpr std::size_t kSmallFixedBytes = 2048;
constexpr int kMostTokens = static_cast<int>(kMostSmallRows);

/// Bytes of the staged inputs of two steps (32 inputs) of `rows` tokens: [token][c] 16 bytes as matrix B wants them,
/// and 16 more, so that the stores of a warp, of eight such pairs, meet eight different quarters of the banks.
__host__ __device__ constexpr int staged_pair_bytes(int rows) { return rows * 64 + 16; }

/// Tokens for which there are places among sums and factors: whole tiles of 8.
__host__ __device__ constexpr int staged_tokens(int rows) { return rows <= 8 ? 8 : 16; }

/// Inputs as stage_small_rows() leaves them in global memory for the product.
struct StagedRows {
  std::byte* inputs = nullptr;  // f16: [block][pair of steps] staged_pair_bytes()
  float* sums = nullptr;        // [set][staged_tokens()] of the staged inputs, times 2^-24
  float* factors = nullptr;     // [block][staged_tokens()]: what the block's sums are multiplied by
  float* squares = nullptr;     // [stage_parts()][token]: sums of the inputs' squares, where there is a norm
};

/// How weights are divided among thread blocks: of the pairs, the first `longer_clusters` clusters have one more than
/// cluster_pairs; of a strip's blocks, the first `longer_slices` thread blocks of a cluster one more than slice_blocks.
struct WeightShares {
  const std::byte* weights = nullptr;
  int block_bytes = 0;
  int blocks = 0;  // of a strip
  int log_cluster = 0;
  int clusters = 0;
  int cluster_pairs = 0;
  int longer_clusters = 0;
  int slice_blocks = 0;
  int longer_slices = 0;
};

struct SmallRowsArgs {
  WeightShares shares;
  int strips = 0;
  bool zeros = false;
  float zero = 0;  // the zero point where none are kept

  int rows = 0;
  // The product stages x itself, unless a kernel before it has (staged.inputs).
  const void* x = nullptr;
  DType x_dtype = DType::f16;
  std::int64_t x_stride = 0;
  const std::int32_t* order = nullptr;  // InputOrder::inputs, to pick inputs by; null: as they lie, or staged
  int row_bytes = 0;                    // of x
  StagedRows staged;
  int staged_parts = 0;                // of staged.squares
  int inputs = 0;                      // what the mean of squares is taken over
  const float* norm_weight = nullptr;  // null: no norm
  float norm_eps = 0;

  int stages = 0;        // of each warp's ring
  int early_stages = 0;  // filled before the inputs are asked for
  int slots = 0;         // pieces that a warp leaves beside its last
  int slice_inputs = 0;  // at most
  int norm_inputs = 0;   // of which there are the norm's weights in shared memory
  int tables_at = 0;     // bytes from the start of shared memory
  int groups = 0;
  int inputs_bytes = 0;
  int sums_bytes = 0;
  int slots_bytes = 0;
  bool overlaid = false;  // what the cluster sends goes to the place of the inputs

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
  // Of PackedSite, the pass's rows; null: no copy.
  float* copy = nullptr;
  const std::int32_t* places = nullptr;
};

/// How a call is divided and what it takes.
struct SmallRowsPlan {
  bool fits = false;  // in shared memory, some way
  int tiles = 1;      // of 8 tokens: 1 or 2
  int cluster = 1;
  int clusters = 1;
  int stages = 0;
  int early_stages = 0;
  int slots = 0;
  int groups = 0;                // of sums that a thread block finishes, at most
  std::size_t inputs_bytes = 0;  // of shared memory, as the next
  std::size_t sums_bytes = 0;    // and factors
  std::size_t slots_bytes = 0;
  bool overlaid = false;  // what a cluster sends goes to the inputs' place, where there is no other
  int slice_inputs = 0;   // at most
  std::size_t tables_at = 0;
  bool picks = false;  // inputs out of order from rows in shared memory: there is room for them
  std::size_t shared_bytes = 0;
  // Thread blocks that a multiprocessor has room for: with 2 those of the next such kernel fetch their first weights
  // while this one ends. That is worth shorter rings where a warp has few items, among kernels that leave the room.
  int resident = 1;
};

/// What a plan depends on beside layout and rows.
struct SmallRowsUse {
  bool norm = false;                  // the site has one
  bool residual = false;              // so
  std::int64_t picked_row_bytes = 0;  // of a row whose inputs are picked out of order, 0 where none are
};
SmallRowsPlan plan_small_rows(const PackedLayout& layout, std::int64_t rows, const SmallRowsDevice& device,
                              const SmallRowsUse& use);

/// Where stage_small_rows() puts its results in the workspace, and how much of that it takes.
StagedRows staged_rows(const PackedLayout& layout, std::int64_t rows, std::byte* workspace);
std::size_t staged_rows_bytes(const PackedLayout& layout, std::int64_t rows);
/// Parts of a row, each staged by a thread block of its own.
int stage_parts(const PackedLayout& layout);
/// Gathers, norms and scales the inputs once for all thread blocks of the product.
void stage_small_rows(const PackedSite& packed, const LinearArgs& args, const StagedRows& to, CudaStream& stream);

}  // namespace nibble::gpu
