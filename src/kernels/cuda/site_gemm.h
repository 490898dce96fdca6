// The products of a site whose parts' weights lie one below the other in device memory.
#pragma once

#include "core/cuda/cuda_device.h"
#include "kernels/cuda/dense_weights.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/linear_kernel.h"

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

struct SiteProduct {
  std::int64_t rows = 0;
  std::int64_t inputs = 0;
  const void* x = nullptr;  // [rows, inputs] of `operands`
  std::int64_t x_stride = 0;
  const void* w = nullptr;  // the parts' [n, inputs] one after another
  std::int64_t w_stride = 0;
  DType operands = DType::f16;
  std::span<const LinearDesc> parts;
  std::span<const std::int64_t> first_rows;  // row of w where each part begins
  const void* bias = nullptr;                // as upload_biases() gives it, of y's type
  std::span<const MatrixRef> y;              // one a part
  bool accumulate = false;                   // y += ...
  std::byte* workspace = nullptr;            // gemm_workspace_bytes()
};

/// The product of packed weights with a call's inputs.
SiteProduct product_of(const DenseWeights& dense, const LinearArgs& args);

/// One product where weights and outputs of all parts lie side by side without gaps, else one a part.
std::vector<GemmArgs> products_of(const SiteProduct& product);
/// Runs them by cuBLASLt.
void multiply_site(const SiteProduct& product, CudaStream& stream);

/// y = residual, where they are not the same memory: what a product that accumulates starts from.
void copy_residual(const MatrixRef& residual, const MatrixRef& y, CudaStream& stream);

}  // namespace nibble
