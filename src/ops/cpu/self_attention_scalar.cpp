// The reference: plain C++, one element at a time.
#include "core/cpu.h"
#include "ops/cpu/self_attention_ops.h"

#include <algorithm>
#include <cmath>

namespace nibble::cpu {
namespace {

void pack_keys(const float* k, std::int64_t stride, std::int64_t keys, std::int64_t dim, void* panel) {
  auto* to = static_cast<float*>(panel);
  for (std::int64_t d = 0; d < dim; ++d) {
    for (std::int64_t j = 0; j < kPanel; ++j) to[d * kPanel + j] = j < keys ? k[j * stride + d] : 0;
  }
}

void pack_values(const float* v, std::int64_t stride, std::int64_t keys, std::int64_t dims, void* panel) {
  auto* to = static_cast<float*>(panel);
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t d = 0; d < kPanel; ++d) to[j * kPanel + d] = d < dims ? v[j * stride + d] : 0;
  }
}

float score(const float* scores, std::int64_t j, float factor, const float* bias) {
  return scores[j] * factor + (bias != nullptr ? bias[j] : 0);
}

float largest(const float* scores, std::int64_t n, float factor, const float* bias) {
  float most = score(scores, 0, factor, bias);
  for (std::int64_t j = 1; j < n; ++j) most = std::max(most, score(scores, j, factor, bias));
  return most;
}

float soften(const float* scores, std::int64_t n, std::int64_t padded, float factor, const float* bias, float top,
             void* p) {
  auto* to = static_cast<float*>(p);
  float sum = 0;
  for (std::int64_t j = 0; j < n; ++j) sum += to[j] = std::exp2(score(scores, j, factor, bias) - top);
  for (std::int64_t j = n; j < padded; ++j) to[j] = 0;
  return sum;
}

}  // namespace

const SelfAttentionOps& self_attention_ops_scalar() {
  static constexpr SelfAttentionOps kOps{pack_keys, pack_values, largest, soften};
  return kOps;
}

const SelfAttentionOps& self_attention_ops() {
  return pick<const SelfAttentionOps&()>({{Isa::scalar, self_attention_ops_scalar},
                                          {Isa::avx2, self_attention_ops_avx2},
                                          {Isa::avx512, self_attention_ops_avx512}})();
}

}  // namespace nibble::cpu
