// ALBERT: BERT with a small embedding that is projected, and blocks that share their weights in groups.
#include "models/bert_like.h"
#include "models/decoder.h"
#include "models/family.h"

#include <fmt/format.h>

namespace nibble {
namespace {

Program albert(const JsonView& config) {
  EncoderSpec s = read_bert_like(config, "albert.");
  s.embedding = config.positive("embedding_size", 128);
  s.projection = "albert.encoder.embedding_hidden_mapping_in";
  const auto layers = static_cast<std::int64_t>(s.layers.size());
  const std::int64_t groups = config.positive("num_hidden_groups", 1);
  const std::int64_t inner = config.positive("inner_group_num", 1);
  if (groups > layers) config.refuse("num_hidden_groups", "at most num_hidden_layers");
  if (inner > kMaxLayers / layers) config.refuse("inner_group_num", "at most 1024 blocks in all");
  s.layers.clear();
  for (std::int64_t i = 0; i < layers; ++i) {
    // int(i / (layers / groups)), in whole numbers.
    const std::int64_t group = i * groups / layers;
    for (std::int64_t j = 0; j < inner; ++j) {
      const std::string at = fmt::format("albert.encoder.albert_layer_groups.{}.albert_layers.{}.", group, j);
      s.layers.push_back({at + "attention.query", at + "attention.key", at + "attention.value", at + "attention.dense",
                          at + "attention.LayerNorm", at + "ffn", at + "ffn_output", at + "full_layer_layer_norm"});
    }
  }
  const std::string architecture = architecture_of(config);
  const HeadStage pooler = pooler_stage(s, "albert.pooler");
  if (architecture.ends_with("ForMaskedLM") || architecture.ends_with("ForPreTraining")) {
    s.head = masked_lm_head(config, s, "predictions.dense", s.activation, "predictions.LayerNorm",
                            "predictions.decoder", "predictions.bias");
  } else if (architecture.ends_with("ForSequenceClassification")) {
    s.head = sequence_head(pooler, "classifier", label_count(config));
  } else if (!read_common_head(config, s)) {
    s.head = {HeadKind::pooler, {pooler}};
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("albert", albert);

}  // namespace
}  // namespace nibble
