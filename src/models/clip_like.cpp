#include "models/clip_like.h"

#include "models/activation.h"
#include "models/bert_like.h"
#include "models/decoder.h"
#include "models/vit_like.h"

#include <fmt/format.h>

#include <string>
#include <utility>

namespace nibble {
namespace {

// The sizes of the smaller published models, which stand for fields that a config leaves out.
struct Defaults {
  std::int64_t hidden, intermediate, heads;
};

EncoderSpec read_common(const JsonView& config, std::string prefix, const Defaults& defaults) {
  EncoderSpec s;
  s.architecture = config.text("model_type", "clip");
  s.prefix = std::move(prefix);
  s.hidden = s.embedding = config.positive("hidden_size", defaults.hidden);
  s.intermediate = config.positive("intermediate_size", defaults.intermediate);
  s.heads = config.positive("num_attention_heads", defaults.heads);
  s.norm_eps = static_cast<float>(config.number("layer_norm_eps", 1e-5));
  s.activation = read_activation(config, "hidden_act", "quick_gelu");
  s.pre_norm = true;
  s.position_table = s.prefix + "embeddings.position_embedding.weight";
  const std::int64_t layers = config.positive("num_hidden_layers", 12);
  if (layers > kMaxLayers) config.refuse("num_hidden_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("{}encoder.layers.{}.", s.prefix, i);
    s.layers.push_back({at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj",
                        at + "self_attn.out_proj", at + "layer_norm1", at + "mlp.fc1", at + "mlp.fc2",
                        at + "layer_norm2"});
  }
  return s;
}

HeadSpec head_of(std::optional<std::int64_t> projection, std::string module) {
  if (!projection) return {HeadKind::pooler, {}};
  HeadStage stage;
  stage.name = std::move(module);
  stage.out = *projection;
  stage.has_bias = false;
  return {HeadKind::projection, {stage}};
}

}  // namespace

EncoderSpec read_clip_text(const JsonView& config, std::optional<std::int64_t> projection) {
  EncoderSpec s = read_common(config, "text_model.", {512, 2048, 8});
  s.vocab = config.positive("vocab_size", 49408);
  s.max_positions = config.positive("max_position_embeddings", 77);
  s.causal = true;
  s.word_table = "text_model.embeddings.token_embedding.weight";
  s.final_norm = "text_model.final_layer_norm";
  // The first published configs say 2, which is no token of theirs that ends a text: there the largest id does.
  constexpr std::int64_t kWrongEnd = 2;
  const std::int64_t end = config.integer("eos_token_id", 49407);
  if (end < 0 || end >= s.vocab) config.refuse("eos_token_id", "an id of the vocabulary");
  s.head_token = end == kWrongEnd ? kLargestId : static_cast<std::int32_t>(end);
  s.head = head_of(projection, "text_projection");
  return s;
}

EncoderSpec read_clip_vision(const JsonView& config, std::optional<std::int64_t> projection) {
  EncoderSpec s = read_common(config, "vision_model.", {768, 3072, 12});
  ImageSpec& image = s.image.emplace();
  image.shape = read_image_shape(config, 224, 32);
  image.projection = "vision_model.embeddings.patch_embedding";
  image.bias = false;
  image.leading = {"vision_model.embeddings.class_embedding"};
  s.embedding_norm = "vision_model.pre_layrnorm";  // spelt so in every checkpoint
  s.head = head_of(projection, "visual_projection");
  s.head.norm = "vision_model.post_layernorm";
  return s;
}

std::optional<std::int64_t> clip_projection(const JsonView& config) {
  if (!architecture_of(config).ends_with("WithProjection")) return std::nullopt;
  return config.positive("projection_dim", 512);
}

}  // namespace nibble
