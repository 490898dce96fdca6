// The public API's encoder of text, over the shared library alone.
#include <nibble/nibble.h>

#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace nibble {
namespace {

constexpr std::size_t kWidth = 40;  // the golden model's hidden size

class TextEncoderApi : public testing::Test {
 protected:
  TextEncoderApi() {
    std::filesystem::copy(std::filesystem::path(NIBBLE_TEST_DATA) / "golden_encoders" / "bert", model());
    std::string lines = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
    for (int i = 5; i < 100; ++i) lines += std::string("w").append(std::to_string(i)) + '\n';
    folder_.write("model/vocab.txt", lines);
  }
  std::filesystem::path model() const { return folder_.path() / "model"; }
  test::TempFolder folder_;
};

TEST_F(TextEncoderApi, EncodesTextsInTheirOrder) {
  TextEncoderOptions options;
  options.batch_size = 2;
  TextEncoder encoder(model().string(), options);
  EXPECT_EQ(encoder.dimension(), kWidth);
  EXPECT_EQ(encoder.max_length(), 24U);
  const std::vector<std::string> texts = {"w5", "w6 w7 w8", "", "w5"};
  const auto embeddings = encoder.encode(texts);
  ASSERT_EQ(embeddings.size(), 4U);
  for (const auto& embedding : embeddings) {
    ASSERT_EQ(embedding.size(), kWidth);
    double squares = 0;
    for (const float v : embedding) squares += static_cast<double>(v) * static_cast<double>(v);
    EXPECT_NEAR(squares, 1, 1e-5);
  }
  for (std::size_t i = 0; i < kWidth; ++i) EXPECT_NEAR(embeddings[0][i], embeddings[3][i], 1e-6);
  EXPECT_TRUE(encoder.encode({}).empty());

  options.path = "eager";
  TextEncoder eager(model().string(), options);
  const auto same = eager.encode(texts);
  for (std::size_t i = 0; i < kWidth; ++i) EXPECT_NEAR(same[1][i], embeddings[1][i], 1e-5);
}

TEST_F(TextEncoderApi, OptionsReplaceWhatTheFolderSays) {
  TextEncoderOptions options;
  options.pooling = "pooler";
  options.normalize = false;
  options.max_length = 4;
  options.prefix = "w9 ";
  TextEncoder encoder(model().string(), options);
  EXPECT_EQ(encoder.max_length(), 4U);
  const std::vector<std::string> texts = {"w5 w6 w7", "w5"};
  const auto embeddings = encoder.encode(texts);
  for (std::size_t i = 0; i < kWidth; ++i) EXPECT_NEAR(embeddings[0][i], embeddings[1][i], 1e-6) << "cut to w9 w5";
}

TEST_F(TextEncoderApi, FailuresAreSentences) {
  const auto message = [&](const TextEncoderOptions& options, const std::string& folder) {
    try {
      const TextEncoder encoder(folder, options);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  TextEncoderOptions pooling;
  pooling.pooling = "max";
  EXPECT_NE(message(pooling, model().string()).find("expected mean, cls or pooler"), std::string::npos);
  TextEncoderOptions dtype;
  dtype.dtype = "i3";
  EXPECT_NE(message(dtype, model().string()).find("TextEncoderOptions::dtype is \"i3\""), std::string::npos);
  EXPECT_NE(message({}, std::string(NIBBLE_TEST_DATA) + "/golden/qwen2").find("generates text"), std::string::npos);
}

}  // namespace
}  // namespace nibble
