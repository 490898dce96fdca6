// Arithmetic on sizes that come from files: it reports overflow instead of wrapping.
#pragma once

#include "core/error.h"

#include <concepts>
#include <span>
#include <string_view>

namespace nibble {

/// a * b, or Error naming `what` where the product does not fit.
template <std::integral T>
T checked_mul(T a, T b, std::string_view what) {
  T out;
  if (__builtin_mul_overflow(a, b, &out))
    fail("{} is too large: {} x {} does not fit in {} bits", what, a, b, sizeof(T) * 8);
  return out;
}

/// a + b, or Error naming `what` where the sum does not fit.
template <std::integral T>
T checked_add(T a, T b, std::string_view what) {
  T out;
  if (__builtin_add_overflow(a, b, &out))
    fail("{} is too large: {} + {} does not fit in {} bits", what, a, b, sizeof(T) * 8);
  return out;
}

/// The quotient rounded up, for non-negative a and positive b.
template <std::integral T>
constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

/// a rounded up to a multiple of b.
template <std::integral T>
constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

}  // namespace nibble
