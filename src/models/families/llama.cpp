// Llama 1, 2 and 3, and what is published under the same model_type: TinyLlama, SmolLM and SmolLM2, Yi, Vicuna.
#include "models/family.h"
#include "models/llama_like.h"

namespace nibble {
namespace {

Program llama(const JsonView& config) {
  DecoderSpec s = read_llama_like(config, LlamaDefaults{});
  s.qkv_bias = s.o_bias = config.boolean("attention_bias", false);
  s.mlp_bias = config.boolean("mlp_bias", false);
  return build_decoder(s);
}

NIBBLE_REGISTER_FAMILY("llama", llama);

}  // namespace
}  // namespace nibble
