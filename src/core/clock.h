#pragma once

#include <chrono>

namespace nibble {

/// Seconds of wall time from `start` until now, by the clock that nobody sets.
inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace nibble
