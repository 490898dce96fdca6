// RoBERTa, and XLM-RoBERTa and CamemBERT, which are it with other vocabularies: BERT whose positions are counted from
// the padding token on, and whose heads look at the first row itself.
#include "models/bert_like.h"
#include "models/family.h"

namespace nibble {
namespace {

Program roberta(const JsonView& config) {
  EncoderSpec s = read_bert_like(config, "roberta.");
  count_positions_from_padding(config, s);
  const std::string architecture = architecture_of(config);
  if (architecture.ends_with("ForMaskedLM")) {
    s.head = masked_lm_head(config, s, "lm_head.dense", ActivationKind::gelu, "lm_head.layer_norm", "lm_head.decoder",
                            "lm_head.bias");
  } else if (architecture.ends_with("ForSequenceClassification")) {
    s.head = sequence_head(pooler_stage(s, "classifier.dense"), "classifier.out_proj", label_count(config));
  } else if (!read_common_head(config, s)) {
    s.head = {HeadKind::pooler, {pooler_stage(s, "roberta.pooler.dense")}};
  }
  return build_encoder(s);
}

Program xlm_roberta(const JsonView& config) { return roberta(config); }
Program camembert(const JsonView& config) { return roberta(config); }

NIBBLE_REGISTER_FAMILY("roberta", roberta);
NIBBLE_REGISTER_FAMILY("xlm-roberta", xlm_roberta);
NIBBLE_REGISTER_FAMILY("camembert", camembert);

}  // namespace
}  // namespace nibble
