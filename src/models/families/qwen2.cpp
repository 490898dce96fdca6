// Qwen2 and Qwen2.5: Llama with biases on q, k and v.
#include "models/family.h"
#include "models/llama_like.h"

namespace nibble {
namespace {

Program qwen2(const JsonView& config) {
  LlamaDefaults defaults;
  defaults.max_positions = 32768;
  defaults.kv_heads = 32;
  DecoderSpec s = read_llama_like(config, defaults);
  s.qkv_bias = true;
  if (config.boolean("use_sliding_window", false) && config.has("sliding_window")) {
    // Layers from max_window_layers on use the window.
    const std::int64_t first = config.integer("max_window_layers", 28);
    for (std::int64_t i = 0; i < s.layers; ++i) {
      if (i >= first) s.window[static_cast<std::size_t>(i)] = config.positive("sliding_window");
    }
  }
  return build_decoder(s);
}

NIBBLE_REGISTER_FAMILY("qwen2", qwen2);

}  // namespace
}  // namespace nibble
