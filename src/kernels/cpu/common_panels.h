// The inner loops of the CPU's dense products, one set an instruction set. Weights stand in panels of 32 outputs: two
// zmm or four ymm of floats wide, and the blocks in which AMX and oneDNN (BA16a32b, BA16a32b2a) want them too.
//
// An f32 panel is [K][32]. A bf16 panel is [K/2][32][2]: pairs of k next to each other, as vdpbf16ps and tdpbf16ps take
// them; K is padded with zeros to a multiple of 32.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstdint>

namespace nibble::panels {

constexpr std::int64_t kWidth = 32;  // outputs
constexpr std::int64_t kPad = 32;    // K of a bf16 panel and of bf16 inputs is a multiple of this
// Rows that are multiplied together: the height of the vector functions' tiles, or a multiple of it. Work is shared out
// and ordered by such tiles: blocks of 96 rows, the last with what was left, kept one thread waiting for the other (387
// rows, K 384, N 1536, two threads: 1.24 of the time of 384).
constexpr std::int64_t kTileRows = 12;

/// Where the 32 outputs of each row go: y = residual + (product + bias), without the residual where it is null. y may
/// be the residual. Written from registers as each tile of rows is done, so that waiting for memory hides behind the
/// next one's products: with products of 96 rows kept and then written, 512 rows of K 384 and N 1536 took 1.08 of the
/// time.
struct Output {
  float* y = nullptr;
  std::int64_t stride = 0;
  const float* bias = nullptr;  // [32]
  const float* residual = nullptr;
  std::int64_t residual_stride = 0;
};

/// Of row m the product is the sum over k < K of x[m * stride + k] * panel[k][n], for m < rows.
using F32Product = void(const float* panel, std::int64_t k, const float* x, std::int64_t stride, std::int64_t rows,
                        const Output& to);
/// The same with a bf16 panel and inputs that stay float. `k` is not padded.
using MixedProduct = void(const std::uint16_t* panel, std::int64_t k, const float* x, std::int64_t stride,
                          std::int64_t rows, const Output& to);
/// The same with bf16 inputs. `k` is padded; x has room for a multiple of 16 rows (what stands there is of no matter).
using Bf16Product = void(const std::uint16_t* panel, std::int64_t k, const std::uint16_t* x, std::int64_t stride,
                         std::int64_t rows, const Output& to);

/// sum of x[i]^2
using SumSquares = float(const float* x, std::int64_t k);
/// out[i] = x[i] * factor * weight[i]
using Scale = void(const float* x, const float* weight, float factor, std::int64_t k, float* out);
/// The same rounded to bf16 (weight may be null: 1), with zeros in [k, padded).
using ScaleBf16 = void(const float* x, const float* weight, float factor, std::int64_t k, std::int64_t padded,
                       std::uint16_t* out);
/// y[m * stride + n] = act(x[m * 32 + n]) for m < rows and n < count <= 32.
using Activate = void(ActivationKind kind, const float* x, std::int64_t rows, std::int64_t count, float* y,
                      std::int64_t stride);
/// The same of act(gate[m * 32 + n]) * up[m * 32 + n].
using Gate = void(ActivationKind kind, const float* gate, const float* up, std::int64_t rows, std::int64_t count,
                  float* y, std::int64_t stride);

/// The best functions for active_isa(), chosen at each call.
struct Functions {
  F32Product* f32 = nullptr;
  MixedProduct* mixed = nullptr;
  Bf16Product* bf16 = nullptr;  // with scale_bf16, from bf16_rows rows on; null where `mixed` is the best for all
  std::int64_t bf16_rows = 0;
  std::int64_t bf16_tile = 0;  // as kTileRows, of this one: parts of a call start at multiples of it
  SumSquares* sum_squares = nullptr;
  Scale* scale = nullptr;
  ScaleBf16* scale_bf16 = nullptr;
  Activate* activate = nullptr;
  Gate* gate = nullptr;
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
Activate activate_scalar, activate_avx2, activate_avx512;
Gate gate_scalar, gate_avx2, gate_avx512;

}  // namespace nibble::panels
