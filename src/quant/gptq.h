// GPTQ on one linear layer (Frantar et al., arXiv 2210.17323), and round-to-nearest beside it.
#pragma once

#include "quant/hessian.h"

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

struct GptqOptions {
  int bits = 4;                   // 2, 3, 4 or 8
  std::int64_t group_size = 128;  // input features a scale; -1: all
  bool symmetric = true;          // zero points are 2^(bits-1)
  ColumnOrder order = ColumnOrder::original;
  bool static_groups = false;  // scales of all groups from the weights as they came, before any error is passed on
  double damp_percent = 0.01;
  double damp_increment = 0.01;
  std::int64_t block_size = 128;  // columns between two updates of all that follow
  double mse = 0;                 // exponent of the search for scales, 0: none (group_scale.h)
  int least_zero = 0;             // 1 for formats that cannot store a zero point of 0 (group_scale.h)
};

/// A quantised matrix: W[n, k] = scales[g_idx[k], n] * (codes[k, n] - zeros[g_idx[k], n]).
struct QuantizedLinear {
  int bits = 4;
  std::int64_t in_features = 0;     // K
  std::int64_t out_features = 0;    // N
  std::int64_t group_size = 0;      // K where the options say -1
  std::int64_t groups = 0;          // ceil(K / group_size)
  std::vector<std::uint8_t> codes;  // [K, N]
  std::vector<float> scales;        // [groups, N], each an fp16 value
  std::vector<std::uint8_t> zeros;  // [groups, N]
  std::vector<std::int32_t> g_idx;  // [K]
  /// GPTQ: the sum of half the squared errors that it minimises, (w - q)^2 / U_ii^2 / 2. Round-to-nearest: 0.
  double loss = 0;
  /// True where H could not be factored and the layer was rounded to nearest instead.
  bool fell_back = false;

  /// Writes the matrix that a reader of the stored tensors gets: weight [N, K].
  void dequantize(std::span<float> weight) const;
};

/// Throws UsageError for bits, group and block sizes, damping or exponents that are out of range, and for static groups
/// or orders that contradict each other.
void check_options(const GptqOptions& options);

/// The part of the options that factor_hessian() needs.
FactorOptions factor_options(const GptqOptions& options);

/// Quantises weight [N, K] column by column, each column's rounding error passed on to those that follow.
/// The scales of a group are found when its first column is reached, from weights that hold all errors passed on so
/// far, inside of a block too: AutoGPTQ takes them from before the block, so that its result depends on the block size.
/// Codes and scales are final: a reader computes exactly the weights whose errors were passed on.
/// The result does not depend on how outputs are split among threads. Throws Error where a weight is not finite.
QuantizedLinear quantize_layer(std::span<const float> weight, std::int64_t out_features, const HessianFactor& factor,
                               const GptqOptions& options);

/// The same in one call.
QuantizedLinear quantize_layer(std::span<const float> weight, std::int64_t out_features, const Hessian& hessian,
                               const GptqOptions& options);

/// Each weight to the nearest code of its group: scales as quantize_layer's, no errors passed on, plain order of
/// groups.
QuantizedLinear round_to_nearest(std::span<const float> weight, std::int64_t out_features, std::int64_t in_features,
                                 const GptqOptions& options);

}  // namespace nibble
