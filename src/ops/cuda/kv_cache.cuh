// Reading and writing the KV cache (layout: kv_cache.h) and rotating heads, for the kernels that do so.
#pragma once

#include "core/cuda/async_copy.cuh"
#include "core/cuda/launch.cuh"
#include "ops/cuda/kv_cache.h"

#include <cuda_fp8.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace nibble::cuda {

/// The C++ type of a cache's elements: with_code(dtype, [&](auto code) { using Code = decltype(code); ... }).
template <typename Body>
void with_code(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      body(float{});
      break;
    case DType::f16:
      body(__half{});
      break;
    case DType::bf16:
      body(__nv_bfloat16{});
      break;
    case DType::i8:
      body(std::int8_t{});
      break;
    case DType::f8_e4m3:
      body(__nv_fp8_e4m3{});
      break;
    default:
      fail("a KV cache of type {} is not supported on the GPU; use f32, f16, bf16, i8 or f8_e4m3", name_of(dtype));
  }
}

template <typename Code>
inline constexpr bool kHasScales = sizeof(Code) == 1;

template <typename Code>
inline constexpr int kVectorElements = 16 / static_cast<int>(sizeof(Code));

/// The largest code: a row's largest magnitude becomes it.
template <typename Code>
inline constexpr float kLargestCode = std::is_same_v<Code, std::int8_t> ? 127.0f : 448.0f;

__device__ __forceinline__ std::int64_t head_index(const KvCache& cache, int slot, int kv_head) {
  return static_cast<std::int64_t>(slot) * cache.kv_heads + kv_head;
}

__device__ __forceinline__ std::byte* head_codes(const KvCache& cache, std::byte* base, int slot, int kv_head) {
  return base + head_index(cache, slot, kv_head) * cache.head_bytes;
}

__device__ __forceinline__ float* head_scales(const KvCache& cache, std::byte* base, int slot, int kv_head) {
  return reinterpret_cast<float*>(base + cache.scale_offset) + head_index(cache, slot, kv_head) * cache.scale_stride;
}

// ---- Codes to floats ----------------------------------------------------------------------------------------------

__device__ __forceinline__ void decode_vector(const uint4& bits, float (&out)[4], float) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = __uint_as_float(words[i]);
}

__device__ __forceinline__ void decode_vector(const uint4& bits, float (&out)[8], __half) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ void decode_vector(const uint4& bits, float (&out)[8], __nv_bfloat16) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// A byte in the last place of 2^23 counts units: code + 128 set there, less 2^23 + 128, is the code. Two instructions
// at full rate, where the conversion of a byte to float runs at an eighth of it.
__device__ __forceinline__ void decode_vector(const uint4& bits, float (&out)[16], std::int8_t) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned biased = words[i] ^ 0x80808080u;
#pragma unroll
    for (int byte = 0; byte < 4; ++byte) {
      // The result: bytes 7, 5 and 4 (0x4b, 0, 0, of the second operand), then the code.
      const unsigned shifted = __byte_perm(biased, 0x4b000000u, 0x7540u + static_cast<unsigned>(byte));
      out[4 * i + byte] = __uint_as_float(shifted) - 8388736.0f;
    }
  }
}

__device__ __forceinline__ void decode_vector(const uint4& bits, float (&out)[16], __nv_fp8_e4m3) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto two = static_cast<__nv_fp8x2_storage_t>(words[i] >> (16 * half));
      const float2 pair = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3)));
      out[4 * i + 2 * half] = pair.x;
      out[4 * i + 2 * half + 1] = pair.y;
    }
  }
}

// ---- Activations whose type is known at run time ------------------------------------------------------------------

__device__ __forceinline__ float load_as_float(const void* data, std::int64_t index, DType dtype) {
  if (dtype == DType::f16) return to_float(static_cast<const __half*>(data)[index]);
  if (dtype == DType::bf16) return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

__device__ __forceinline__ void store_float(void* data, std::int64_t index, DType dtype, float value) {
  if (dtype == DType::f16) {
    static_cast<__half*>(data)[index] = from_float<__half>(value);
  } else if (dtype == DType::bf16) {
    static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

/// What a value is after it has been stored and read back.
__device__ __forceinline__ float rounded(float value, DType dtype) {
  if (dtype == DType::f16) return to_float(from_float<__half>(value));
  if (dtype == DType::bf16) return to_float(from_float<__nv_bfloat16>(value));
  return value;
}

// ---- One head of one token, held by a warp ------------------------------------------------------------------------

/// As AttentionStore has it; dims 0: nothing is rotated.
struct Rotation {
  const float* table = nullptr;
  std::int32_t dims = 0;
  bool interleaved = false;
};

/// Lane l has pairs l, l + 32, ... of the head's elements: those that are rotated together, then the others two by two.
/// Four pairs a lane make the 256 elements that a head may have.
inline constexpr int kLanePairs = 4;
struct HeadPairs {
  float first[kLanePairs];
  float second[kLanePairs];
};

/// The places of pair `index` in the head.
__device__ __forceinline__ int2 pair_places(int index, const Rotation& rotation) {
  const int half = rotation.dims / 2;
  if (index < half && !rotation.interleaved) return make_int2(index, index + half);
  return make_int2(2 * index, 2 * index + 1);
}

/// The cosines and sines that turn this lane's pairs; those that are not turned have none.
struct HeadAngles {
  float cosine[kLanePairs];
  float sine[kLanePairs];
};

__device__ __forceinline__ HeadAngles load_angles(const Rotation& rotation, int position) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int half = rotation.dims / 2;
  const float* const angles = rotation.table + static_cast<std::int64_t>(position) * rotation.dims;
  HeadAngles out{};
#pragma unroll
  for (int i = 0; i < kLanePairs; ++i) {
    const int index = lane + 32 * i;
    if (index < half) {
      out.cosine[i] = angles[index];
      out.sine[i] = angles[half + index];
    }
  }
  return out;
}

/// Loads a head, element 0 at `start`, and rotates it by `angles`; what was rotated is rounded to the type that it came
/// in, so that it is what a rotation in place followed by a load would give. All lanes of a warp.
__device__ __forceinline__ HeadPairs load_head(const void* data, std::int64_t start, DType dtype, int head_dim,
                                               const Rotation& rotation, const HeadAngles& angles) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int half = rotation.dims / 2;
  HeadPairs head;
#pragma unroll
  for (int i = 0; i < kLanePairs; ++i) {
    const int index = lane + 32 * i;
    float a = 0;
    float b = 0;
    if (2 * index < head_dim) {
      const int2 at = pair_places(index, rotation);
      a = load_as_float(data, start + at.x, dtype);
      b = load_as_float(data, start + at.y, dtype);
      if (index < half) {
        const float turned = __fmaf_rn(a, angles.cosine[i], -__fmul_rn(b, angles.sine[i]));
        b = rounded(__fmaf_rn(b, angles.cosine[i], __fmul_rn(a, angles.sine[i])), dtype);
        a = rounded(turned, dtype);
      }
    }
    head.first[i] = a;
    head.second[i] = b;
  }
  return head;
}

/// body(place, value) for each element that this lane holds.
template <typename Body>
__device__ __forceinline__ void each_element(const HeadPairs& head, int head_dim, const Rotation& rotation,
                                             const Body& body) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kLanePairs; ++i) {
    const int index = lane + 32 * i;
    if (2 * index < head_dim) {
      const int2 at = pair_places(index, rotation);
      body(at.x, head.first[i]);
      body(at.y, head.second[i]);
    }
  }
}

__device__ __forceinline__ float largest_magnitude(const HeadPairs& head) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kLanePairs; ++i) {
    largest = fmaxf(largest, fmaxf(fabsf(head.first[i]), fabsf(head.second[i])));
  }
  return warp_max(largest);
}

template <typename Code>
__device__ __forceinline__ Code encode(float value, float inverse) {
  if constexpr (std::is_same_v<Code, std::int8_t>) {
    return static_cast<std::int8_t>(__float2int_rn(fminf(fmaxf(value * inverse, -127.0f), 127.0f)));
  } else if constexpr (std::is_same_v<Code, __nv_fp8_e4m3>) {
    __nv_fp8_e4m3 code;
    code.__x = __nv_cvt_float_to_fp8(value * inverse, __NV_SATFINITE, __NV_E4M3);
    return code;
  } else {
    return from_float<Code>(value);
  }
}

/// What a head's values are multiplied by to become codes, and what codes are multiplied by.
struct CodeScale {
  float inverse = 1;
  float scale = 1;
};

/// Scales that e4m3 tries for a row, over the octave in which the largest magnitude becomes 448 to 224: the steps of a
/// float repeat with each octave.
inline constexpr int kScaleTrials = 16;

/// Which of the scales gives the least sum of squared errors. A few large values make up most of a key, and most of
/// what their errors do to scores: with their steps in the right places the sum is far below that of the largest
/// value's own scale, which makes it alone exact. All lanes of a warp; `inverse` is 448 / the largest magnitude.
__device__ __forceinline__ int best_scale_trial(const HeadPairs& head, float inverse) {
  static_assert(kScaleTrials == 16, "lanes 2 i and 2 i + 1 end up with trial i");
  // 2^(-i / 16).
  constexpr float kFactors[kScaleTrials] = {
      1.0f,        0.95760328f, 0.91700404f, 0.87812608f, 0.84089642f, 0.80524517f, 0.77110541f, 0.73841307f,
      0.70710678f, 0.67712777f, 0.64841978f, 0.62092891f, 0.59460356f, 0.56939432f, 0.54525387f, 0.52213689f};
  float errors[kScaleTrials];
#pragma unroll
  for (int trial = 0; trial < kScaleTrials; ++trial) errors[trial] = 0;
#pragma unroll
  for (int i = 0; i < kLanePairs; ++i) {
    // Heads of 64 and 128 elements have one and two pairs a lane.
    if (!__any_sync(0xffffffffu, head.first[i] != 0 || head.second[i] != 0)) continue;
    const float pair[2] = {head.first[i] * inverse, head.second[i] * inverse};
#pragma unroll
    for (int trial = 0; trial < kScaleTrials; ++trial) {
#pragma unroll
      for (const float value : pair) {
        // Rounds to the 4 leading bits: what is below the least normal code counts for nothing beside the largest.
        const float scaled = value * kFactors[trial];
        const float shifted = __fmul_rn(scaled, 1048577.0f);  // 2^20 + 1
        const float error = __fsub_rn(__fsub_rn(shifted, __fsub_rn(shifted, scaled)), scaled);
        errors[trial] = __fmaf_rn(error, error, errors[trial]);
      }
    }
  }
#pragma unroll
  for (int trial = 0; trial < kScaleTrials; ++trial) errors[trial] *= 1.0f / (kFactors[trial] * kFactors[trial]);
  // Each step adds the halves of the warp and leaves each half with half of the trials.
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = kScaleTrials / 2, offset = 16; half > 0; half /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? errors[i + half] : errors[i];
      const float sent = upper ? errors[i] : errors[i + half];
      errors[i] = kept + __shfl_xor_sync(0xffffffffu, sent, offset);
    }
  }
  const float sum = errors[0] + __shfl_xor_sync(0xffffffffu, errors[0], 1);
  // Sums are not negative, so their bits are in their order; the lowest four give way to the trial.
  const unsigned ranked = (__float_as_uint(sum) & ~15u) | static_cast<unsigned>(lane / 2);
  return static_cast<int>(__reduce_min_sync(0xffffffffu, ranked) & 15u);
}

/// All lanes of a warp.
template <typename Code>
__device__ __forceinline__ CodeScale code_scale(const HeadPairs& head) {
  CodeScale result;
  if constexpr (kHasScales<Code>) {
    const float largest = largest_magnitude(head);
    result.scale = largest / kLargestCode<Code>;
    result.inverse = largest > 0 ? kLargestCode<Code> / largest : 0;
    if constexpr (std::is_same_v<Code, __nv_fp8_e4m3>) {
      const float factor = exp2f(static_cast<float>(best_scale_trial(head, result.inverse)) * (-1.0f / kScaleTrials));
      result.scale /= factor;
      result.inverse *= factor;
    }
  }
  return result;
}

/// Writes a cache row (in global or shared memory), its padding included. All lanes of a warp.
template <typename Code>
__device__ __forceinline__ void write_row(const HeadPairs& head, const CodeScale& scale, const Rotation& rotation,
                                          int head_dim, int row_bytes, std::byte* row) {
  Code* const codes = reinterpret_cast<Code*>(row);
  each_element(head, head_dim, rotation,
               [&](int place, float value) { codes[place] = encode<Code>(value, scale.inverse); });
  const int padded = row_bytes / static_cast<int>(sizeof(Code));
  for (int place = head_dim + static_cast<int>(threadIdx.x % 32); place < padded; place += 32) {
    codes[place] = encode<Code>(0.0f, 0.0f);
  }
}

// ---- Arithmetic that both attention kernels share -----------------------------------------------------------------

/// A largest score as an exponent's offset: while all keys so far are masked it is -inf, and -inf - -inf is no number.
__device__ __forceinline__ float as_offset(float largest) { return largest == -INFINITY ? 0.0f : largest; }

}  // namespace nibble::cuda
