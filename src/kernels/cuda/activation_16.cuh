// Activations whose results are rounded to 16 bits.
#pragma once

#include "kernels/cuda/activation.cuh"

namespace nibble {

/// gelu(x) = max(x, 0) - |x| * Phi(-|x|), where log2 Phi(-t) is smooth: a polynomial of degree 7 fitted on [0, 6] gives
/// gelu within 6e-7, and within 5e-6 of itself where |gelu| > 1e-4, for one exp2, a fifth of erfc's instructions.
__device__ __forceinline__ float short_gelu(float x) {
  const float t = fabsf(x);
  float p = fmaf(t, -1.673760152698378e-06f, 5.87056165386457e-05f);
  p = fmaf(t, p, -0.0009101678151637316f);
  p = fmaf(t, p, 0.008436564356088638f);
  p = fmaf(t, p, -0.05382963642477989f);
  p = fmaf(t, p, -0.4585830867290497f);
  p = fmaf(t, p, -1.1512054204940796f);
  p = fmaf(t, p, -1.0f);
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(p));
  return fmaf(-t, power, fmaxf(x, 0.0f));
}

/// activate(), as exact as a result of type T has use for.
template <typename T>
__device__ __forceinline__ float activate_for(ActivationKind kind, float v) {
  if (sizeof(T) < sizeof(float) && kind == ActivationKind::gelu) return short_gelu(v);
  return activate(kind, v);
}

}  // namespace nibble
