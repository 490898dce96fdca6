// MPNet: RoBERTa without token types, with a bias of the scores by the distance of two tokens.
#include "models/bert_like.h"
#include "models/decoder.h"
#include "models/family.h"

#include <fmt/format.h>

namespace nibble {
namespace {

Program mpnet(const JsonView& config) {
  EncoderSpec s = read_bert_like(config, "mpnet.");
  s.types = 0;
  // The table's size is fixed in the published models and in the code that trained them.
  if (config.integer("relative_attention_num_buckets", 32) != 32) config.refuse("relative_attention_num_buckets", "32");
  s.position_bias = "mpnet.encoder.relative_attention_bias.weight";
  count_positions_from_padding(config, s);
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    const std::string at = fmt::format("mpnet.encoder.layer.{}.", i);
    EncoderLayer& layer = s.layers[i];
    layer.q = at + "attention.attn.q";
    layer.k = at + "attention.attn.k";
    layer.v = at + "attention.attn.v";
    layer.o = at + "attention.attn.o";
    layer.attention_norm = at + "attention.LayerNorm";
  }
  const std::string architecture = architecture_of(config);
  if (architecture.ends_with("ForMaskedLM")) {
    s.head = masked_lm_head(config, s, "lm_head.dense", ActivationKind::gelu, "lm_head.layer_norm", "lm_head.decoder",
                            "lm_head.bias");
  } else if (architecture.ends_with("ForSequenceClassification")) {
    s.head = sequence_head(pooler_stage(s, "classifier.dense"), "classifier.out_proj", label_count(config));
  } else if (!read_common_head(config, s)) {
    s.head = {HeadKind::pooler, {pooler_stage(s, "mpnet.pooler.dense")}};
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("mpnet", mpnet);

}  // namespace
}  // namespace nibble
