// The scale and the zero point of a group of weights, and rounding to them: what GPTQ and round-to-nearest share.
#pragma once

#include <cstdint>

namespace nibble {

struct ScaleOptions {
  int bits = 4;           // 2, 3, 4 or 8
  bool symmetric = true;  // every zero point is 2^(bits-1)
  /// The least zero point of an asymmetric group. The v1 format stores zero - 1 and cannot hold 0; with 1 here it need
  /// not: a group without negative weights then spends one of its codes.
  int least_zero = 0;
  /// 0: the scale covers the group's largest weight. Otherwise the scale is shrunk, by up to 79% in steps of 1% of the
  /// full range, to where the sum of |error|^mse is least (2.4 in the publications). The grid is GPTQ's.
  double mse = 0;
};

/// Outputs that are handled at a time: with 128 input rows their weights take 32 KiB, so that a block stays in the
/// first-level cache of any current processor.
inline constexpr std::int64_t kOutputs = 64;

/// Scales and zero points of up to kOutputs groups that lie side by side: `weights` is [rows, outputs] with the given
/// row stride. scale = (max - min) / (2^bits - 1) with max >= 0 >= min over the group (symmetric: max = -min = the
/// largest magnitude), rounded to fp16 before it is used: the codes and the errors that GPTQ passes on are then those
/// of the stored scale. zero = round(-min / scale). scale, zero: [outputs].
void find_group_scales(const float* weights, std::int64_t rows, std::int64_t stride, std::int64_t outputs,
                       const ScaleOptions& options, float* scale, float* zero);

/// code = clamp(round(weight / scale) + zero, 0, 2^bits - 1), halves to even; rounded = scale * (code - zero). All
/// [outputs].
void round_weights(const float* weights, std::int64_t outputs, int bits, const float* scale, const float* zero,
                   std::uint8_t* code, float* rounded);

}  // namespace nibble
