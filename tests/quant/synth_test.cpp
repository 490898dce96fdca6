#include "quant/synth.h"

#include "core/thread_pool.h"
#include "engine/encoder.h"
#include "formats/gptq_tensors.h"
#include "model_folders.h"
#include "models/family.h"
#include "quant/output_folder.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

namespace nibble {
namespace {

namespace fs = std::filesystem;
using test::all_logits;
using test::expect_error;
using test::small_config;
using test::TempFolder;

struct Moments {
  double mean = 0;
  double deviation = 0;
};
Moments moments(const std::vector<float>& values) {
  double sum = 0;
  double squares = 0;
  for (const float v : values) {
    sum += v;
    squares += static_cast<double>(v) * v;
  }
  const auto n = static_cast<double>(values.size());
  return {sum / n, std::sqrt(squares / n - sum / n * (sum / n))};
}

std::string bytes_of_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void expect_sane_logits(const fs::path& folder) {
  const std::vector<float> logits = all_logits(folder, test::random_sequences(2, 24, 128, 4));
  ASSERT_FALSE(logits.empty());
  for (const float v : logits) ASSERT_TRUE(std::isfinite(v));
  const Moments m = moments(logits);
  EXPECT_GT(m.deviation, 0.2) << folder;
  EXPECT_LT(m.deviation, 5.0) << folder;
}

// Every key that some encoder's config has; families leave alone what they do not know.
nlohmann::ordered_json small_encoder(const std::string& model_type) {
  nlohmann::ordered_json config = {{"model_type", model_type},
                                   {"hidden_size", 48},
                                   {"intermediate_size", 96},
                                   {"num_hidden_layers", 2},
                                   {"num_attention_heads", 3},
                                   {"num_key_value_heads", 3},
                                   {"max_position_embeddings", 40},
                                   {"vocab_size", 128},
                                   {"embedding_size", 32},
                                   {"pad_token_id", 1},
                                   {"eos_token_id", 2},
                                   {"hidden_act", "gelu"},
                                   {"image_size", 24},
                                   {"patch_size", 8},
                                   {"num_channels", 3},
                                   {"projection_dim", 16},
                                   {"conv_dim", {32, 32}},
                                   {"conv_kernel", {10, 3}},
                                   {"conv_stride", {5, 2}},
                                   {"num_conv_pos_embeddings", 8},
                                   {"num_conv_pos_embedding_groups", 4},
                                   {"d_model", 48},
                                   {"encoder_layers", 2},
                                   {"encoder_attention_heads", 3},
                                   {"encoder_ffn_dim", 96},
                                   {"max_source_positions", 20},
                                   {"num_mel_bins", 16}};
  config.update({{"dim", 48}, {"hidden_dim", 96}, {"n_layers", 2}, {"n_heads", 3}});
  return config;
}

void expect_sane_hidden_states(const fs::path& folder) {
  EncoderEngine engine(std::make_shared<const Checkpoint>(folder), {.compute = DType::f32});
  EncoderResult result;
  if (engine.program().image) {
    const std::vector<float> pixels(std::size_t{2} * 3 * 24 * 24, 0.5F);
    engine.forward(ImageBatch{2, 3, 24, 24, pixels}, {}, result);
  } else if (const auto& audio = engine.program().audio) {
    const std::int64_t steps = audio->length > 0 ? audio->length : 600;
    std::vector<float> values(static_cast<std::size_t>(audio->channels * steps));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i * i % 1000));
    engine.forward(AudioBatch{1, audio->channels, steps, values, {}}, {}, result);
  } else {
    const auto rows = test::random_sequences(1, 24, 128, 4);
    const std::vector<std::int32_t> lengths = {24};
    engine.forward(EncoderBatch{1, 24, rows[0], lengths, {}}, {}, result);
  }
  const Moments m = moments(result.hidden);
  EXPECT_GT(m.deviation, 0.2) << folder;
  EXPECT_LT(m.deviation, 5.0) << folder;
}

TEST(SynthTest, EveryEncoderLoadsAndGivesSaneHiddenStates) {
  const TempFolder folder;
  int encoders = 0;
  for (const std::string& family : known_families()) {
    // Two models of one checkpoint have a config around theirs.
    if (family.find('/') != std::string::npos) continue;
    if (!program_from_config(nlohmann::json::parse(small_encoder(family).dump())).encoder) continue;
    ++encoders;
    const fs::path out = folder.path() / family;
    synthesise(small_encoder(family), out, SynthOptions{});
    expect_sane_hidden_states(out);
    SynthOptions quantised;
    quantised.gptq = LinearQuant{4, 32, true, true};
    quantised.overwrite = true;
    synthesise(small_encoder(family), out, quantised);
    expect_sane_hidden_states(out);
  }
  EXPECT_GE(encoders, 10);
}

TEST(SynthTest, EveryDecoderLoadsAndGivesSaneLogits) {
  const TempFolder folder;
  for (const std::string& family : known_families()) {
    if (family.find('/') != std::string::npos) continue;
    if (program_from_config(nlohmann::json::parse(small_encoder(family).dump())).encoder) continue;
    const fs::path out = folder.path() / family;
    synthesise(small_config(family.c_str()), out, SynthOptions{});
    expect_sane_logits(out);
    SynthOptions quantised;
    quantised.gptq = LinearQuant{4, 32, true, true};
    quantised.overwrite = true;
    synthesise(small_config(family.c_str(), true), out, quantised);
    expect_sane_logits(out);
  }
}

TEST(SynthTest, DepthDoesNotChangeTheSizeOfActivations) {
  const TempFolder folder;
  auto config = small_config();
  config["num_hidden_layers"] = 40;
  SynthOptions options;
  for (const int bits : {2, 4}) {
    options.gptq = LinearQuant{bits, 32, false, true};
    synthesise(config, folder.path() / std::to_string(bits), options);
    expect_sane_logits(folder.path() / std::to_string(bits));
  }
}

TEST(SynthTest, EveryGptqFormHoldsTheWeightsThatItShould) {
  const TempFolder folder;
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool sym : {true, false}) {
      for (const ZeroFormat zeros : {ZeroFormat::v1, ZeroFormat::v2}) {
        SynthOptions options;
        options.gptq = LinearQuant{bits, bits == 8 ? -1 : 48, bits != 2 && bits != 8, sym};
        options.zeros = zeros;
        options.overwrite = true;
        synthesise(small_config(), folder.path() / "out", options);
        const Checkpoint checkpoint(folder.path() / "out");
        const auto config = find_quant_config(checkpoint.folder());
        ASSERT_TRUE(config.has_value());
        const std::string block = "model.layers.1.";
        const GptqTensors gate = load_gptq(checkpoint, block + "mlp.gate_proj", *config, 64, 160);
        const GptqTensors up = load_gptq(checkpoint, block + "mlp.up_proj", *config, 64, 160);
        EXPECT_EQ(gate.bits, bits);
        EXPECT_EQ(gate.sym, sym);
        EXPECT_EQ(gate.act_order, bits == 3 || bits == 4);
        EXPECT_EQ(gate.g_idx, up.g_idx);  // one input, one order: the two can be fused
        std::vector<std::uint8_t> codes(64 * 160);
        gate.codes(0, 64, 0, 160, codes.data());
        EXPECT_EQ(*std::min_element(codes.begin(), codes.end()), 1);
        EXPECT_EQ(*std::max_element(codes.begin(), codes.end()), (1 << bits) - 1);
        std::vector<float> weights;
        std::vector<float> row(64);
        for (std::int64_t n = 0; n < 160; ++n) {
          gate.dequantize_row(n, row.data());
          weights.insert(weights.end(), row.begin(), row.end());
        }
        const Moments m = moments(weights);
        EXPECT_NEAR(m.deviation, 1.0 / 8, 0.01) << bits << sym;
        EXPECT_NEAR(m.mean, 0, 0.01) << bits << sym;
      }
    }
  }
}

TEST(SynthTest, TheSeedAloneDecides) {
  const TempFolder folder;
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  SynthOptions options;
  options.gptq = LinearQuant{3, 32, true, false};
  const auto made = [&](const char* name, int threads) {
    pool.set_threads(threads);
    synthesise(small_config(), folder.path() / name, options);
    return bytes_of_file(folder.path() / name / "model.safetensors");
  };
  const std::string first = made("a", 1);
  EXPECT_EQ(made("b", 3), first);
  options.seed = 1;
  EXPECT_NE(made("c", 1), first);
  pool.set_threads(before);
}

TEST(SynthTest, PresetsAreRunnableConfigs) {
  const TempFolder folder;
  for (const std::string_view name : preset_names()) {
    auto config = preset_config(name);
    const Program program = program_from_config(nlohmann::json::parse(config.dump()));
    EXPECT_EQ(program.hidden, config[config.contains("d_model") ? "d_model" : "hidden_size"]);
    if (program.encoder) continue;
    // The same model with fewer and narrower blocks.
    config["num_hidden_layers"] = 1;
    config["hidden_size"] = 64;
    config["intermediate_size"] = 96;
    config["num_attention_heads"] = 4;
    config["num_key_value_heads"] = 2;
    config["vocab_size"] = 128;
    synthesise(config, folder.path() / name, SynthOptions{});
    expect_sane_logits(folder.path() / name);
  }
  expect_error("there are llama-2-7b", [] { preset_config("llama-7"); });
}

TEST(SynthTest, RefusesWhatCannotBeMade) {
  const TempFolder folder;
  SynthOptions options;
  options.dtype = DType::i32;
  expect_error("f16, bf16 or f32", [&] { synthesise(small_config(), folder.path() / "out", options); });
  options.dtype = DType::f16;
  options.gptq = LinearQuant{5, 32, false, true};
  expect_error("2, 3, 4 or 8", [&] { synthesise(small_config(), folder.path() / "out", options); });
  options.gptq = LinearQuant{4, 0, false, true};
  expect_error("group size of 0", [&] { synthesise(small_config(), folder.path() / "out", options); });
  expect_error("model_type", [&] { synthesise(small_config("nonesuch"), folder.path() / "out", SynthOptions{}); });
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(ShardedWriterTest, LargeModelsAreSplitAndIndexed) {
  const TempFolder folder;
  const std::vector<TensorDeclaration> tensors = {
      {"a", DType::f32, {10}}, {"b", DType::f32, {30}}, {"c", DType::i32, {5}}};
  ShardedWriter writer(folder.path(), tensors, 150);  // a is 40 bytes, b 120, c 20
  EXPECT_EQ(writer.files(), 2U);
  EXPECT_EQ(writer.total_size(), 180U);
  const std::vector<std::byte> data(120, std::byte{7});
  writer.append("c", std::span(data).first(20));
  writer.append("a", std::span(data).first(40));
  expect_error("was not declared", [&] { writer.append("d", data); });
  writer.append("b", data);
  writer.commit();
  folder.write("config.json", "{}");
  const Checkpoint checkpoint(folder.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(checkpoint.file_of("a").filename(), "model-00001-of-00002.safetensors");
  EXPECT_EQ(checkpoint.file_of("c").filename(), "model-00002-of-00002.safetensors");
  EXPECT_EQ(checkpoint.tensor("b").bytes[119], std::byte{7});
}

}  // namespace
}  // namespace nibble
