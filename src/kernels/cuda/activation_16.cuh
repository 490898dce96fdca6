// Activations whose results are rounded to 16 bits.
#pragma once

#include "core/cuda/launch.cuh"
#include "kernels/cuda/activation.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace nibble {

/// gelu(x) = max(x, 0) - t * Phi(-t), t = |x|, where log2 Phi(-t) = p(t) is smooth: a polynomial of degree 5 fitted on
/// [0, 6], with the error of gelu as its weight, gives gelu within 5e-6, and within 6e-5 of itself where |gelu| > 1e-3,
/// for one exp2, a sixth of erfc's instructions. Phi(-t) = gelu_tail(t, q(t)), where q(t) is p(t) less its terms up to
/// t^2, over t^3.
constexpr float kGelu5 = -0.00040853937389329076f;
constexpr float kGelu4 = 0.006623461376875639f;
constexpr float kGelu3 = -0.050740908831357956f;

__device__ __forceinline__ float gelu_tail(float t, float q) {
  float p = fmaf(t, q, -0.4609202444553375f);
  p = fmaf(t, p, -1.1506232023239136f);
  return exp2_fast(fmaf(t, p, -1.0f));
}

__device__ __forceinline__ float gelu_tail(float t) { return gelu_tail(t, fmaf(t, fmaf(t, kGelu5, kGelu4), kGelu3)); }

__device__ __forceinline__ float short_gelu(float x) {
  const float t = fabsf(x);
  return fmaf(-t, gelu_tail(t), fmaxf(x, 0.0f));
}

/// gelu of two values beside each other, which were rounded to T already: what the rounding of the results allows is
/// computed in pairs. Within two units in T's last place or within 2e-6.
__device__ __forceinline__ unsigned short_gelu(unsigned pair, __half) {
  const __half2 x = *reinterpret_cast<const __half2*>(&pair);
  const __half2 t = __habs2(x);
  const __half2 q =
      __hfma2(t, __hfma2(t, __float2half2_rn(kGelu5), __float2half2_rn(kGelu4)), __float2half2_rn(kGelu3));
  const float2 ts = __half22float2(t);
  const float2 qs = __half22float2(q);
  const __half2 tail = __floats2half2_rn(gelu_tail(ts.x, qs.x), gelu_tail(ts.y, qs.y));
  const __half2 y = __hfma2(__hneg2(t), tail, __hmax2(x, __float2half2_rn(0.0f)));
  return *reinterpret_cast<const unsigned*>(&y);
}
__device__ __forceinline__ unsigned short_gelu(unsigned pair, __nv_bfloat16) {
  const __nv_bfloat162 x = *reinterpret_cast<const __nv_bfloat162*>(&pair);
  const __nv_bfloat162 t = __habs2(x);
  const float2 ts = __bfloat1622float2(t);
  const __nv_bfloat162 tail = __floats2bfloat162_rn(gelu_tail(ts.x), gelu_tail(ts.y));
  const __nv_bfloat162 y = __hfma2(__hneg2(t), tail, __hmax2(x, __float2bfloat162_rn(0.0f)));
  return *reinterpret_cast<const unsigned*>(&y);
}

/// activate(), as exact as a result of type T has use for.
template <typename T>
__device__ __forceinline__ float activate_for(ActivationKind kind, float v) {
  if (sizeof(T) < sizeof(float) && kind == ActivationKind::gelu) return short_gelu(v);
  return activate(kind, v);
}

}  // namespace nibble
