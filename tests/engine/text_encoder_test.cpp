// Texts to embeddings: the default encoder against transformers, pooling, settings of folders, batches and refusals.
#include "engine/text_encoder.h"

#include "support/encoder_folder.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

using test::copy_encoder;
using test::modules_json;
using test::TempFolder;

std::shared_ptr<const Checkpoint> open(const std::filesystem::path& folder) {
  return std::make_shared<const Checkpoint>(folder);
}

TextModelOptions options_of(EncoderPath path, std::size_t batch_size = 32) {
  TextModelOptions options;
  options.engine.path = path;
  options.batch_size = batch_size;
  return options;
}

double cosine(std::span<const float> a, std::span<const float> b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    ab += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    aa += static_cast<double>(a[i]) * static_cast<double>(a[i]);
    bb += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return ab / std::sqrt(aa * bb);
}

double length_of(std::span<const float> v) { return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0)); }

TEST(MiniLm, TokensAndEmbeddingsAreThoseOfTransformers) {
  const std::string folder = test::minilm_folder();
  if (folder.empty()) GTEST_SKIP() << test::kNoMinilm;
  const test::MinilmGolden golden = test::read_minilm_golden();
  ASSERT_EQ(golden.sentences.size(), 50U);
  ASSERT_EQ(golden.ids.size(), 50U);
  const auto checkpoint = open(folder);
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    SCOPED_TRACE(name_of(path));
    TextEmbedder embedder(checkpoint, {}, options_of(path));
    EXPECT_EQ(embedder.settings().pooling, Pooling::mean);
    EXPECT_TRUE(embedder.settings().normalize);
    EXPECT_EQ(embedder.settings().max_length, 256U);
    ASSERT_EQ(embedder.dimension(), 384U);
    const Embeddings together = embedder.embed(golden.sentences);
    ASSERT_EQ(together.values.size(), golden.embeddings.size());
    EXPECT_EQ(together.cut, 0U);
    for (std::size_t i = 0; i < 50; ++i) {
      EXPECT_EQ(embedder.model().tokenize(golden.sentences[i]).ids, golden.ids[i]) << golden.sentences[i];
      const auto expected = std::span(golden.embeddings).subspan(i * 384, 384);
      const auto batched = std::span(together.values).subspan(i * 384, 384);
      EXPECT_LT(1 - cosine(batched, expected), 1e-4) << "in a batch: " << golden.sentences[i];
      EXPECT_NEAR(length_of(batched), 1, 1e-5);
      const Embeddings alone = embedder.embed({&golden.sentences[i], 1});
      EXPECT_LT(1 - cosine(alone.values, expected), 1e-4) << "alone: " << golden.sentences[i];
    }
  }
}

TEST(TextModel, OrderIsLongestFirstAndKeepsEqualOnes) {
  const std::vector<std::size_t> lengths = {3, 9, 3, 1, 9, 4};
  EXPECT_EQ(order_by_length(lengths), (std::vector<std::size_t>{1, 4, 5, 0, 2, 3}));
  EXPECT_TRUE(order_by_length({}).empty());
}

// Texts of every length up to the limit, in no order.
std::vector<std::string> ragged_texts() {
  std::vector<std::string> texts;
  for (int i = 0; i < 40; ++i) {
    std::string text;
    for (int w = 0; w < i * 7 % 21; ++w) text += test::word(5 + (i * 31 + w * 13) % 95) + ' ';
    texts.push_back(text);
  }
  return texts;
}

TEST(TextEmbedder, BatchesOfAnySizeKeepTheOrder) {
  const TempFolder folder;
  const auto checkpoint = open(copy_encoder(folder, "bert", "model"));
  const std::vector<std::string> texts = ragged_texts();
  TextEmbedder one(checkpoint, {}, options_of(EncoderPath::eager, 1));
  std::vector<float> expected;
  for (const std::string& text : texts) {
    const Embeddings alone = one.embed({&text, 1});
    expected.insert(expected.end(), alone.values.begin(), alone.values.end());
  }
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    for (const std::size_t batch : {1U, 3U, 16U, 1000U}) {
      SCOPED_TRACE(testing::Message() << name_of(path) << " " << batch);
      TextEmbedder embedder(checkpoint, {}, options_of(path, batch));
      const Embeddings all = embedder.embed(texts);
      ASSERT_EQ(all.values.size(), expected.size());
      for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(all.values[i], expected[i], 1e-5) << i;
    }
  }
}

TEST(TextEmbedder, PoolsAsItsNameSays) {
  const TempFolder folder;
  const auto checkpoint = open(copy_encoder(folder, "bert", "model"));
  const std::string text = "w7 w8 w9";
  EncoderEngine engine(checkpoint, {});
  const std::vector<std::int32_t> ids = {2, 7, 8, 9, 3};
  const std::vector<std::int32_t> lengths = {5};
  EncoderResult result;
  engine.forward({1, 5, ids, lengths, {}}, {.hidden = true, .head = true}, result);
  const auto width = static_cast<std::size_t>(engine.program().hidden);
  std::vector<float> mean(width);
  for (std::size_t i = 0; i < result.hidden.size(); ++i) mean[i % width] += result.hidden[i] / 5;
  const std::vector<float> cls(result.hidden.begin(), result.hidden.begin() + static_cast<std::ptrdiff_t>(width));

  const std::vector<std::pair<Pooling, std::vector<float>>> cases = {
      {Pooling::mean, mean}, {Pooling::cls, cls}, {Pooling::pooler, result.head}};
  for (const auto& [pooling, expected] : cases) {
    SCOPED_TRACE(name_of(pooling));
    EXPECT_EQ(pooling_named(name_of(pooling)), pooling);
    EmbeddingOptions options;
    options.pooling = pooling;
    options.normalize = false;
    TextEmbedder plain(checkpoint, options, {});
    const Embeddings got = plain.embed({&text, 1});
    ASSERT_EQ(got.values.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(got.values[i], expected[i], 1e-5);
    options.normalize = true;
    TextEmbedder normalised(checkpoint, options, {});
    const Embeddings unit = normalised.embed({&text, 1});
    EXPECT_NEAR(length_of(unit.values), 1, 1e-6);
    EXPECT_NEAR(cosine(unit.values, expected), 1, 1e-6);
  }
}

TEST(TextEmbedder, EmptyAndLongTexts) {
  const TempFolder folder;
  TextEmbedder embedder(open(copy_encoder(folder, "bert", "model")), {}, {});
  EXPECT_TRUE(embedder.embed({}).values.empty());
  std::string longest;
  for (int i = 0; i < 10000; ++i) longest += "w9 ";
  const std::vector<std::string> texts = {"", longest, "\xff\xfe", std::string(1, '\0'), "   "};
  const Embeddings got = embedder.embed(texts);
  EXPECT_EQ(got.cut, 1U);
  ASSERT_EQ(got.values.size(), texts.size() * embedder.dimension());
  for (const float v : got.values) ASSERT_TRUE(std::isfinite(v));
  const std::span<const float> values(got.values);
  const std::size_t width = embedder.dimension();
  // White space is no token: the same as the empty text.
  EXPECT_NEAR(cosine(values.subspan(0, width), values.subspan(4 * width, width)), 1, 1e-6);
}

TEST(EmbeddingSettings, AFolderOfSentenceTransformersDecides) {
  const TempFolder folder;
  const auto read = [&](const EmbeddingOptions& options = {}) {
    return read_embedding_settings(folder.path(), options);
  };
  EXPECT_EQ(read().pooling, Pooling::mean);
  EXPECT_TRUE(read().normalize);
  EXPECT_EQ(read().max_length, 0U);

  folder.write("modules.json", modules_json({"Transformer", "Pooling"}));
  folder.write("1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  folder.write("sentence_bert_config.json", R"({"max_seq_length": 77, "do_lower_case": true})");
  folder.write("config_sentence_transformers.json",
               R"({"prompts": {"query": "find: "}, "default_prompt_name": "query"})");
  EXPECT_EQ(read().pooling, Pooling::cls);
  EXPECT_FALSE(read().normalize);
  EXPECT_EQ(read().max_length, 77U);
  EXPECT_TRUE(read().lowercase);
  EXPECT_EQ(read().prefix, "find: ");

  EmbeddingOptions options;
  options.pooling = Pooling::mean;
  options.normalize = true;
  options.prefix = "";
  options.max_length = 5;
  EXPECT_EQ(read(options).pooling, Pooling::mean);
  EXPECT_TRUE(read(options).normalize);
  EXPECT_EQ(read(options).max_length, 5U);
  EXPECT_EQ(read(options).prefix, "");
}

TEST(EmbeddingSettings, RefusesWhatItDoesNotHave) {
  const TempFolder folder;
  const auto read = [&](const EmbeddingOptions& options = {}) { read_embedding_settings(folder.path(), options); };
  EmbeddingOptions named;
  named.pooling = Pooling::mean;
  folder.write("modules.json", modules_json({"Transformer", "Pooling"}));
  folder.write("1_Pooling/config.json", R"({"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true})");
  test::expect_error("pooling_mode_cls_token and pooling_mode_max_tokens; name a pooling", read);
  EXPECT_NO_THROW(read(named));
  folder.write("1_Pooling/config.json", "{}");
  test::expect_error("found none", read);
  folder.write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true, "include_prompt": false})");
  EXPECT_NO_THROW(read());
  EmbeddingOptions prefixed;
  prefixed.prefix = "a: ";
  test::expect_error("include_prompt", [&] { read(prefixed); });
  folder.write("modules.json", modules_json({"Transformer", "Pooling", "Dense"}));
  test::expect_error("sentence_transformers.models.Dense, which nibble does not have", read);
  EXPECT_NO_THROW(read(named));
  folder.write("modules.json", R"([{"type": "Pooling", "path": "../elsewhere"}])");
  test::expect_error("a folder within the model's", read);
  folder.write("modules.json", "3");
  test::expect_error("modules", read);
  folder.write("modules.json", "[");
  test::expect_error("modules.json", read);
  std::filesystem::remove(folder.path() / "modules.json");
  folder.write("sentence_bert_config.json", R"({"max_seq_length": -1})");
  test::expect_error("max_seq_length", read);
}

TEST(TextEmbedder, RefusesWithASentence) {
  const TempFolder folder;
  const auto bert = open(copy_encoder(folder, "bert", "model"));
  test::expect_error("there is no pooling \"max\"", [] { pooling_named("max"); });
  EmbeddingOptions options;
  options.max_length = 100000;
  test::expect_error("positions for 24", [&] { TextEmbedder(bert, options, {}); });
  options.max_length = 2;
  test::expect_error("the special tokens alone are 2", [&] { TextEmbedder(bert, options, {}); });
  options.max_length = 0;
  options.pooling = Pooling::pooler;
  test::expect_error("has a head for masked tokens instead of a pooler",
                     [&] { TextEmbedder(open(copy_encoder(folder, "bert_mlm", "mlm")), options, {}); });
  // A folder that allows more tokens than the model has positions for is held to these.
  folder.write("model/sentence_bert_config.json", R"({"max_seq_length": 512})");
  EXPECT_EQ(TextEmbedder(bert, {}, {}).settings().max_length, 24U);
  test::expect_error("generates text", [] { TextEmbedder(open(test::golden_folder() / "llama_mha"), {}, {}); });
}

}  // namespace
}  // namespace nibble
