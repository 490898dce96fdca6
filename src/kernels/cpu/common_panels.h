// The inner loops of the CPU's dense products, one set an instruction set. Weights stand in panels of 32 outputs: two
// zmm or four ymm of floats wide, and the blocks in which AMX and oneDNN (BA16a32b, BA16a32b2a) want them too.
//
// An f32 panel is [K][32]. A bf16 panel is [K/2][32][2]: pairs of k next to each other, as vdpbf16ps and tdpbf16ps take
// them; K is padded with zeros to a multiple of 32.
#pragma once

#include <cstdint>

namespace nibble::panels {

constexpr std::int64_t kWidth = 32;  // outputs
constexpr std::int64_t kPad = 32;    // K of a bf16 panel and of bf16 inputs is a multiple of this

/// out[m * 32 + n] = sum over k < K of x[m * stride + k] * panel[k][n], for m < rows.
using F32Product = void(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                        float* out);
/// The same with a bf16 panel and inputs that stay float. `k` is not padded.
using MixedProduct = void(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride,
                          std::int64_t rows, float* out);
/// The same with bf16 inputs. `k` is padded; x and out have room for a multiple of 16 rows (what stands there is of no
/// matter).
using Bf16Product = void(const std::uint16_t* panel, std::int64_t k, const std::uint16_t* x, std::int64_t stride,
                         std::int64_t rows, float* out);

/// sum of x[i]^2
using SumSquares = float(const float* x, std::int64_t k);
/// out[i] = x[i] * factor * weight[i]
using Scale = void(const float* x, const float* weight, float factor, std::int64_t k, float* out);
/// The same rounded to bf16 (weight may be null: 1), with zeros in [k, padded).
using ScaleBf16 = void(const float* x, const float* weight, float factor, std::int64_t k, std::int64_t padded,
                       std::uint16_t* out);
/// out[i] = up[i] * gate[i] * sigmoid(t), count a multiple of 16; t = gate[i] (SiLU), or with `gelu`
/// 2 sqrt(2/pi) (gate + 0.044715 gate^3), which is GELU's tanh form. Relative error below 1e-6.
using GatedSigmoid = void(const float* gate, const float* up, std::int64_t count, bool gelu, float* out);
/// y[m * y_stride + n] = residual[m * residual_stride + n] + (products[m * 32 + n] + bias[n]), for m < rows and n <
/// count <= 32; without the residual where it is null. y may be residual, or products with a stride of 32.
using FinishRows = void(const float* products, const float* bias, const float* residual, std::int64_t residual_stride,
                        std::int64_t rows, std::int64_t count, float* y, std::int64_t y_stride);

/// The best functions for active_isa(), chosen at each call.
struct Functions {
  F32Product* f32 = nullptr;
  MixedProduct* mixed = nullptr;
  Bf16Product* bf16 = nullptr;  // for many rows, with scale_bf16; null where `mixed` is the best for these too
  SumSquares* sum_squares = nullptr;
  Scale* scale = nullptr;
  ScaleBf16* scale_bf16 = nullptr;
  GatedSigmoid* gated_sigmoid = nullptr;
  FinishRows* finish = nullptr;
};
Functions functions();

/// Are products of bf16 pairs by vdpbf16ps faster than float ones here? False where active_isa() has none.
bool pairs_are_faster();

// One of each for each set; the scalar ones are the reference.
F32Product f32_scalar, f32_avx2, f32_avx512;
MixedProduct mixed_scalar, mixed_avx2, mixed_avx512;
Bf16Product bf16_avx512bf16, bf16_amx;
SumSquares sum_squares_scalar, sum_squares_avx2, sum_squares_avx512;
Scale scale_scalar, scale_avx2, scale_avx512;
ScaleBf16 scale_bf16_avx512bf16;
GatedSigmoid gated_sigmoid_scalar, gated_sigmoid_avx2, gated_sigmoid_avx512;
FinishRows finish_scalar, finish_avx2, finish_avx512;

}  // namespace nibble::panels
