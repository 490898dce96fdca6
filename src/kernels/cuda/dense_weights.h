// Full-precision weights of a site in device memory, as `dense` and `wgmma` keep them.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace nibble {

class DenseWeights final : public PackedLinear {
 public:
  LinearSite site;
  std::vector<std::int64_t> first_rows;  // row of `weights` where each part begins
  std::unique_ptr<Buffer> weights;       // [sum of out_features, in_features] of site.compute
  std::unique_ptr<Buffer> bias;          // [sum of out_features] of site.y_dtype; null: no part has one
  std::size_t bytes() const override { return weights->size() + (bias ? bias->size() : 0); }
};

/// DenseWeights::bytes() to be.
std::size_t dense_bytes(const LinearSite& site);
std::unique_ptr<DenseWeights> pack_dense(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                         Stream& stream);
/// No, with the reason, where a part is quantised.
Fit fits_dense(const LinearSite& site);

}  // namespace nibble
