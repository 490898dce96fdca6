// Activations as a pass of their own.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/matrix.h"
#include "kernels/linear_kernel.h"

namespace nibble {

/// y = act(y), of f32, f16 or bf16.
void activate_rows(ActivationKind kind, const MatrixRef& y, CudaStream& stream);

}  // namespace nibble
