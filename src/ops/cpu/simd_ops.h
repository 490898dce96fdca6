// The functions of an OpTable, but for attention, over the registers of core/simd_avx2.h or core/simd_avx512.h, one of
// which is included before, with core/simd_math.h and kernels/cpu/simd_activations.h. Everything is in an unnamed
// namespace, as there.
#pragma once

#include "ops/cpu/op_table.h"

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {
namespace {

void embed(const void* row, DType dtype, float scale, std::int64_t n, float* y) {
  const Reg factor = Vec::set1(scale);
  if (dtype == DType::f32) {
    const float* x = static_cast<const float*>(row);
    for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
      store_some(y + i, lanes, Vec::mul(load_some(x + i, lanes), factor));
    });
    return;
  }
  const std::uint16_t* x = static_cast<const std::uint16_t*>(row);
  for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
    std::uint16_t part[Vec::kLanes] = {};
    const std::uint16_t* from = x + i;
    if (lanes < Vec::kLanes) {
      for (std::int64_t j = 0; j < lanes; ++j) part[j] = from[j];
      from = part;
    }
    store_some(y + i, lanes, Vec::mul(dtype == DType::f16 ? Vec::from_half(from) : Vec::from_bf16(from), factor));
  });
}

// Four chains, so that an addition need not wait for the one before.
template <typename Term>
inline float sum_of(std::int64_t n, const Term& term) {
  Reg a = Vec::zero();
  Reg b = Vec::zero();
  Reg c = Vec::zero();
  Reg d = Vec::zero();
  std::int64_t i = 0;
  for (; i + 4 * Vec::kLanes <= n; i += 4 * Vec::kLanes) {
    a = term(a, i, std::int64_t{Vec::kLanes});
    b = term(b, i + Vec::kLanes, std::int64_t{Vec::kLanes});
    c = term(c, i + 2 * Vec::kLanes, std::int64_t{Vec::kLanes});
    d = term(d, i + 3 * Vec::kLanes, std::int64_t{Vec::kLanes});
  }
  for (; i < n; i += Vec::kLanes) a = term(a, i, n - i < Vec::kLanes ? n - i : std::int64_t{Vec::kLanes});
  return Vec::sum(Vec::add(Vec::add(a, b), Vec::add(c, d)));
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t n, float* y) {
  const float squares = sum_of(n, [x](Reg sum, std::int64_t i, std::int64_t lanes) {
    const Reg v = load_some(x + i, lanes);
    return Vec::fma(v, v, sum);
  });
  const Reg factor = Vec::set1(1 / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
  for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
    Reg v = Vec::mul(load_some(x + i, lanes), factor);
    if (weight != nullptr) v = Vec::mul(v, load_some(weight + i, lanes));
    store_some(y + i, lanes, v);
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, std::int64_t n, float* y) {
  const float mean =
      sum_of(n, [x](Reg sum, std::int64_t i, std::int64_t lanes) { return Vec::add(sum, load_some(x + i, lanes)); }) /
      static_cast<float>(n);
  const Reg center = Vec::set1(mean);
  const float squares = sum_of(n, [x, center](Reg sum, std::int64_t i, std::int64_t lanes) {
    Reg v = Vec::sub(load_some(x + i, lanes), center);
    // Lanes past the end count as 0, not as -mean.
    if (lanes < Vec::kLanes) {
      float part[Vec::kLanes];
      Vec::store(part, v);
      v = Vec::load_part(part, lanes);
    }
    return Vec::fma(v, v, sum);
  });
  const Reg factor = Vec::set1(1 / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
  for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
    Reg v = Vec::mul(Vec::sub(load_some(x + i, lanes), center), factor);
    if (weight != nullptr) v = Vec::mul(v, load_some(weight + i, lanes));
    if (bias != nullptr) v = Vec::add(v, load_some(bias + i, lanes));
    store_some(y + i, lanes, v);
  });
}

void rotate(float* head, const float* cosines, const float* sines, std::int64_t pairs, bool interleaved) {
  if (interleaved) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      const float a = head[2 * i];
      const float b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  for_registers(pairs, [&](std::int64_t i, std::int64_t lanes) {
    const Reg a = load_some(head + i, lanes);
    const Reg b = load_some(head + pairs + i, lanes);
    const Reg c = load_some(cosines + i, lanes);
    const Reg s = load_some(sines + i, lanes);
    store_some(head + i, lanes, Vec::sub(Vec::mul(a, c), Vec::mul(b, s)));
    store_some(head + pairs + i, lanes, Vec::fma(a, s, Vec::mul(b, c)));
  });
}

void activate(ActivationKind kind, const float* x, std::int64_t n, float* y) {
  with_activation(kind, [=](const auto& act) {
    for_registers(n,
                  [&](std::int64_t i, std::int64_t lanes) { store_some(y + i, lanes, act(load_some(x + i, lanes))); });
  });
}

void gated(ActivationKind kind, const float* gate, const float* up, std::int64_t n, float* y) {
  with_activation(kind, [=](const auto& act) {
    for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
      store_some(y + i, lanes, Vec::mul(act(load_some(gate + i, lanes)), load_some(up + i, lanes)));
    });
  });
}

void add(const float* a, const float* b, std::int64_t n, float* y) {
  for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
    store_some(y + i, lanes, Vec::add(load_some(a + i, lanes), load_some(b + i, lanes)));
  });
}

std::int64_t argmax(const float* x, std::int64_t n, float* value) {
  const float lowest = -__builtin_inff();
  Reg best = Vec::set1(lowest);
  std::int64_t i = 0;
  // NaN is the first operand's: max keeps the second.
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) best = Vec::max(Vec::load(x + i), best);
  float largest = Vec::largest(best);
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  *value = largest;
  const Reg wanted = Vec::set1(largest);
  for (i = 0; i + Vec::kLanes <= n; i += Vec::kLanes) {
    const unsigned hits = Vec::equal(Vec::load(x + i), wanted);
    if (hits != 0) return i + __builtin_ctz(hits);
  }
  for (; i < n; ++i) {
    if (x[i] == largest) return i;
  }
  return -1;
}

double exp_weights(float* x, std::int64_t n, float max, float inverse_temperature) {
  const Reg top = Vec::set1(max);
  const Reg factor = Vec::set1(inverse_temperature * kLog2E);
  Vec::DoubleSum sum;
  for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
    // NaN is the first operand's: max keeps the 0.
    const Reg w = Vec::max(exp2(Vec::mul(Vec::sub(load_some(x + i, lanes), top), factor)), Vec::zero());
    store_some(x + i, lanes, w);
    sum.add(load_some(x + i, lanes));
  });
  return sum.total();
}

// One row of one head as words of the cache: floats, halves or pairs of bf16 dimensions.
void store_k_row(DType dtype, const float* k, std::int64_t head_dim, std::byte* plane, std::int64_t token) {
  constexpr std::int64_t kBlock = 16;
  const std::int64_t block = token / kBlock * head_dim * kBlock;
  const std::int64_t lane = token % kBlock;
  if (dtype == DType::f32) {
    float* to = reinterpret_cast<float*>(plane) + block + lane;
    for (std::int64_t d = 0; d < head_dim; ++d) to[d * kBlock] = k[d];
    return;
  }
  alignas(64) std::uint16_t row[kMaxHeadDim];
  if (dtype == DType::f16) {
    for (std::int64_t d = 0; d < head_dim; d += Vec::kLanes) {
      const std::int64_t lanes = head_dim - d < Vec::kLanes ? head_dim - d : std::int64_t{Vec::kLanes};
      Vec::to_half(row + d, load_some(k + d, lanes));
    }
    std::uint16_t* to = reinterpret_cast<std::uint16_t*>(plane) + block + lane;
    for (std::int64_t d = 0; d < head_dim; ++d) to[d * kBlock] = row[d];
    return;
  }
  alignas(64) std::uint32_t words[kMaxHeadDim];
  for (std::int64_t d = 0; d < head_dim; d += Vec::kLanes) {
    const std::int64_t lanes = head_dim - d < Vec::kLanes ? head_dim - d : std::int64_t{Vec::kLanes};
    Vec::store_bf16_words(words + d, load_some(k + d, lanes));
  }
  std::uint32_t* to = reinterpret_cast<std::uint32_t*>(plane) + block / 2 + lane;
  for (std::int64_t d = 0; d < head_dim; d += 2) to[d / 2 * kBlock] = words[d] | (words[d + 1] << 16);
}

void store_k(DType dtype, const float* k, std::int64_t stride, std::int64_t tokens, std::int64_t head_dim,
             std::byte* plane, std::int64_t token) {
  constexpr std::int64_t kBlock = 16;
  if (tokens != kBlock || token % kBlock != 0) {
    for (std::int64_t t = 0; t < tokens; ++t) store_k_row(dtype, k + t * stride, head_dim, plane, token + t);
    return;
  }
  // A whole block: a register of one dimension of several tokens at a time.
  const std::int64_t block = token * head_dim;
  for (std::int64_t lane = 0; lane < kBlock; lane += Vec::kLanes) {
    const float* from = k + lane * stride;
    for (std::int64_t d = 0; d < head_dim; d += dtype == DType::bf16 ? 2 : 1) {
      const Reg x = Vec::gather(from + d, stride);
      if (dtype == DType::f32) {
        Vec::store(reinterpret_cast<float*>(plane) + block + d * kBlock + lane, x);
      } else if (dtype == DType::f16) {
        Vec::to_half(reinterpret_cast<std::uint16_t*>(plane) + block + d * kBlock + lane, x);
      } else {
        Vec::store_bf16_pairs(reinterpret_cast<std::uint16_t*>(plane) + block + d * kBlock + 2 * lane, x,
                              Vec::gather(from + d + 1, stride));
      }
    }
  }
}

void store_v(DType dtype, const float* v, std::int64_t stride, std::int64_t tokens, std::int64_t head_dim,
             std::byte* plane, std::int64_t token) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* from = v + t * stride;
    if (dtype == DType::f32) {
      float* to = reinterpret_cast<float*>(plane) + (token + t) * head_dim;
      for_registers(head_dim,
                    [&](std::int64_t d, std::int64_t lanes) { store_some(to + d, lanes, load_some(from + d, lanes)); });
      continue;
    }
    if (dtype == DType::f16) {
      std::uint16_t* to = reinterpret_cast<std::uint16_t*>(plane) + (token + t) * head_dim;
      for_registers(head_dim, [&](std::int64_t d, std::int64_t lanes) {
        alignas(64) std::uint16_t part[Vec::kLanes];
        Vec::to_half(part, load_some(from + d, lanes));
        for (std::int64_t j = 0; j < lanes; ++j) to[d + j] = part[j];
      });
      continue;
    }
    std::uint16_t* to = reinterpret_cast<std::uint16_t*>(plane) + (token + t) / 2 * 2 * head_dim;
    const bool pair = (token + t) % 2 == 0 && t + 1 < tokens && head_dim % Vec::kLanes == 0;
    if (pair) {
      for (std::int64_t d = 0; d < head_dim; d += Vec::kLanes) {
        Vec::store_bf16_pairs(to + 2 * d, Vec::load(from + d), Vec::load(from + stride + d));
      }
      ++t;
      continue;
    }
    // The other token of the pair may be another thread's: only this one's halves are written.
    for_registers(head_dim, [&](std::int64_t d, std::int64_t lanes) {
      alignas(64) std::uint32_t words[Vec::kLanes];
      Vec::store_bf16_words(words, load_some(from + d, lanes));
      for (std::int64_t j = 0; j < lanes; ++j) to[2 * (d + j) + (token + t) % 2] = static_cast<std::uint16_t>(words[j]);
    });
  }
}

void merge(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, std::int64_t n) {
  if (sum2 == 0) return;
  const float top = max2 > *max ? max2 : *max;
  float scale[Vec::kLanes];
  float scale2[Vec::kLanes];
  Vec::store(scale, exp2(Vec::set1(*max - top)));
  Vec::store(scale2, exp2(Vec::set1(max2 - top)));
  const Reg s = Vec::set1(scale[0]);
  const Reg s2 = Vec::set1(scale2[0]);
  for (std::int64_t i = 0; i < n; i += Vec::kLanes) {
    Vec::store(acc + i, Vec::fma(Vec::load(acc + i), s, Vec::mul(Vec::load(acc2 + i), s2)));
  }
  *sum = *sum * scale[0] + sum2 * scale2[0];
  *max = top;
}

void finish(const float* acc, float sum, std::int64_t n, float* y) {
  const Reg factor = Vec::set1(1 / sum);
  for_registers(n, [&](std::int64_t i, std::int64_t lanes) {
    store_some(y + i, lanes, Vec::mul(load_some(acc + i, lanes), factor));
  });
}

}  // namespace
}  // namespace nibble::cpu
