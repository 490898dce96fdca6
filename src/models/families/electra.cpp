// ELECTRA: BERT without a pooler, with an embedding that may be smaller and is projected then.
#include "models/bert_like.h"
#include "models/family.h"

namespace nibble {
namespace {

Program electra(const JsonView& config) {
  EncoderSpec s = read_bert_like(config, "electra.");
  s.embedding = config.positive("embedding_size", 128);
  s.projection = "electra.embeddings_project";
  const std::string architecture = architecture_of(config);
  if (architecture.ends_with("ForMaskedLM")) {
    s.head = masked_lm_head(config, s, "generator_predictions.dense", ActivationKind::gelu,
                            "generator_predictions.LayerNorm", "generator_lm_head", "generator_lm_head.bias");
  } else if (architecture.ends_with("ForSequenceClassification")) {
    s.head = sequence_head({"classifier.dense", s.hidden, ActivationKind::gelu, {}, {}, {}}, "classifier.out_proj",
                           label_count(config));
  } else if (architecture.ends_with("ForPreTraining")) {
    // The discriminator: is this token the original one?
    s.head = {HeadKind::token_class,
              {{"discriminator_predictions.dense", s.hidden, s.activation, {}, {}, {}},
               {"discriminator_predictions.dense_prediction", 1, {}, {}, {}, {}}}};
  } else {
    read_common_head(config, s);
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("electra", electra);

}  // namespace
}  // namespace nibble
