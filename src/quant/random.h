// Random numbers that depend on nothing but a seed and a place: any thread can make any part, in any order.
#pragma once

#include <cstdint>

namespace nibble {

/// 64 random bits of (seed, stream, index), by the finaliser of SplitMix64 (Steele, Lea, Flood 2014; constants of its
/// variant 13) applied to the three in turn.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio: keeps neighbouring inputs apart
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  return mix(mix(mix(seed + kGolden) + stream + kGolden) + index * kGolden);
}

}  // namespace nibble
