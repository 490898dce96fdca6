// What AutoGPTQ's kernels `cuda-old` and `cuda` have in common: square blocks of weights add to f32 sums by atomics,
// and where those blocks do not fit, or with many rows, the weights are dequantised and multiplied by cuBLAS.
#pragma once

#include "core/cuda/cuda_device.h"
#include "kernels/cuda/gptq_upload.h"
#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nibble::cuda {

class F32SumsKernel : public LinearKernel {
 public:
  explicit F32SumsKernel(RowOrder order) : order_(order) {}

  std::size_t packed_bytes(const LinearSite& site) const override;
  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override;
  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override;
  Cost cost(const LinearSite& site, std::int64_t rows) const override;
  std::vector<KernelWay> ways(const LinearSite& site) const override;
  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override;

 protected:
  /// As refused_types(), and for shapes that no path takes.
  std::string refused(const LinearSite& site) const;

 private:
  /// sums[m, n] += x W^T for m < rows, sums [rows, N], in blocks of `width` x `width` weights, 64 or 256, of which K
  /// and N are multiples.
  virtual void add_products(const DeviceGptq& part, const MatrixRef& x, std::int64_t rows, int width, float* sums,
                            CudaStream& stream) const = 0;

  RowOrder order_;
};

}  // namespace nibble::cuda
