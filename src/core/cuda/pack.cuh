// Two values rounded to a 16-bit type, side by side in a register.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace nibble {

__device__ __forceinline__ unsigned pack(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

__device__ __forceinline__ unsigned pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

}  // namespace nibble
