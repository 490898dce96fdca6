// Activations of one float at a time: what the scalar versions of linear kernels and ops share, and the reference for
// simd_activations.h.
#pragma once

#include "kernels/linear_kernel.h"

#include <cmath>
#include <numbers>

namespace nibble::cpu {

inline float activated(ActivationKind kind, float x) {
  switch (kind) {
    case ActivationKind::silu:
      return x / (1 + std::exp(-x));
    case ActivationKind::gelu:
      // erfc keeps its digits where 1 + erf would lose them.
      return 0.5f * x * std::erfc(-x * static_cast<float>(1 / std::numbers::sqrt2));
    case ActivationKind::gelu_tanh: {
      // 0.7978845608 = sqrt(2 / pi); the cubic term is that of the original approximation.
      constexpr float kSqrt2OverPi = 0.7978845608f;
      return 0.5f * x * (1 + std::tanh(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
    }
    case ActivationKind::relu:
      return x > 0 ? x : 0;
    case ActivationKind::quick_gelu:
      return x / (1 + std::exp(-1.702f * x));
    case ActivationKind::tanh:
      return std::tanh(x);
  }
  return x;
}

}  // namespace nibble::cpu
