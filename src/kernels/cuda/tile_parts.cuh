// What the kernels of tile_gemm.h share: how a product is described to them, and how its bias and results are moved.
#pragma once

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"
#include "kernels/cuda/activation_16.cuh"
#include "kernels/cuda/tma.cuh"

#include <cstdint>
#include <type_traits>

namespace nibble::tile {

constexpr int kDepth = 64;    // elements of k a step: 128 bytes, the width of the swizzle
constexpr int kAlign = 1024;  // of stages: a block of the swizzle

// What is computed of x: x, gelu(x), x * sigmoid(u), 2 * sigmoid(u) - 1 with u = x * (linear + cubic * x^2), or
// max(x, 0).
enum class Form { identity, gelu, sigmoid, tanh, relu };

struct Output {
  void* y = nullptr;
  std::int64_t y_stride = 0;
  const void* bias = nullptr;  // [n] or null
  int m = 0, n = 0;
  Form form = Form::identity;
  float linear = 0, cubic = 0;  // of Form::sigmoid and Form::tanh
};

struct Identity {
  __device__ __forceinline__ float operator()(float x) const { return x; }
};

struct Gelu {
  __device__ __forceinline__ float operator()(float x) const { return short_gelu(x); }
};

struct OtherActivation {
  Form form;
  float linear;
  float cubic;
  __device__ __forceinline__ float operator()(float x) const {
    const float s = __fdividef(1.0f, 1.0f + __expf(-x * fmaf(cubic, x * x, linear)));
    return form == Form::sigmoid ? x * s : form == Form::tanh ? 2 * s - 1 : fmaxf(x, 0.0f);
  }
};

template <typename Activation>
__device__ __forceinline__ Activation activation_of(const Output& out) {
  if constexpr (std::is_same_v<Activation, OtherActivation>) {
    return {out.form, out.linear, out.cubic};
  } else {
    return {};
  }
}

__device__ __forceinline__ float2 values_of(unsigned pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
__device__ __forceinline__ float2 values_of(unsigned pair, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

__device__ __forceinline__ void store_matrices(std::uint32_t to, unsigned a, unsigned b, unsigned c, unsigned d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// Writes eight columns of a row, which lie at `from` in shared memory.
template <typename T>
__device__ __forceinline__ void store_piece(const Output& out, std::uint32_t from, int row, int column) {
  uint4 eight;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
               : "r"(from)
               : "memory");
  *reinterpret_cast<uint4*>(static_cast<T*>(out.y) + row * out.y_stride + column) = eight;
}

// The bias of a thread's two columns beside each other.
template <typename T>
__device__ __forceinline__ unsigned bias_at(const Output& out, int column) {
  if (out.bias == nullptr || column >= out.n) return 0;
  return *reinterpret_cast<const unsigned*>(static_cast<const T*>(out.bias) + column);
}

// Brings the bias of a tile's columns to `to` in shared memory, as floats, for the warp that calls.
template <typename T, int kColumns>
__device__ __forceinline__ void bring_bias(const Output& out, std::uint32_t to, int column0) {
  constexpr int kPiece = 8;  // columns of a lane, 16 bytes
  static_assert(kColumns <= 32 * kPiece);
  const int from = static_cast<int>(threadIdx.x) % 32 * kPiece;
  __syncwarp();
  if (from < kColumns) {
#pragma unroll
    for (int i = 0; i < kPiece / 4; ++i) {
      const float2 a = values_of(bias_at<T>(out, column0 + from + 4 * i), T{});
      const float2 b = values_of(bias_at<T>(out, column0 + from + 4 * i + 2), T{});
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + from * 4 + i * 16), "f"(a.x), "f"(a.y),
                   "f"(b.x), "f"(b.y)
                   : "memory");
    }
  }
  __syncwarp();
}

// Of two columns beside each other, out of what bring_bias() brought.
__device__ __forceinline__ float2 bias_of(std::uint32_t from, int column) {
  float2 out;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(out.x), "=f"(out.y) : "r"(from + column * 4) : "memory");
  return out;
}

}  // namespace nibble::tile
