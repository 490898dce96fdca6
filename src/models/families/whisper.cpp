// Whisper's encoder: two convolutions over a spectrogram of 30 s, positions out of a table, pre-norm blocks whose keys
// have no bias. The decoder is not run.
#include "models/activation.h"
#include "models/decoder.h"
#include "models/encoder.h"
#include "models/family.h"

#include <fmt/format.h>

namespace nibble {
namespace {

Program whisper(const JsonView& config) {
  EncoderSpec s;
  s.architecture = config.text("model_type");
  s.prefix = "model.";
  s.hidden = s.embedding = config.positive("d_model", 384);
  s.intermediate = config.positive("encoder_ffn_dim", 1536);
  s.heads = config.positive("encoder_attention_heads", 6);
  s.norm_eps = 1e-5F;
  s.activation = read_activation(config, "activation_function", "gelu");
  s.pre_norm = true;
  s.k_bias = false;
  const std::int64_t positions = config.positive("max_source_positions", 1500);
  if (positions > kMaxPositions / 2) config.refuse("max_source_positions", "at most 33554432");
  AudioSpec& audio = s.audio.emplace();
  audio.channels = config.positive("num_mel_bins", 80);
  audio.length = 2 * positions;
  audio.stages = {{"model.encoder.conv1", s.hidden, 3, 1, 1}, {"model.encoder.conv2", s.hidden, 3, 2, 1}};
  s.position_table = "model.encoder.embed_positions.weight";
  s.final_norm = "model.encoder.layer_norm";
  const std::int64_t layers = config.positive("encoder_layers", 4);
  if (layers > kMaxLayers) config.refuse("encoder_layers", "at most 1024");
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string at = fmt::format("model.encoder.layers.{}.", i);
    s.layers.push_back({at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj",
                        at + "self_attn.out_proj", at + "self_attn_layer_norm", at + "fc1", at + "fc2",
                        at + "final_layer_norm"});
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("whisper", whisper);

}  // namespace
}  // namespace nibble
