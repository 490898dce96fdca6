// The numbers of rows that captured passes have.
#pragma once

#include "core/checked.h"

#include <cstdint>

namespace nibble {

constexpr std::int64_t kBucketStep = 64;
constexpr std::int64_t kMostFineRows = 2048;

/// Rows that a captured pass of `rows` rows has: steps of kBucketStep up to kMostFineRows, beyond that at most 3% more
/// than asked for.
inline std::int64_t bucket_of(std::int64_t rows) {
  constexpr std::int64_t kShare = 34;
  std::int64_t step = kBucketStep;
  if (rows > kMostFineRows) {
    step = kBucketStep / 2;
    while (2 * step * kShare <= rows) step *= 2;
  }
  return round_up(rows, step);
}

}  // namespace nibble
