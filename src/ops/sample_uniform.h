// The random numbers of sampling: the same on every device.
#pragma once

#include <cstdint>

namespace nibble {

/// The output function of splitmix64.
constexpr std::uint64_t splitmix64(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// A number in [0, 1) for a draw: the upper 53 bits of splitmix64(splitmix64(position) ^ seed).
constexpr double sample_uniform(std::uint64_t seed, std::int64_t position) {
  return static_cast<double>(splitmix64(splitmix64(static_cast<std::uint64_t>(position)) ^ seed) >> 11) * 0x1p-53;
}

}  // namespace nibble
