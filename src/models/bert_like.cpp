#include "models/bert_like.h"

#include "core/error.h"
#include "models/activation.h"
#include "models/decoder.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <utility>

namespace nibble {

std::string architecture_of(const JsonView& config) {
  const std::vector<std::string> names = config.texts("architectures");
  return names.empty() ? std::string() : names.front();
}

std::int64_t label_count(const JsonView& config) {
  // More classes than any published head has, and fewer than would make a large matrix.
  constexpr std::int64_t kMostLabels = std::int64_t{1} << 20;
  std::int64_t labels = 2;
  if (config.has("num_labels")) {
    labels = config.positive("num_labels");
  } else if (const auto names = config.object("id2label"); names && !names->value().empty()) {
    labels = static_cast<std::int64_t>(names->value().size());
  }
  if (labels > kMostLabels) config.refuse("num_labels", "at most 1048576");
  return labels;
}

EncoderSpec read_bert_like(const JsonView& config, std::string_view prefix) {
  if (config.boolean("is_decoder", false)) config.refuse("is_decoder", "false: only encoders of this family run");
  if (config.text("position_embedding_type", "absolute") != "absolute")
    config.refuse("position_embedding_type", "\"absolute\"");
  EncoderSpec s;
  s.architecture = config.text("model_type");
  s.prefix = prefix;
  s.hidden = config.positive("hidden_size");
  s.embedding = s.hidden;
  s.intermediate = config.positive("intermediate_size");
  s.heads = config.positive("num_attention_heads");
  s.vocab = config.positive("vocab_size");
  s.max_positions = config.positive("max_position_embeddings", 512);
  s.types = config.integer("type_vocab_size", 2);
  s.norm_eps = static_cast<float>(config.number("layer_norm_eps", 1e-12));
  s.activation = read_activation(config, "hidden_act", "gelu");
  const std::string embeddings = s.prefix + "embeddings.";
  s.word_table = embeddings + "word_embeddings.weight";
  s.position_table = embeddings + "position_embeddings.weight";
  s.type_table = embeddings + "token_type_embeddings.weight";
  s.embedding_norm = embeddings + "LayerNorm";
  const std::int64_t layers = config.positive("num_hidden_layers");
  if (layers > kMaxLayers) config.refuse("num_hidden_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("{}encoder.layer.{}.", prefix, i);
    s.layers.push_back({at + "attention.self.query", at + "attention.self.key", at + "attention.self.value",
                        at + "attention.output.dense", at + "attention.output.LayerNorm", at + "intermediate.dense",
                        at + "output.dense", at + "output.LayerNorm"});
  }
  return s;
}

void count_positions_from_padding(const JsonView& config, EncoderSpec& spec) {
  const std::int64_t padding = config.integer("pad_token_id", 1);
  if (padding < 0 || padding >= spec.vocab) config.refuse("pad_token_id", "an id of the vocabulary");
  spec.position_offset = padding + 1;
  spec.skipped_token = static_cast<std::int32_t>(padding);
  if (spec.max_positions <= spec.position_offset)
    config.refuse("max_position_embeddings", "more than pad_token_id + 1, where positions begin");
  spec.max_positions -= spec.position_offset;
}

HeadSpec masked_lm_head(const JsonView& config, const EncoderSpec& spec, const std::string& dense,
                        ActivationKind activation, const std::string& norm, const std::string& decoder,
                        const std::string& bias) {
  const bool tied = config.boolean("tie_word_embeddings", true);
  return {HeadKind::masked_lm,
          {{dense, spec.embedding, activation, norm, {}, {}},
           {decoder, spec.vocab, {}, {}, tied ? spec.word_table : std::string(), bias}}};
}

HeadSpec linear_head(HeadKind kind, std::string name, std::int64_t out) {
  return {kind, {{std::move(name), out, {}, {}, {}, {}}}};
}

HeadSpec sequence_head(HeadStage before, std::string name, std::int64_t out) {
  return {HeadKind::sequence_class, {std::move(before), {std::move(name), out, {}, {}, {}, {}}}};
}

HeadStage pooler_stage(const EncoderSpec& spec, std::string name) {
  return {std::move(name), spec.hidden, ActivationKind::tanh, {}, {}, {}};
}

bool read_common_head(const JsonView& config, EncoderSpec& spec) {
  const std::string architecture = architecture_of(config);
  if (architecture.ends_with("ForTokenClassification")) {
    spec.head = linear_head(HeadKind::token_class, "classifier", label_count(config));
  } else if (architecture.ends_with("ForQuestionAnswering")) {
    spec.head = linear_head(HeadKind::question_answer, "qa_outputs", 2);
  } else {
    return false;
  }
  return true;
}

}  // namespace nibble
