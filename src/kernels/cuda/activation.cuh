// Activations in float.
#pragma once

#include "kernels/linear_kernel.h"

namespace nibble {

__device__ __forceinline__ float activate(ActivationKind kind, float v) {
  switch (kind) {
    case ActivationKind::silu:
      return __fdividef(v, 1.0f + __expf(-v));
    case ActivationKind::gelu:
      // erfc keeps its digits where 1 + erf would lose them; 0.70710678 is sqrt(1/2).
      return 0.5f * v * erfcf(-v * 0.70710678f);
    case ActivationKind::gelu_tanh:
      // 0.79788456 is sqrt(2/pi).
      return 0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
    case ActivationKind::quick_gelu:
      return __fdividef(v, 1.0f + __expf(-1.702f * v));
    case ActivationKind::tanh:
      return tanhf(v);
    default:
      return fmaxf(v, 0.0f);
  }
}

}  // namespace nibble
