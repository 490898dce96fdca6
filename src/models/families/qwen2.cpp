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
  apply_late_window(config, s);
  return build_decoder(s);
}

NIBBLE_REGISTER_FAMILY("qwen2", qwen2);

}  // namespace
}  // namespace nibble
