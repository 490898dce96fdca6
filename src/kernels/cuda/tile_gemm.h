// Products of 16-bit matrices on Hopper's tensor cores by a kernel of our own, with bias and activation in the
// epilogue.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/dtype.h"
#include "kernels/linear_kernel.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace nibble {

/// y[m, n] = act(sum_k x[m, k] * w[n, k] + bias[n]), all row-major and of `type` (f16 or bf16), sums in f32, rounded
/// once. x, w and y begin at multiples of 16 bytes, and so do their rows; n and k are multiples of 8.
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
};

/// How a product is divided.
struct TilePlan {
  int columns = 128;  // of a tile, which has 128 rows: 256 (two blocks share each tile of w), 128 or 64
  int split = 1;      // blocks that share a tile's sum over k (64 columns only); they add up in a fixed order
};

/// Whether the kernel takes it: compute capability 9.0, types, sizes, addresses.
bool takes(const TileGemm& gemm, int capability);
/// The plan that a simple model of the kernel's time takes to be the fastest.
TilePlan plan_of(const TileGemm& gemm, int multiprocessors);
/// All plans that the product can run with.
std::vector<TilePlan> plans_of(const TileGemm& gemm);

/// Enqueues the product; neither allocates nor waits.
void enqueue(const TileGemm& gemm, const TilePlan& plan, int multiprocessors, CudaStream& stream);

}  // namespace nibble
