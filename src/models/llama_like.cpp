#include "models/llama_like.h"

#include "models/activation.h"
#include "models/rotary.h"

#include <algorithm>
#include <cmath>

namespace nibble {
DecoderSpec read_llama_like(const JsonView& config, const LlamaDefaults& defaults) {
  DecoderSpec s;
  s.architecture = config.text("model_type");
  s.hidden = config.positive("hidden_size");
  s.intermediate = config.positive("intermediate_size");
  s.layers = config.positive("num_hidden_layers");
  s.heads = config.positive("num_attention_heads");
  s.kv_heads = config.positive("num_key_value_heads", defaults.kv_heads != 0 ? defaults.kv_heads : s.heads);
  s.head_dim = config.positive("head_dim", defaults.head_dim != 0 ? defaults.head_dim : s.hidden / s.heads);
  s.vocab = config.positive("vocab_size");
  s.max_positions = config.positive("max_position_embeddings", defaults.max_positions);
  s.norm_eps = static_cast<float>(config.number("rms_norm_eps", defaults.norm_eps));
  s.tied_head = config.boolean("tie_word_embeddings", defaults.tied);
  s.activation = read_activation(config, "hidden_act", "silu");
  s.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.head_dim)));
  if (s.layers > kMaxLayers) config.refuse("num_hidden_layers", "at most 1024");
  if (s.head_dim > kMaxHidden) config.refuse("head_dim", "at most 1024");
  s.window.assign(static_cast<std::size_t>(s.layers), 0);
  s.rotary = read_rotary(config, s.head_dim, s.max_positions, defaults.rope_theta);
  return s;
}

void apply_late_window(const JsonView& config, DecoderSpec& spec) {
  if (!config.boolean("use_sliding_window", false) || !config.has("sliding_window")) return;
  const std::int64_t first = config.integer("max_window_layers", 28);
  for (std::int64_t i = std::max<std::int64_t>(first, 0); i < spec.layers; ++i) {
    spec.window[static_cast<std::size_t>(i)] = config.positive("sliding_window");
  }
}

}  // namespace nibble
