// CLIP's encoder of text: pre-norm blocks under a causal mask; a text is the row of its last token.
#include "models/activation.h"
#include "models/bert_like.h"
#include "models/decoder.h"
#include "models/family.h"

#include <fmt/format.h>

namespace nibble {
namespace {

Program clip_text(const JsonView& config) {
  EncoderSpec s;
  s.architecture = config.text("model_type");
  s.prefix = "text_model.";
  s.hidden = s.embedding = config.positive("hidden_size", 512);
  s.intermediate = config.positive("intermediate_size", 2048);
  s.heads = config.positive("num_attention_heads", 8);
  s.vocab = config.positive("vocab_size", 49408);
  s.max_positions = config.positive("max_position_embeddings", 77);
  s.norm_eps = static_cast<float>(config.number("layer_norm_eps", 1e-5));
  s.activation = read_activation(config, "hidden_act", "quick_gelu");
  s.pre_norm = true;
  s.causal = true;
  s.word_table = "text_model.embeddings.token_embedding.weight";
  s.position_table = "text_model.embeddings.position_embedding.weight";
  s.final_norm = "text_model.final_layer_norm";
  const std::int64_t layers = config.positive("num_hidden_layers", 12);
  if (layers > kMaxLayers) config.refuse("num_hidden_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("text_model.encoder.layers.{}.", i);
    s.layers.push_back({at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj",
                        at + "self_attn.out_proj", at + "layer_norm1", at + "mlp.fc1", at + "mlp.fc2",
                        at + "layer_norm2"});
  }
  // The first published configs say 2, which is no token of theirs that ends a text: there the largest id does.
  constexpr std::int64_t kWrongEnd = 2;
  const std::int64_t end = config.integer("eos_token_id", 49407);
  if (end < 0 || end >= s.vocab) config.refuse("eos_token_id", "an id of the vocabulary");
  s.head_token = end == kWrongEnd ? kLargestId : static_cast<std::int32_t>(end);
  s.head = {HeadKind::pooler, {}};
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("clip_text_model", clip_text);

}  // namespace
}  // namespace nibble
