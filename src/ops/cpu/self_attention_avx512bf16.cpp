// Panels of bf16 pairs: their words are rearranged as the floats of other panels are.
#include "core/simd_avx512.h"

#include "core/simd_math.h"

#include "ops/cpu/simd_self_attention.h"

namespace nibble::cpu {
namespace {

// The bf16 of sixteen floats each, those of `low` first.
__m512i pairs(Reg low, Reg high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

// Up to 16 floats, the rest and those of no lanes 0.
Reg load_up_to(const float* p, std::int64_t lanes) {
  if (lanes <= 0) return Vec::zero();
  return lanes >= Vec::kLanes ? Vec::load(p) : Vec::load_part(p, lanes);
}

void pack_keys_bf16(const float* k, std::int64_t stride, std::int64_t keys, std::int64_t dim, void* panel) {
  constexpr std::int64_t kLanes = Vec::kLanes;
  auto* const to = static_cast<std::uint32_t*>(panel);  // one word a key and pair of dimensions
  for (std::int64_t key = 0; key < kPanel; key += kLanes) {
    for (std::int64_t d = 0; d < dim; d += 2 * kLanes) {
      Reg x[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) {
        const float* from = k + (key + i) * stride + d;
        x[i] = key + i < keys
                   ? _mm512_castsi512_ps(pairs(load_up_to(from, dim - d), load_up_to(from + kLanes, dim - d - kLanes)))
                   : Vec::zero();
      }
      Vec::transpose(x);
      for (std::int64_t i = 0; i < kLanes; ++i) {
        _mm512_storeu_si512(to + (d / 2 + i) * kPanel + key, _mm512_castps_si512(x[i]));
      }
    }
  }
}

void pack_values_bf16(const float* v, std::int64_t stride, std::int64_t keys, std::int64_t dims, void* panel) {
  // From sixteen of one key and sixteen of the next to pairs.
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  auto* const to = static_cast<std::uint16_t*>(panel);
  const std::int64_t padded = (keys + kPanel - 1) / kPanel * kPanel;
  for (std::int64_t j = 0; j < padded; j += 2) {
    for (std::int64_t d = 0; d < kPanel; d += Vec::kLanes) {
      const float* from = v + j * stride + d;
      const Reg first = load_up_to(from, j < keys ? dims - d : 0);
      const Reg second = load_up_to(from + stride, j + 1 < keys ? dims - d : 0);
      _mm512_storeu_si512(to + j * kPanel + 2 * d, _mm512_permutexvar_epi16(order, pairs(first, second)));
    }
  }
}

// The probabilities are rounded to bf16, for which three terms of 2^x do.
float soften_bf16(const float* scores, std::int64_t n, std::int64_t padded, float factor, const float* bias, float top,
                  void* p) {
  auto* const to = static_cast<std::uint16_t*>(p);
  const auto power = [](Reg x) { return exp2_coarse(x); };
  // `padded` is a multiple of 32, so that whole registers can be stored.
  const auto store = [to](std::int64_t j, std::int64_t, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  };
  const float sum = bias != nullptr ? soften_by<true>(power, store, scores, n, factor, bias, top)
                                    : soften_by<false>(power, store, scores, n, factor, bias, top);
  for (std::int64_t j = (n + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes; j < padded; j += Vec::kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), _mm256_setzero_si256());
  }
  return sum;
}

}  // namespace

const SelfAttentionOps& self_attention_ops_avx512bf16() {
  static constexpr SelfAttentionOps kOps{pack_keys_bf16, pack_values_bf16, largest, soften_bf16};
  return kOps;
}

}  // namespace nibble::cpu
