// Mistral 7B and its successors: Llama without biases, 8 key-value heads, and a sliding window in version 0.1.
#include "models/family.h"
#include "models/llama_like.h"

#include <algorithm>

namespace nibble {
namespace {

Program mistral(const JsonView& config) {
  LlamaDefaults defaults;
  defaults.max_positions = 131072;
  defaults.kv_heads = 8;
  DecoderSpec s = read_llama_like(config, defaults);
  // The class default is 4096, but a null (as in later versions) means none: JsonView counts null as absent.
  if (config.has("sliding_window")) std::fill(s.window.begin(), s.window.end(), config.positive("sliding_window"));
  return build_decoder(s);
}

NIBBLE_REGISTER_FAMILY("mistral", mistral);

}  // namespace
}  // namespace nibble
