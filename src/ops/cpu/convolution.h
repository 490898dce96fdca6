// What encoders of audio ask of the CPU: convolutions over time, and norms and trims of the frames between them.
#pragma once

#include "core/cpu_device.h"
#include "ops/backend.h"

#include <cstddef>
#include <memory>
#include <span>

namespace nibble::cpu {

/// As Backend's functions of these names, which call them. Error for shapes whose sizes do not fit each other.
std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape, std::span<const float> weight,
                                                    std::span<const float> bias, Stream& stream);
std::size_t convolution_bytes(const ConvolutionShape& shape);
std::size_t convolution_workspace(const ConvolutionShape& shape);
void convolve(const PackedConvolution& packed, const ConvolveArgs& args, Stream& stream);
void instance_norm(const InstanceNormArgs& args, CpuStream& stream);
void trim_frames(const TrimArgs& args, CpuStream& stream);
void transpose(const MatrixRef& x, const MatrixRef& y, CpuStream& stream);

}  // namespace nibble::cpu
