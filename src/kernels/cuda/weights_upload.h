// Full-precision matrices from a checkpoint into device memory, in the type that products want.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/tensor.h"

#include <cstdint>

namespace nibble {

/// Writes the float tensor `from` (f32, f16, bf16 or f64) to `to` as `dtype` (f32, f16 or bf16), converted on the GPU
/// where the types differ. Ordered on `stream`.
void upload_as(const TensorView& from, DType dtype, void* to, CudaDevice& device, Stream& stream);

/// The biases of all parts one after another, [sum of out_features] of `dtype` with zeros where a part has none; null
/// where no part has one.
std::unique_ptr<Buffer> upload_biases(std::span<const std::vector<float>> biases,
                                      std::span<const std::int64_t> out_features, DType dtype, CudaDevice& device,
                                      Stream& stream);

}  // namespace nibble
