#include "quant/synth.h"

#include "core/error.h"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>

namespace nibble {
namespace {

/// The numbers in which published Llama-like models differ.
struct Preset {
  std::string_view name;
  const char* model_type;
  const char* architecture;
  std::int64_t hidden, intermediate, layers, heads, kv_heads, vocab, positions;
  double rope_theta, norm_eps;
  bool tied;
  std::int64_t bos, eos;
  std::int64_t window;  // 0: none
};

constexpr Preset kPresets[] = {
    {"llama-2-7b", "llama", "LlamaForCausalLM", 4096, 11008, 32, 32, 32, 32000, 4096, 1e4, 1e-5, false, 1, 2, 0},
    {"llama-2-13b", "llama", "LlamaForCausalLM", 5120, 13824, 40, 40, 40, 32000, 4096, 1e4, 1e-5, false, 1, 2, 0},
    {"llama-3-8b", "llama", "LlamaForCausalLM", 4096, 14336, 32, 32, 8, 128256, 8192, 5e5, 1e-5, false, 128000, 128001,
     0},
    {"smollm2-135m", "llama", "LlamaForCausalLM", 576, 1536, 30, 9, 3, 49152, 8192, 1e5, 1e-5, true, 0, 0, 0},
    {"tinyllama-1.1b", "llama", "LlamaForCausalLM", 2048, 5632, 22, 32, 4, 32000, 2048, 1e4, 1e-5, false, 1, 2, 0},
    {"qwen2.5-0.5b", "qwen2", "Qwen2ForCausalLM", 896, 4864, 24, 14, 2, 151936, 32768, 1e6, 1e-6, true, 151643, 151643,
     0},
    {"mistral-7b", "mistral", "MistralForCausalLM", 4096, 14336, 32, 32, 8, 32000, 32768, 1e4, 1e-5, false, 1, 2, 4096},
};

/// Encoders: BERT's of text, the vision transformer and the model of sound of the same size, and Whisper's.
nlohmann::ordered_json encoder_preset(std::string_view name) {
  nlohmann::ordered_json config;
  if (name == "bert-base") {
    config = {{"architectures", {"BertModel"}}, {"model_type", "bert"}, {"vocab_size", 30522},
              {"max_position_embeddings", 512}, {"type_vocab_size", 2}, {"pad_token_id", 0}};
  } else if (name == "vit-base") {
    config = {{"architectures", {"ViTModel"}},
              {"model_type", "vit"},
              {"image_size", 224},
              {"patch_size", 16},
              {"num_channels", 3},
              {"qkv_bias", true}};
  } else if (name == "wav2vec2-base") {
    config = {{"architectures", {"Wav2Vec2Model"}},
              {"model_type", "wav2vec2"},
              {"conv_dim", {512, 512, 512, 512, 512, 512, 512}},
              {"conv_kernel", {10, 3, 3, 3, 3, 2, 2}},
              {"conv_stride", {5, 2, 2, 2, 2, 2, 2}},
              {"conv_bias", false},
              {"feat_extract_norm", "group"},
              {"feat_extract_activation", "gelu"},
              {"num_feat_extract_layers", 7},
              {"num_conv_pos_embeddings", 128},
              {"num_conv_pos_embedding_groups", 16},
              {"do_stable_layer_norm", false},
              {"vocab_size", 32}};
  } else if (name == "whisper-base") {
    // Its words differ from those of the others.
    return {{"architectures", {"WhisperForConditionalGeneration"}},
            {"model_type", "whisper"},
            {"d_model", 512},
            {"encoder_layers", 6},
            {"encoder_attention_heads", 8},
            {"encoder_ffn_dim", 2048},
            {"activation_function", "gelu"},
            {"num_mel_bins", 80},
            {"max_source_positions", 1500}};
  } else {
    return config;
  }
  config.update({{"hidden_act", "gelu"},
                 {"hidden_size", 768},
                 {"intermediate_size", 3072},
                 {"num_hidden_layers", 12},
                 {"num_attention_heads", 12},
                 {"layer_norm_eps", name == "wav2vec2-base" ? 1e-5 : 1e-12}});
  return config;
}

}  // namespace

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  names.insert(names.end(), {"bert-base", "vit-base", "wav2vec2-base", "whisper-base"});
  return names;
}

nlohmann::ordered_json preset_config(std::string_view name) {
  if (nlohmann::ordered_json encoder = encoder_preset(name); !encoder.empty()) return encoder;
  const auto* const found =
      std::find_if(std::begin(kPresets), std::end(kPresets), [&](const Preset& p) { return p.name == name; });
  if (found == std::end(kPresets))
    fail_usage("there is no preset {}; there are {}", name, fmt::join(preset_names(), ", "));
  nlohmann::ordered_json config = {
      {"architectures", {found->architecture}},
      {"model_type", found->model_type},
      {"bos_token_id", found->bos},
      {"eos_token_id", found->eos},
      {"hidden_act", "silu"},
      {"hidden_size", found->hidden},
      {"intermediate_size", found->intermediate},
      {"num_hidden_layers", found->layers},
      {"num_attention_heads", found->heads},
      {"num_key_value_heads", found->kv_heads},
      {"max_position_embeddings", found->positions},
      {"rms_norm_eps", found->norm_eps},
      {"rope_theta", found->rope_theta},
      {"tie_word_embeddings", found->tied},
      {"vocab_size", found->vocab},
      {"initializer_range", 0.02},
      {"use_cache", true},
  };
  if (found->window > 0) config["sliding_window"] = found->window;
  return config;
}

}  // namespace nibble
