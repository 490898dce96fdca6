// Functions over the registers of simd_avx2.h or simd_avx512.h, one of which is included before. Everything is in an
// unnamed namespace and calls nothing of the standard library: each unit has its own copy, compiled for its processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {
namespace {

using Reg = Vec::Reg;
constexpr float kLog2E = 1.44269504f;

// 2^x by x = floor + fraction and a polynomial on [0, 1), minimax in the relative error with 2^0 = 1 exactly (found by
// the Remez exchange): 8.3e-8, below 2.1e-7 with the rounding of the sum. 0 for x below -126 or so, NaN for NaN.
inline Reg exp2(Reg x) {
  const Vec::Split s = Vec::split_clamped(x);
  Reg p = Vec::fma(Vec::set1(0.001867130072f), s.fraction, Vec::set1(0.009017030316f));
  p = Vec::fma(p, s.fraction, Vec::set1(0.05579991311f));
  p = Vec::fma(p, s.fraction, Vec::set1(0.2401644502f));
  p = Vec::fma(p, s.fraction, Vec::set1(0.6931513118f));
  p = Vec::fma(p, s.fraction, Vec::set1(1));
  return Vec::scale(p, s.floor, x);
}

// The same with three terms: relative error 8.6e-5, for values that are then rounded to bf16 (2e-3).
inline Reg exp2_coarse(Reg x) {
  const Vec::Split s = Vec::split_clamped(x);
  Reg p = Vec::fma(Vec::set1(0.077067042f), s.fraction, Vec::set1(0.2276449912f));
  p = Vec::fma(p, s.fraction, Vec::set1(0.6951167864f));
  p = Vec::fma(p, s.fraction, Vec::set1(1));
  return Vec::scale(p, s.floor, x);
}

// 1 / (1 + 2^-x). The power is kept below 2^100, so that its reciprocal is one of a finite number.
inline Reg sigmoid2(Reg x) {
  const Reg minus = Vec::min(Vec::set1(100), Vec::sub(Vec::zero(), x));
  return Vec::reciprocal(Vec::add(Vec::set1(1), exp2(minus)));
}

// x * 1 / (1 + 2^-z), for z of x's sign and at least as large from -1e4 down, where the product is 0: there sigmoid2 no
// longer falls, and must not meet the whole of x.
inline Reg times_sigmoid2(Reg x, Reg z) { return Vec::mul(Vec::max(Vec::set1(-1e4f), x), sigmoid2(z)); }

// tanh(x) = 2 / (1 + e^-2x) - 1, to 1e-7 absolute.
inline Reg tanh(Reg x) { return Vec::fma(Vec::set1(2), sigmoid2(Vec::mul(x, Vec::set1(2 * kLog2E))), Vec::set1(-1)); }

// Calls body(offset, lanes) for each register of n elements; the last may be partial.
template <typename Body>
inline void for_registers(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) body(i, std::int64_t{Vec::kLanes});
  if (i < n) body(i, n - i);
}

inline Reg load_some(const float* p, std::int64_t lanes) {
  return lanes == Vec::kLanes ? Vec::load(p) : Vec::load_part(p, lanes);
}
inline void store_some(float* p, std::int64_t lanes, Reg x) {
  if (lanes == Vec::kLanes) {
    Vec::store(p, x);
  } else {
    Vec::store_part(p, lanes, x);
  }
}

}  // namespace
}  // namespace nibble::cpu
