// DistilBERT: BERT without token types and pooler, under names of its own.
#include "models/activation.h"
#include "models/bert_like.h"
#include "models/decoder.h"
#include "models/family.h"

#include <fmt/format.h>

namespace nibble {
namespace {

Program distilbert(const JsonView& config) {
  EncoderSpec s;
  s.architecture = config.text("model_type");
  s.prefix = "distilbert.";
  s.hidden = s.embedding = config.positive("dim");
  s.intermediate = config.positive("hidden_dim");
  s.heads = config.positive("n_heads");
  s.vocab = config.positive("vocab_size");
  s.max_positions = config.positive("max_position_embeddings", 512);
  s.activation = read_activation(config, "activation", "gelu");
  s.word_table = "distilbert.embeddings.word_embeddings.weight";
  s.position_table = "distilbert.embeddings.position_embeddings.weight";
  s.embedding_norm = "distilbert.embeddings.LayerNorm";
  const std::int64_t layers = config.positive("n_layers");
  if (layers > kMaxLayers) config.refuse("n_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("distilbert.transformer.layer.{}.", i);
    s.layers.push_back({at + "attention.q_lin", at + "attention.k_lin", at + "attention.v_lin",
                        at + "attention.out_lin", at + "sa_layer_norm", at + "ffn.lin1", at + "ffn.lin2",
                        at + "output_layer_norm"});
  }
  const std::string architecture = architecture_of(config);
  if (architecture.ends_with("ForMaskedLM")) {
    s.head = masked_lm_head(config, s, "vocab_transform", s.activation, "vocab_layer_norm", "vocab_projector",
                            "vocab_projector.bias");
  } else if (architecture.ends_with("ForSequenceClassification")) {
    s.head = sequence_head({"pre_classifier", s.hidden, ActivationKind::relu, {}, {}, {}}, "classifier",
                           label_count(config));
  } else {
    read_common_head(config, s);
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("distilbert", distilbert);

}  // namespace
}  // namespace nibble
