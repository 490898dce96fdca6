// The numbers of rows that captured passes have.
#pragma once

#include "core/checked.h"

#include <cstdint>

namespace nibble {

/// Rows that a captured pass of `rows` rows has: steps of 64 up to 2048, beyond that at most 3% more than asked for.
inline std::int64_t bucket_of(std::int64_t rows) {
  constexpr std::int64_t kStep = 64;
  constexpr std::int64_t kFine = 2048;
  constexpr std::int64_t kShare = 34;
  std::int64_t step = kStep;
  if (rows > kFine) {
    step = kStep / 2;
    while (2 * step * kShare <= rows) step *= 2;
  }
  return round_up(rows, step);
}

}  // namespace nibble
