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
  apply_late_window(config, s);
  return build_decoder(s);
}

NIBBLE_REGISTER_FAMILY("qwen3", qwen3);

}  // namespace
}  // namespace nibble
