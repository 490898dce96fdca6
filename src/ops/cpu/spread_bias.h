// The bias that attention without a cache adds to its scores, by distance.
#pragma once

#include "ops/backend.h"

#include <algorithm>
#include <cstdint>
#include <numbers>

namespace nibble::cpu {

/// A head's bias in base 2 for all distances in a sequence of `rows` rows, written to `to` [2 * rows - 1]: row 0 reads
/// a run of it from the pointer returned on, row i from i floats before.
inline const float* spread_bias(const SelfAttentionArgs& args, std::int64_t head, std::int64_t rows, float* to) {
  const std::int64_t reach = args.bias_reach;
  const float* from = args.bias + head * (2 * reach + 1) + reach;
  float* const middle = to + rows - 1;
  for (std::int64_t d = 1 - rows; d < rows; ++d) {
    middle[d] = from[std::clamp(d, -reach, reach)] * std::numbers::log2e_v<float>;
  }
  return middle;
}

}  // namespace nibble::cpu
