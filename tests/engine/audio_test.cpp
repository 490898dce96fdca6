// Encoders of audio against transformers: both paths, batches with padding and without, and what is refused.
#include "core/error.h"
#include "core/file.h"
#include "engine/encoder.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "models/family.h"
#include "support/expect_error.h"
#include "support/golden_encoder.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

namespace nibble {
namespace {

// float32 in another order of sums moves these models' values by some 1e-6 of the largest.
constexpr double kTolerance = 1e-4;

using test::GoldenAudio;

AudioBatch batch_of(const GoldenAudio& golden) {
  return {golden.recordings, golden.channels, golden.steps, golden.values, golden.lengths};
}

EncoderOptions options_of(EncoderPath path, DType compute = DType::f32) {
  EncoderOptions options;
  options.path = path;
  options.compute = compute;
  return options;
}

double difference(const GoldenAudio& golden, std::span<const float> got) {
  return largest_difference({golden.recordings, golden.rows, {}, golden.frames, {}}, got, golden.hidden);
}

class GoldenAudioModel : public testing::TestWithParam<std::string> {};

TEST_P(GoldenAudioModel, BothPathsGiveWhatTransformersGives) {
  const GoldenAudio golden = test::read_golden_audio(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    SCOPED_TRACE(name_of(path));
    EncoderEngine engine(checkpoint, options_of(path));
    ASSERT_EQ(engine.frames(golden.steps), golden.rows);
    for (std::size_t r = 0; r < golden.lengths.size(); ++r)
      EXPECT_EQ(engine.frames(golden.lengths[r]), golden.frames[r]);
    EncoderResult result;
    engine.forward(batch_of(golden), {}, result);
    EXPECT_LT(difference(golden, result.hidden), kTolerance);
    if (path != EncoderPath::fast) continue;
    const std::size_t width = golden.hidden.size() / static_cast<std::size_t>(golden.recordings * golden.rows);
    for (std::size_t r = 0; r < golden.frames.size(); ++r) {
      const auto padding =
          std::span(result.hidden)
              .subspan(r * static_cast<std::size_t>(golden.rows) * width, static_cast<std::size_t>(golden.rows) * width)
              .subspan(static_cast<std::size_t>(golden.frames[r]) * width);
      EXPECT_TRUE(std::all_of(padding.begin(), padding.end(), [](float value) { return value == 0; }));
    }
  }
}

// Padded to the same number of steps, and cut to its own where padding does not count.
TEST_P(GoldenAudioModel, RecordingsDoNotDependOnTheirBatchOrItsPasses) {
  const GoldenAudio golden = test::read_golden_audio(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  EncoderOptions options = options_of(EncoderPath::fast);
  options.pass_rows = 1;  // a recording a pass
  EncoderEngine engine(checkpoint, options);
  EncoderResult result;
  engine.forward(batch_of(golden), {}, result);
  EXPECT_LT(difference(golden, result.hidden), kTolerance);
  const std::size_t width = golden.hidden.size() / static_cast<std::size_t>(golden.recordings * golden.rows);
  const auto values = static_cast<std::size_t>(golden.channels * golden.steps);
  for (const EncoderPath path : {EncoderPath::fast, EncoderPath::eager}) {
    EncoderEngine alone(checkpoint, options_of(path));
    for (std::size_t r = 0; r < golden.frames.size(); ++r) {
      SCOPED_TRACE(testing::Message() << name_of(path) << " " << r);
      std::int64_t steps = golden.steps;
      if (!engine.program().audio->padding_counts && !golden.lengths.empty()) steps = golden.lengths[r];
      const std::span<const float> own = std::span(golden.values).subspan(r * values);
      const std::span<const std::int32_t> lengths = golden.lengths;
      alone.forward({1, golden.channels, steps, own.first(static_cast<std::size_t>(golden.channels * steps)),
                     lengths.empty() ? lengths : lengths.subspan(r, 1)},
                    {}, result);
      const auto rows = static_cast<std::size_t>(golden.frames[r]) * width;
      ASSERT_GE(result.hidden.size(), rows);
      const auto want = std::span(golden.hidden).subspan(r * static_cast<std::size_t>(golden.rows) * width, rows);
      const std::vector<std::int32_t> counted = {golden.frames[r]};
      EXPECT_LT(largest_difference({1, golden.frames[r], {}, counted, {}}, std::span(result.hidden).first(rows), want),
                kTolerance);
    }
  }
}

TEST_P(GoldenAudioModel, Bf16StaysCloseToFloat) {
  const GoldenAudio golden = test::read_golden_audio(GetParam());
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast, DType::bf16));
  EncoderResult result;
  engine.forward(batch_of(golden), {}, result);
  const double d = difference(golden, result.hidden);
  EXPECT_LT(d, 0.2);   // bf16 rounds an operand by up to 0.4%, which these models of large random weights amplify
  EXPECT_GT(d, 1e-5);  // and it really is bf16
}

INSTANTIATE_TEST_SUITE_P(All, GoldenAudioModel,
                         testing::Values("hubert", "wav2vec2", "wav2vec2_stable", "whisper_encoder"),
                         [](const testing::TestParamInfo<std::string>& param) { return param.param; });

// The model of wav2vec2 with other names of tensors, and the positional convolution's weight norm as `form` has it.
enum class WeightNorm { old_names, new_names, multiplied_out };

void write_model(const test::TempFolder& folder, const std::string& prefix, WeightNorm form) {
  const std::filesystem::path from = test::golden_encoders() / "wav2vec2";
  folder.write("config.json", read_text_file(from / "config.json", 1 << 20));
  const SafetensorsFile file(from / "model.safetensors");
  const std::string module = "encoder.pos_conv_embed.conv.";
  const std::vector<float> magnitude = to_float(*file.find(module + "weight_g"));
  std::vector<float> product = to_float(*file.find(module + "weight_v"));
  for (std::size_t k = 0; k < magnitude.size(); ++k) {
    double squares = 0;
    for (std::size_t i = k; i < product.size(); i += magnitude.size()) squares += std::pow(product[i], 2);
    for (std::size_t i = k; i < product.size(); i += magnitude.size())
      product[i] *= magnitude[k] / static_cast<float>(std::sqrt(squares));
  }
  std::vector<TensorDeclaration> declared;
  std::vector<std::span<const std::byte>> data;
  for (const auto& [name, tensor] : file.header().tensors) {
    const bool g = name == module + "weight_g";
    const bool v = name == module + "weight_v";
    std::string to = name;
    if (g && form == WeightNorm::multiplied_out) continue;
    if (v && form == WeightNorm::multiplied_out) to = module + "weight";
    if ((g || v) && form == WeightNorm::new_names) to = module + "parametrizations.weight.original" + (g ? "0" : "1");
    declared.push_back({prefix + to, tensor.dtype, tensor.shape});
    data.push_back(v && form == WeightNorm::multiplied_out ? std::as_bytes(std::span<const float>(product))
                                                           : tensor.bytes);
  }
  SafetensorsWriter writer(folder.path() / "model.safetensors", declared);
  for (std::size_t i = 0; i < data.size(); ++i) writer.append(declared[i].name, data[i]);
  writer.commit();
}

TEST(AudioEngine, ReadsEveryWayOfStoringWeightNorm) {
  const GoldenAudio golden = test::read_golden_audio("wav2vec2");
  for (const WeightNorm form : {WeightNorm::old_names, WeightNorm::new_names, WeightNorm::multiplied_out}) {
    for (const char* prefix : {"", "wav2vec2."}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(form) << " \"" << prefix << '"');
      const test::TempFolder folder;
      write_model(folder, prefix, form);
      EncoderEngine engine(std::make_shared<const Checkpoint>(folder.path()), options_of(EncoderPath::fast));
      EncoderResult result;
      engine.forward(batch_of(golden), {}, result);
      EXPECT_LT(difference(golden, result.hidden), kTolerance);
    }
  }
}

TEST(AudioEngine, ConfigsThatCannotBeAreRefused) {
  const auto refuse = [](std::string_view part, const std::string& model, const nlohmann::json& changes) {
    nlohmann::json config = read_json_file(test::golden_encoders() / model / "config.json");
    config.update(changes);
    test::expect_error(part, [&] { (void)program_from_config(config); });
  };
  refuse("conv_kernel should be as long a list as conv_dim", "wav2vec2", {{"conv_kernel", {10, 3}}});
  refuse("a convolution's kernel should be 1 to 4096 (found 0)", "wav2vec2", {{"conv_kernel", {10, 0, 3}}});
  refuse("a convolution's stride should be 1 to 4096", "wav2vec2", {{"conv_stride", {5, 2, 100000}}});
  refuse("look at too many values", "wav2vec2",
         {{"conv_stride", {4096, 4096, 4096}}, {"conv_kernel", {4096, 4096, 4096}}});
  refuse("num_conv_pos_embedding_groups should divide", "wav2vec2", {{"num_conv_pos_embedding_groups", 5}});
  refuse("feat_extract_norm", "wav2vec2", {{"feat_extract_norm", "batch"}});
  refuse("add_adapter", "wav2vec2", {{"add_adapter", true}});
  refuse("adapter_attn_dim", "wav2vec2", {{"adapter_attn_dim", 16}});
  refuse("conv_pos_batch_norm", "hubert", {{"conv_pos_batch_norm", true}});
  refuse("max_source_positions", "whisper_encoder", {{"max_source_positions", std::int64_t{1} << 40}});
  refuse("the number of convolutions should be 1 to 64", "wav2vec2",
         {{"conv_dim", nlohmann::json::array()},
          {"conv_kernel", nlohmann::json::array()},
          {"conv_stride", nlohmann::json::array()}});
}

TEST(AudioEngine, HubertMayGoWithoutTheNormOfItsProjection) {
  nlohmann::json config = read_json_file(test::golden_encoders() / "hubert" / "config.json");
  const std::size_t with = program_from_config(config).nodes.size();
  config["feat_proj_layer_norm"] = false;
  EXPECT_EQ(program_from_config(config).nodes.size(), with - 1);
}

TEST(AudioShape, SetsRoomApart) {
  AudioShape shape;
  shape.stages = {{10, 5, 0}, {3, 2, 0}, {2, 2, 0}};
  for (std::int64_t steps = shape.least_steps(); steps < 400; ++steps) {
    for (std::size_t stage = 0; stage <= 3; ++stage) {
      EXPECT_EQ(shape.room(steps, stage, false), shape.frames(steps, stage));
      EXPECT_GE(shape.room(steps, stage, true), shape.frames(steps, stage));
    }
    EXPECT_EQ(shape.room(steps, 0, true) % 20, 0);
    EXPECT_EQ(shape.room(steps, 3, true) * 20, shape.room(steps, 0, true));
    // The fewest steps that make as many rows, no more.
    const std::int64_t least = shape.frames_for(shape.frames(steps), 0);
    EXPECT_EQ(shape.frames(least), shape.frames(steps));
    EXPECT_EQ(shape.frames(least - 1), shape.frames(steps) - 1);
  }
  shape.stages[1].padding = 1;
  EXPECT_EQ(shape.room(333, 2, true), shape.frames(333, 2));
}

TEST(AudioEngine, PlansWhatItTakes) {
  const GoldenAudio golden = test::read_golden_audio("wav2vec2");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast));
  const std::size_t weights = engine.plan().weights;
  // The positional convolution alone has 32 * 8 * 8 weights.
  EXPECT_GT(weights, std::size_t{32 * 8 * 8 * 4});
  engine.reserve(3, 700);
  const std::size_t small = engine.plan().arena;
  // 700 samples make 139 frames of 20 channels.
  EXPECT_GT(small, std::size_t{3 * 139 * 20 * 4});
  engine.reserve(3, 7000);
  EXPECT_GT(engine.plan().arena, 5 * small);
  const std::vector<NodeTime> times = engine.profile(batch_of(golden));
  ASSERT_GT(times.size(), 2U);
  EXPECT_EQ(times[0].name, "convolve feature_extractor.conv_layers.0.conv");
  EXPECT_EQ(times[1].name, "instance_norm");
}

TEST(AudioEngine, RefusesWithASentence) {
  const GoldenAudio golden = test::read_golden_audio("wav2vec2_stable");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast));
  EncoderResult result;
  const auto refuse = [&](std::string_view part, const AudioBatch& batch) {
    test::expect_error(part, [&] { engine.forward(batch, {}, result); });
  };
  AudioBatch batch = batch_of(golden);
  batch.recordings = 0;
  refuse("a batch of 0 recordings", batch);
  batch = batch_of(golden);
  batch.channels = 2;
  refuse("audio of 2 channels was given", batch);
  batch = batch_of(golden);
  batch.values = batch.values.subspan(1);
  refuse("3 recordings of 700 steps with 1 channels came with 2099 values", batch);
  batch = batch_of(golden);
  batch.lengths = batch.lengths.subspan(1);
  refuse("3 recordings came with 2 lengths", batch);
  // One frame of 3 convolutions: (2 - 1) * 2 + 3 = 5 frames of the first, (5 - 1) * 5 + 10 samples.
  const std::vector<std::int32_t> short_ones = {700, 29, 700};
  batch = batch_of(golden);
  batch.lengths = short_ones;
  refuse("recording 1 has a length of 29; expected 30 to 700", batch);
  const std::vector<float> few(29);
  refuse("a recording of 29 steps is too short", {1, 1, 29, few, {}});
  const std::vector<float> least(30);
  engine.forward({1, 1, 30, least, {}}, {}, result);
  EXPECT_EQ(result.hidden.size(), 24U);
  const std::vector<float> long_one(60'001 * 20 + 30);
  refuse("rows that", {1, 1, static_cast<std::int64_t>(long_one.size()), long_one, {}});
  test::expect_error("has no head", [&] { engine.forward(batch_of(golden), {.hidden = true, .head = true}, result); });

  const std::vector<std::int32_t> ids = {1, 2};
  const std::vector<std::int32_t> lengths = {2};
  test::expect_error("a wav2vec2 model of audio, but tokens were given",
                     [&] { engine.forward({1, 2, ids, lengths, {}}, {}, result); });
  EncoderEngine text(std::make_shared<const Checkpoint>(test::golden_encoders() / "bert"),
                     options_of(EncoderPath::fast));
  test::expect_error("a bert model of text, but audio was given", [&] { text.forward(batch_of(golden), {}, result); });

  const GoldenAudio whisper = test::read_golden_audio("whisper_encoder");
  EncoderEngine spectrogram(std::make_shared<const Checkpoint>(whisper.folder), options_of(EncoderPath::fast));
  const auto refuse_spectrogram = [&](std::string_view part, const AudioBatch& b) {
    test::expect_error(part, [&] { spectrogram.forward(b, {}, result); });
  };
  refuse_spectrogram("audio of 27 steps was given", {1, 10, 27, whisper.values, {}});
  const std::vector<std::int32_t> shorter = {28, 20};
  batch = batch_of(whisper);
  batch.lengths = shorter;
  refuse_spectrogram("looks at all 28 steps of each", batch);
}

}  // namespace
}  // namespace nibble
