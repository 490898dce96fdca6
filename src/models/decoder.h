// A Llama-like decoder in canonical words, and the program that it becomes. Families translate their config into this.
#pragma once

#include "models/program.h"

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// x += o(attention(rope(q, k, v of norm1 x))); x += down(act(gate(norm2 x)) * up(norm2 x)), tensors named as Llama's.
struct DecoderSpec {
  std::string architecture;
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab = 0;
  std::int64_t max_positions = 0;
  float norm_eps = 0;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;    // RMSNorm over each head of q and k before the rotation (Qwen3)
  bool tied_head = false;  // the head's weight is the embedding
  ActivationKind activation = ActivationKind::silu;
  float attention_scale = 0;         // multiplies q k^T
  std::vector<std::int64_t> window;  // [layers], 0: all keys
  RotarySpec rotary;
};

/// Throws Error naming the field where sizes do not fit each other or exceed the limits below.
Program build_decoder(const DecoderSpec& spec);

/// Limits on what a config may ask for: an order of magnitude above the largest published dense models.
inline constexpr std::int64_t kMaxHidden = std::int64_t{1} << 18;
inline constexpr std::int64_t kMaxLayers = 1024;
inline constexpr std::int64_t kMaxVocab = std::int64_t{1} << 23;
inline constexpr std::int64_t kMaxPositions = std::int64_t{1} << 26;

}  // namespace nibble
