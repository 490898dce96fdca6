#include "models/wav2vec2_like.h"

#include "models/activation.h"
#include "models/decoder.h"

#include <fmt/format.h>

#include <utility>

namespace nibble {
namespace {

std::vector<std::int64_t> list(const JsonView& config, std::string_view key, std::vector<std::int64_t> fallback) {
  return config.has(key) ? config.integers(key) : std::move(fallback);
}

AudioSpec read_features(const JsonView& config, const std::string& prefix) {
  AudioSpec audio;
  audio.activation = read_activation(config, "feat_extract_activation", "gelu");
  const std::vector<std::int64_t> dims = list(config, "conv_dim", {512, 512, 512, 512, 512, 512, 512});
  const std::vector<std::int64_t> kernels = list(config, "conv_kernel", {10, 3, 3, 3, 3, 2, 2});
  const std::vector<std::int64_t> strides = list(config, "conv_stride", {5, 2, 2, 2, 2, 2, 2});
  if (kernels.size() != dims.size()) config.refuse("conv_kernel", "as long a list as conv_dim");
  if (strides.size() != dims.size()) config.refuse("conv_stride", "as long a list as conv_dim");
  const std::string norm = config.text("feat_extract_norm", "group");
  if (norm != "group" && norm != "layer") config.refuse("feat_extract_norm", "\"group\" or \"layer\"");
  const bool bias = config.boolean("conv_bias", false);
  audio.stages.reserve(dims.size());
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const std::string at = fmt::format("{}feature_extractor.conv_layers.{}.", prefix, i);
    AudioStage stage;
    stage.module = at + "conv";
    stage.outputs = dims[i];
    stage.kernel = kernels[i];
    stage.stride = strides[i];
    stage.bias = bias;
    if (norm == "layer") {
      stage.norm = AudioStage::Norm::layer;
    } else if (i == 0) {
      stage.norm = AudioStage::Norm::instance;
    }
    stage.norm_module = at + "layer_norm";
    audio.stages.push_back(std::move(stage));
  }
  audio.projection_norm = prefix + "feature_projection.layer_norm";
  audio.projection = prefix + "feature_projection.projection";
  audio.positions = prefix + "encoder.pos_conv_embed.conv";
  audio.positions_kernel = config.positive("num_conv_pos_embeddings", 128);
  audio.positions_groups = config.positive("num_conv_pos_embedding_groups", 16);
  return audio;
}

}  // namespace

EncoderSpec read_wav2vec2_like(const JsonView& config, std::string_view prefix) {
  if (config.boolean("add_adapter", false)) config.refuse("add_adapter", "false: adapters are not read");
  if (config.has("adapter_attn_dim")) config.refuse("adapter_attn_dim", "null: adapters are not read");
  EncoderSpec s;
  s.architecture = config.text("model_type");
  s.prefix = prefix;
  s.hidden = s.embedding = config.positive("hidden_size", 768);
  s.intermediate = config.positive("intermediate_size", 3072);
  s.heads = config.positive("num_attention_heads", 12);
  s.norm_eps = static_cast<float>(config.number("layer_norm_eps", 1e-5));
  s.activation = read_activation(config, "hidden_act", "gelu");
  s.pre_norm = config.boolean("do_stable_layer_norm", false);
  s.audio = read_features(config, s.prefix);
  (s.pre_norm ? s.final_norm : s.embedding_norm) = s.prefix + "encoder.layer_norm";
  const std::int64_t layers = config.positive("num_hidden_layers", 12);
  if (layers > kMaxLayers) config.refuse("num_hidden_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("{}encoder.layers.{}.", prefix, i);
    s.layers.push_back({at + "attention.q_proj", at + "attention.k_proj", at + "attention.v_proj",
                        at + "attention.out_proj", at + "layer_norm", at + "feed_forward.intermediate_dense",
                        at + "feed_forward.output_dense", at + "final_layer_norm"});
  }
  return s;
}

}  // namespace nibble
