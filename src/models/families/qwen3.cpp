// Qwen3 (dense): Llama with an RMSNorm over each head of q and k before the rotation, and head_dim given by itself.
#include "models/family.h"
#include "models/llama_like.h"

namespace nibble {
namespace {

Program qwen3(const JsonView& config) {
  LlamaDefaults defaults;
  defaults.max_positions = 32768;
  defaults.kv_heads = 32;
  defaults.head_dim = 128;
  DecoderSpec s = read_llama_like(config, defaults);
  s.qkv_bias = s.o_bias = config.boolean("attention_bias", false);
  s.qk_norm = true;
  if (config.boolean("use_sliding_window", false) && config.has("sliding_window")) {
    const std::int64_t first = config.integer("max_window_layers", 28);
    for (std::int64_t i = 0; i < s.layers; ++i) {
      if (i >= first) s.window[static_cast<std::size_t>(i)] = config.positive("sliding_window");
    }
  }
  return build_decoder(s);
}

NIBBLE_REGISTER_FAMILY("qwen3", qwen3);

}  // namespace
}  // namespace nibble
