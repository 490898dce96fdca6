// Products of 16-bit matrices on Hopper's tensor cores by kernels of our own, with bias and activation in the epilogue.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/dtype.h"
#include "kernels/linear_kernel.h"

#include <cstdint>
#include <optional>

namespace nibble {

/// y[m, n] = act(sum_k x[m, k] * w[n, k] + bias[n]), all row-major and of `type` (f16 or bf16), sums in f32; wide tiles
/// round them before the activation. x, w and y begin at multiples of 16 bytes, and so do their rows; n and k are
/// multiples of 8.
struct TileGemm {
  std::int64_t m = 0, n = 0, k = 0;
  DType type = DType::f16;
  const void* x = nullptr;
  std::int64_t x_stride = 0;  // elements
  const void* w = nullptr;
  std::int64_t w_stride = 0;
  const void* bias = nullptr;  // [n] or null
  std::optional<ActivationKind> activation;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  float* parts = nullptr;  // not null: where parts of k go, [TilePlan::parts, m, n], without an activation
};

/// From so long sums on cuBLASLt is faster, but for an activation behind them.
constexpr std::int64_t kLongTileSum = 1536;

/// How a product is divided.
struct TilePlan {
  int rows = 128;  // of a tile: 64 with 32, 64 or 96 columns, 128 with 96, or with 192 or 256: wide tiles, two by two
  int columns = 256;  // of a tile
  int parts = 1;      // of k, where TileGemm::parts is not null, in tiles of 64 x 96
};

/// Whether the kernels take it: compute capability 9.0, types, sizes, addresses.
bool takes(const TileGemm& gemm, int capability);
/// The plan for a product that they take, on a GPU of so many multiprocessors.
TilePlan plan_of(const TileGemm& gemm, int multiprocessors);
/// Whether it is then faster than cuBLASLt, and a pass over the outputs where there is an activation.
bool beats_library(const TileGemm& gemm, const TilePlan& plan, int multiprocessors);
/// The plan for leaving parts; they are one where sums by themselves are faster.
TilePlan parts_plan_of(const TileGemm& gemm, int multiprocessors);
/// Thread blocks of a plan.
std::int64_t blocks_of(const TileGemm& gemm, const TilePlan& plan);

/// Enqueues the product; neither allocates nor waits.
void enqueue(const TileGemm& gemm, const TilePlan& plan, int multiprocessors, CudaStream& stream);

}  // namespace nibble
