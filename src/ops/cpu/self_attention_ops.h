// What attention without a cache does beside its products, one set an instruction set: keys and values into the panels
// that kernels/cpu/common_panels.h multiplies by, and the softmax between the two products.
#pragma once

#include <cstdint>

namespace nibble::cpu {

/// Keys of a panel of K, and dimensions of a panel of V.
inline constexpr std::int64_t kPanel = 32;

struct SelfAttentionOps {
  /// A panel of up to 32 keys, [dim][32] (bf16: [dims / 2][32][2], the dimensions padded with zeros to a multiple of
  /// 32); missing keys are zeros.
  void (*pack_keys)(const float* k, std::int64_t stride, std::int64_t keys, std::int64_t dim, void* panel);
  /// A panel of up to 32 dimensions of all keys, [keys][32] (bf16: [keys / 2][32][2], the keys padded with zeros to a
  /// multiple of 32); missing dimensions are zeros.
  void (*pack_values)(const float* v, std::int64_t stride, std::int64_t keys, std::int64_t dims, void* panel);
  /// The largest of s[j] = scores[j] * factor + bias[j] (bias may be null), j < n; n >= 1.
  float (*largest)(const float* scores, std::int64_t n, float factor, const float* bias);
  /// Scores to probabilities, not yet divided by their sum: p[j] = 2^(s[j] - top) for j < n, 0 for n <= j < padded;
  /// returns their sum. top: at least the largest of s. p, floats or bf16, may be scores. For all rows of a tile after
  /// `largest` for all of them: in turns, each row waits for its own largest score.
  float (*soften)(const float* scores, std::int64_t n, std::int64_t padded, float factor, const float* bias, float top,
                  void* p);
};

/// For panels of floats, for active_isa().
const SelfAttentionOps& self_attention_ops();
/// For panels of bf16 pairs: where panels::Functions::bf16 is not null.
const SelfAttentionOps& self_attention_ops_avx512bf16();

const SelfAttentionOps& self_attention_ops_scalar();
const SelfAttentionOps& self_attention_ops_avx2();
const SelfAttentionOps& self_attention_ops_avx512();

}  // namespace nibble::cpu
