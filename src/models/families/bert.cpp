// BERT: post-norm blocks, learned positions and token types, a pooler.
#include "models/bert_like.h"
#include "models/family.h"

namespace nibble {
namespace {

Program bert(const JsonView& config) {
  EncoderSpec s = read_bert_like(config, "bert.");
  const std::string architecture = architecture_of(config);
  const HeadStage pooler = pooler_stage(s, "bert.pooler.dense");
  if (architecture.ends_with("ForMaskedLM") || architecture.ends_with("ForPreTraining")) {
    s.head = masked_lm_head(config, s, "cls.predictions.transform.dense", s.activation,
                            "cls.predictions.transform.LayerNorm", "cls.predictions.decoder", "cls.predictions.bias");
  } else if (architecture.ends_with("ForSequenceClassification")) {
    s.head = sequence_head(pooler, "classifier", label_count(config));
  } else if (!read_common_head(config, s)) {
    s.head = {HeadKind::pooler, {pooler}};
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("bert", bert);

}  // namespace
}  // namespace nibble
