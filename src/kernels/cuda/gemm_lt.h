// Dense products on the GPU through cuBLASLt: what `dense` and the dequantising kernels share.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/dtype.h"

#include <cstddef>
#include <cstdint>

namespace nibble {

/// y[m, n] = sum_k x[m, k] * w[n, k] (+ y[m, n] before, with `accumulate`) (+ bias[n]); all row-major. Sums are f32
/// (no TF32), or f16 with half_accumulate.
struct GemmArgs {
  std::int64_t m = 0, n = 0, k = 0;
  const void* x = nullptr;
  std::int64_t x_stride = 0;  // elements, as the other strides
  const void* w = nullptr;    // [n, k], or with w_is_kn [k, n]
  std::int64_t w_stride = 0;
  bool w_is_kn = false;
  DType operands = DType::f16;  // of x and w: f32, f16 or bf16
  void* y = nullptr;
  std::int64_t y_stride = 0;
  DType y_dtype = DType::f16;
  const float* bias = nullptr;      // [n] or null, added after the sum was rounded to y's type
  const void* same_bias = nullptr;  // [n] of y's type or null, added before it is rounded
  bool accumulate = false;
  /// So many products of one shape, whose operands lie so many elements apart.
  std::int64_t batch = 1;
  std::int64_t x_step = 0, w_step = 0, y_step = 0;
  bool half_accumulate = false;    // f16 operands and y only
  bool prefers_clusters = false;   // a long sum of few rows: of the library's kernels one whose blocks share tiles
  std::byte* workspace = nullptr;  // gemm_workspace_bytes(), aligned to 256
};

std::size_t gemm_workspace_bytes();

/// Enqueues the product; neither allocates on the GPU nor waits. Shapes and strides that cuBLASLt does not take run on
/// a plain kernel of our own.
void gemm(const GemmArgs& args, CudaStream& stream);

/// The plain kernel: any shape, stride and alignment, f32 sums; a tenth of the library's speed.
void gemm_plain(const GemmArgs& args, CudaStream& stream);

/// y[m, n] += bias[n]
void add_bias(void* y, DType dtype, std::int64_t stride, std::int64_t m, std::int64_t n, const float* bias,
              CudaStream& stream);

}  // namespace nibble
