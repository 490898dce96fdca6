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

// The largest score, and the factor of what was summed before it was known.
struct Top {
  float largest;
  float factor;
};
inline Top top_of(const float* scores, std::int64_t n, float factor, const float* bias, float before) {
  const Reg times = Vec::set1(factor);
  Reg most = Vec::set1(before);
  for_registers(n, [&](std::int64_t j, std::int64_t lanes) {
    Reg s = Vec::mul(load_some(scores + j, lanes), times);
    if (bias != nullptr) s = Vec::add(s, load_some(bias + j, lanes));
    if (lanes < Vec::kLanes) s = Vec::keep_range(s, 0, 0, lanes);
    most = Vec::max(most, s);
  });
  const float largest = Vec::largest(most);
  float lanes[Vec::kLanes];
  Vec::store(lanes, exp2(Vec::set1(before - largest)));
  return {largest, lanes[0]};
}

float soften(const float* scores, std::int64_t n, std::int64_t padded, float factor, const float* bias, void* p,
             float* max, float* sum) {
  const Top top = top_of(scores, n, factor, bias, *max);
  float* const to = static_cast<float*>(p);
  const Reg times = Vec::set1(factor);
  const Reg minus = Vec::set1(-top.largest);
  Reg total = Vec::zero();
  for_registers(n, [&](std::int64_t j, std::int64_t lanes) {
    Reg s = Vec::fma(load_some(scores + j, lanes), times, minus);
    if (bias != nullptr) s = Vec::add(s, load_some(bias + j, lanes));
    if (lanes < Vec::kLanes) s = Vec::keep_range(s, 0, 0, lanes);
    const Reg e = exp2(s);
    total = Vec::add(total, e);
    store_some(to + j, lanes, e);
  });
  for (std::int64_t j = n; j < padded; ++j) to[j] = 0;
  *max = top.largest;
  *sum = *sum * top.factor + Vec::sum(total);
  return top.factor;
}

constexpr SelfAttentionOps kSelfAttentionOps{pack_keys, pack_values, soften};

}  // namespace
}  // namespace nibble::cpu
