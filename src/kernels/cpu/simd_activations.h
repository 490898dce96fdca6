// Activations over the registers of core/simd_avx2.h or core/simd_avx512.h, one of which is included before, with
// core/simd_math.h: what linear kernels and ops share. Everything is in an unnamed namespace, as there.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstdint>

namespace nibble::cpu {
namespace {

inline Reg silu(Reg x) { return times_sigmoid2(x, Vec::mul(x, Vec::set1(kLog2E))); }

// x * Phi(x) = max(x, 0) - |x| / 2 * erfc(|x| / sqrt(2)), with erfc by formula 7.1.26 of Abramowitz and Stegun's
// Handbook of Mathematical Functions: absolute error of erfc 1.5e-7, and no cancellation for negative x.
inline Reg gelu(Reg x) {
  const Reg magnitude = Vec::abs(x);
  const Reg z = Vec::mul(magnitude, Vec::set1(0.707106781f));
  const Reg t = Vec::reciprocal(Vec::fma(Vec::min(Vec::set1(1e6f), z), Vec::set1(0.3275911f), Vec::set1(1)));
  Reg p = Vec::fma(Vec::set1(1.061405429f), t, Vec::set1(-1.453152027f));
  p = Vec::fma(p, t, Vec::set1(1.421413741f));
  p = Vec::fma(p, t, Vec::set1(-0.284496736f));
  p = Vec::fma(p, t, Vec::set1(0.254829592f));
  const Reg power = exp2(Vec::mul(Vec::mul(z, z), Vec::set1(-kLog2E)));
  const Reg erfc = Vec::mul(Vec::mul(p, t), power);
  // Beyond 1e6 erfc is 0, and so must its product with an infinite x be.
  const Reg half = Vec::mul(Vec::min(Vec::set1(1e6f), magnitude), Vec::set1(0.5f));
  return Vec::sub(Vec::max(Vec::zero(), x), Vec::mul(half, erfc));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline Reg gelu_tanh(Reg x) {
  const Reg cubic = Vec::fma(Vec::mul(Vec::mul(x, x), Vec::set1(0.044715f)), x, x);
  return times_sigmoid2(x, Vec::mul(cubic, Vec::set1(2 * 0.7978845608f * kLog2E)));
}

inline Reg quick_gelu(Reg x) { return times_sigmoid2(x, Vec::mul(x, Vec::set1(1.702f * kLog2E))); }

// Calls body(act), act a function of registers: the loop that body has is compiled for each activation.
template <typename Body>
inline void with_activation(ActivationKind kind, const Body& body) {
  switch (kind) {
    case ActivationKind::silu:
      return body([](Reg x) { return silu(x); });
    case ActivationKind::gelu:
      return body([](Reg x) { return gelu(x); });
    case ActivationKind::gelu_tanh:
      return body([](Reg x) { return gelu_tanh(x); });
    case ActivationKind::relu:
      return body([](Reg x) { return Vec::max(Vec::zero(), x); });
    case ActivationKind::quick_gelu:
      return body([](Reg x) { return quick_gelu(x); });
    case ActivationKind::tanh:
      return body([](Reg x) { return tanh(x); });
  }
}

}  // namespace
}  // namespace nibble::cpu
