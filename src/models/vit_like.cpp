#include "models/vit_like.h"

#include "models/activation.h"
#include "models/bert_like.h"
#include "models/decoder.h"

#include <fmt/format.h>

namespace nibble {

ImageShape read_image_shape(const JsonView& config, std::int64_t size, std::int64_t patch) {
  ImageShape shape;
  shape.channels = config.positive("num_channels", 3);
  shape.size = config.positive("image_size", size);
  shape.patch = config.positive("patch_size", patch);
  return shape;
}

EncoderSpec read_vit_like(const JsonView& config, std::string_view prefix,
                          const std::vector<std::string_view>& leading) {
  EncoderSpec s;
  s.architecture = config.text("model_type");
  s.prefix = prefix;
  s.hidden = s.embedding = config.positive("hidden_size", 768);
  s.intermediate = config.positive("intermediate_size", 3072);
  s.heads = config.positive("num_attention_heads", 12);
  s.norm_eps = static_cast<float>(config.number("layer_norm_eps", 1e-12));
  s.activation = read_activation(config, "hidden_act", "gelu");
  s.pre_norm = true;
  s.qkv_bias = config.boolean("qkv_bias", true);
  const std::string embeddings = s.prefix + "embeddings.";
  ImageSpec& image = s.image.emplace();
  image.shape = read_image_shape(config, 224, 16);
  image.projection = embeddings + "patch_embeddings.projection";
  for (const std::string_view name : leading) image.leading.push_back(embeddings + std::string(name));
  s.position_table = embeddings + "position_embeddings";
  s.final_norm = s.prefix + "layernorm";
  const std::int64_t layers = config.positive("num_hidden_layers", 12);
  if (layers > kMaxLayers) config.refuse("num_hidden_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("{}encoder.layer.{}.", prefix, i);
    s.layers.push_back({at + "attention.attention.query", at + "attention.attention.key",
                        at + "attention.attention.value", at + "attention.output.dense", at + "layernorm_before",
                        at + "intermediate.dense", at + "output.dense", at + "layernorm_after"});
  }
  if (architecture_of(config).ends_with("Model")) {
    HeadStage pooler;
    pooler.name = s.prefix + "pooler.dense";
    pooler.out = config.positive("pooler_output_size", s.hidden);
    pooler.activation = read_activation(config, "pooler_act", "tanh");
    s.head = {HeadKind::pooler, {pooler}};
  }
  return s;
}

}  // namespace nibble
