// Encoders of images, and CLIP's two together, against transformers: both paths, batches, and what is refused.
#include "core/error.h"
#include "engine/encoder.h"
#include "engine/image_text.h"
#include "support/expect_error.h"
#include "support/golden_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

namespace nibble {
namespace {

using test::GoldenImages;

// float32 in another order of sums moves these models' values by some 1e-6 of the largest.
constexpr double kTolerance = 1e-4;

ImageBatch batch_of(const GoldenImages& golden, std::int64_t first, std::int64_t images) {
  const std::int64_t values = golden.channels * golden.height * golden.width;
  return {images, golden.channels, golden.height, golden.width,
          std::span(golden.pixels)
              .subspan(static_cast<std::size_t>(first * values), static_cast<std::size_t>(images * values))};
}

ImageBatch batch_of(const GoldenImages& golden) { return batch_of(golden, 0, golden.images); }

EncoderOptions options_of(EncoderPath path, DType compute = DType::f32) {
  EncoderOptions options;
  options.path = path;
  options.compute = compute;
  return options;
}

// Largest difference over the largest value.
double difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  double largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    worst = std::isnan(d) ? 1e30 : std::max(worst, d);
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return worst / largest;
}

class GoldenVisionModel : public testing::TestWithParam<std::string> {};

TEST_P(GoldenVisionModel, BothPathsGiveWhatTransformersGives) {
  const GoldenImages golden = test::read_golden_images(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    SCOPED_TRACE(name_of(path));
    EncoderEngine engine(checkpoint, options_of(path));
    EXPECT_EQ(engine.head_columns() > 0, !golden.head.empty());
    EncoderResult result;
    engine.forward(batch_of(golden), {.hidden = true, .head = !golden.head.empty()}, result);
    EXPECT_LT(difference(result.hidden, golden.hidden), kTolerance);
    if (!golden.head.empty()) {
      EXPECT_LT(difference(result.head, golden.head), kTolerance);
    }
  }
}

TEST_P(GoldenVisionModel, ImagesDoNotDependOnTheirBatchOrItsPasses) {
  const GoldenImages golden = test::read_golden_images(GetParam());
  EncoderOptions options = options_of(EncoderPath::fast);
  options.pass_rows = 1;  // an image a pass
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options);
  const bool head = engine.head_columns() > 0;
  EncoderResult together, alone;
  engine.forward(batch_of(golden), {.hidden = true, .head = head}, together);
  for (std::int64_t image = 0; image < golden.images; ++image) {
    engine.forward(batch_of(golden, image, 1), {.hidden = true, .head = head}, alone);
    const auto part = [&](const std::vector<float>& all, const std::vector<float>& one) {
      return std::span(all).subspan(static_cast<std::size_t>(image) * one.size(), one.size());
    };
    EXPECT_LT(difference(alone.hidden, part(golden.hidden, alone.hidden)), kTolerance);
    EXPECT_LT(difference(part(together.hidden, alone.hidden), alone.hidden), kTolerance);
    if (head) {
      EXPECT_LT(difference(part(together.head, alone.head), alone.head), kTolerance);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenVisionModel, testing::ValuesIn(test::golden_image_names()),
                         [](const testing::TestParamInfo<std::string>& param) { return param.param; });

TEST(VisionEngine, Bf16StaysCloseToFloat) {
  const GoldenImages golden = test::read_golden_images("vit");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast, DType::bf16));
  EncoderResult result;
  engine.forward(batch_of(golden), {}, result);
  const double d = difference(result.hidden, golden.hidden);
  EXPECT_LT(d, 0.2);   // bf16 rounds an operand by up to 0.4%, which this model of large random weights amplifies
  EXPECT_GT(d, 1e-5);  // and it really is bf16
}

TEST(VisionEngine, CountsThePatchesOfAnImage) {
  const GoldenImages golden = test::read_golden_images("deit");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast));
  EXPECT_EQ(engine.max_length(), 11);  // 9 patches and two tokens
  const std::vector<std::int32_t> lengths = {11};
  // 2 operations for each weight of the projection (3 * 6 * 6 inputs, 24 outputs) and patch, at the least.
  EXPECT_GT(engine.cost(lengths).flops, 2.0 * 9 * 108 * 24);
  const std::vector<NodeTime> times = engine.profile(batch_of(golden));
  ASSERT_GT(times.size(), 3U);
  EXPECT_EQ(times[0].name, "patches");
  EXPECT_EQ(times[2].name, "place");
}

TEST(VisionEngine, RefusesWithASentence) {
  const GoldenImages golden = test::read_golden_images("vit_image_classification");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast));
  EncoderResult result;
  ImageBatch batch = batch_of(golden);
  batch.width = 20;
  test::expect_error("20 x 18 pixels (width, height) with 3 channels", [&] { engine.forward(batch, {}, result); });
  batch = batch_of(golden);
  batch.channels = 1;
  test::expect_error("takes 18 x 18 with 3", [&] { engine.forward(batch, {}, result); });
  batch = batch_of(golden);
  batch.pixels = batch.pixels.subspan(1);
  test::expect_error("came with 1943 values", [&] { engine.forward(batch, {}, result); });
  batch.images = 0;
  test::expect_error("0 images", [&] { engine.forward(batch, {}, result); });
  const std::vector<std::int32_t> ids = {1, 2};
  const std::vector<std::int32_t> lengths = {2};
  test::expect_error("a vit model of images, but tokens",
                     [&] { engine.forward({1, 2, ids, lengths, {}}, {}, result); });
  EncoderEngine text(std::make_shared<const Checkpoint>(test::golden_encoders() / "bert"),
                     options_of(EncoderPath::fast));
  test::expect_error("a bert model of text, but images", [&] { text.forward(batch_of(golden), {}, result); });
}

TEST(ImageTextEngine, GivesWhatTransformersGivesForClip) {
  const GoldenImages images = test::read_golden_images("clip");
  const test::GoldenEncoder texts = test::read_golden_tokens("clip");
  const SafetensorsFile file(test::golden_encoders() / "clip.golden.safetensors");
  const auto checkpoint = std::make_shared<const Checkpoint>(images.folder);
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    SCOPED_TRACE(name_of(path));
    ImageTextEngine engine(checkpoint, options_of(path));
    EXPECT_EQ(engine.columns(), 20);
    const std::vector<float> text =
        engine.text_embeds({texts.sequences, texts.length, texts.ids, texts.lengths, texts.types});
    const std::vector<float> image = engine.image_embeds(batch_of(images));
    EXPECT_LT(difference(text, to_float(*file.find("text_embeds"))), kTolerance);
    EXPECT_LT(difference(image, to_float(*file.find("image_embeds"))), kTolerance);
    EXPECT_LT(difference(engine.logits_per_image(image, text), to_float(*file.find("logits"))), kTolerance);
    test::expect_error("expected rows of 20",
                       [&] { (void)engine.logits_per_image(std::span<const float>(image).subspan(1), text); });
  }
}

TEST(ImageTextEngine, ACheckpointOfTwoModelsAsksWhich) {
  const auto clip = std::make_shared<const Checkpoint>(test::golden_encoders() / "clip");
  test::expect_error("holds several models: name text or vision", [&] { EncoderEngine(clip, EncoderOptions{}); });
  const auto vit = std::make_shared<const Checkpoint>(test::golden_encoders() / "vit");
  test::expect_error("it has no part \"text\"", [&] { ImageTextEngine{vit}; });
}

}  // namespace
}  // namespace nibble
