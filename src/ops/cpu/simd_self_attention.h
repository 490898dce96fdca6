// SelfAttentionOps for panels of floats, over the registers of core/simd_avx2.h or core/simd_avx512.h, one of which is
// included before, with core/simd_math.h. Everything is in an unnamed namespace, as there.
#pragma once

#include "ops/cpu/self_attention_ops.h"

#include <cstdint>

namespace nibble::cpu {
namespace {

void pack_keys(const float* k, std::int64_t stride, std::int64_t keys, std::int64_t dim, void* panel) {
  constexpr std::int64_t kLanes = Vec::kLanes;
  float* const to = static_cast<float*>(panel);
  for (std::int64_t key = 0; key < kPanel; key += kLanes) {
    for_registers(dim, [&](std::int64_t d, std::int64_t lanes) {
      Reg x[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) {
        x[i] = key + i < keys ? load_some(k + (key + i) * stride + d, lanes) : Vec::zero();
      }
      Vec::transpose(x);
      for (std::int64_t i = 0; i < lanes; ++i) Vec::store(to + (d + i) * kPanel + key, x[i]);
    });
  }
}

void pack_values(const float* v, std::int64_t stride, std::int64_t keys, std::int64_t dims, void* panel) {
  float* const to = static_cast<float*>(panel);
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t d = 0; d < kPanel; d += Vec::kLanes) {
      const std::int64_t lanes = dims - d < Vec::kLanes ? dims - d : std::int64_t{Vec::kLanes};
      Vec::store(to + j * kPanel + d, lanes > 0 ? load_some(v + j * stride + d, lanes) : Vec::zero());
    }
  }
}

// s[j] in base 2, of some lanes, those past the end 0.
template <bool kBias>
inline Reg score_of(const float* scores, std::int64_t j, std::int64_t lanes, Reg factor, const float* bias) {
  const Reg s = load_some(scores + j, lanes);
  return kBias ? Vec::fma(s, factor, load_some(bias + j, lanes)) : Vec::mul(s, factor);
}

template <bool kBias>
inline float largest_by(const float* scores, std::int64_t n, float factor, const float* bias) {
  const Reg times = Vec::set1(factor);
  Reg most = Vec::set1(-__builtin_inff());
  for_registers(n, [&](std::int64_t j, std::int64_t lanes) {
    Reg s = score_of<kBias>(scores, j, lanes, times, bias);
    if (lanes < Vec::kLanes) s = Vec::keep_range(s, 0, 0, lanes);
    most = Vec::max(most, s);
  });
  return Vec::largest(most);
}

float largest(const float* scores, std::int64_t n, float factor, const float* bias) {
  return bias != nullptr ? largest_by<true>(scores, n, factor, bias) : largest_by<false>(scores, n, factor, bias);
}

// As SelfAttentionOps::soften, for n keys; power is 2^x, and store(j, lanes, p) keeps some probabilities.
template <bool kBias, typename Power, typename Store>
inline float soften_by(const Power& power, const Store& store, const float* scores, std::int64_t n, float factor,
                       const float* bias, float top) {
  const Reg times = Vec::set1(factor);
  const Reg base = Vec::set1(top);
  Reg total = Vec::zero();
  for_registers(n, [&](std::int64_t j, std::int64_t lanes) {
    Reg s = Vec::sub(score_of<kBias>(scores, j, lanes, times, bias), base);
    if (lanes < Vec::kLanes) s = Vec::keep_range(s, 0, 0, lanes);
    const Reg p = power(s);
    total = Vec::add(total, p);
    store(j, lanes, p);
  });
  return Vec::sum(total);
}

float soften(const float* scores, std::int64_t n, std::int64_t padded, float factor, const float* bias, float top,
             void* p) {
  float* const to = static_cast<float*>(p);
  const auto power = [](Reg x) { return exp2(x); };
  const auto store = [to](std::int64_t j, std::int64_t lanes, Reg x) { store_some(to + j, lanes, x); };
  const float sum = bias != nullptr ? soften_by<true>(power, store, scores, n, factor, bias, top)
                                    : soften_by<false>(power, store, scores, n, factor, bias, top);
  for (std::int64_t j = n; j < padded; ++j) to[j] = 0;
  return sum;
}

constexpr SelfAttentionOps kSelfAttentionOps{pack_keys, pack_values, largest, soften};

}  // namespace
}  // namespace nibble::cpu
