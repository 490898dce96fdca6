// What logits of heads become: scores, labels, entities, answers.
#include "engine/text_heads.h"

#include "engine/text_model.h"
#include "support/encoder_folder.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

namespace nibble {
namespace {

using test::TempFolder;

TEST(Scores, SoftmaxSigmoidAndValues) {
  const std::vector<float> logits = {1, 3, 2};
  const std::vector<float> soft = scores_of(logits, ScoreKind::softmax);
  EXPECT_NEAR(soft[1], std::exp(3.0) / (std::exp(1.0) + std::exp(2.0) + std::exp(3.0)), 1e-6);
  EXPECT_NEAR(std::accumulate(soft.begin(), soft.end(), 0.0), 1, 1e-6);
  EXPECT_NEAR(scores_of(logits, ScoreKind::sigmoid)[0], 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_EQ(scores_of(logits, ScoreKind::value), logits);
  const std::vector<float> far = scores_of(std::vector<float>{1e30F, -1e30F}, ScoreKind::softmax);
  EXPECT_EQ(far, (std::vector<float>{1, 0}));
  EXPECT_TRUE(scores_of({}, ScoreKind::softmax).empty());
}

TEST(Scores, TheBestComeFirst) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scores = {0.5F, nan, 0.75F, 0.5F};
  std::vector<std::int32_t> ids;
  for (const Candidate& c : best_of(scores, 0)) ids.push_back(c.id);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{2, 0, 3, 1}));
  EXPECT_EQ(best_of(scores, 1).size(), 1U);
  EXPECT_EQ(best_of(scores, 100).size(), 4U);
  EXPECT_TRUE(best_of({}, 3).empty());
}

TEST(Groups, FollowTheLettersOfTheirLabels) {
  const std::vector<std::string> labels = {"B-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "MISC", "MISC", "O"};
  const std::vector<float> scores = {0.5F, 0.75F, 1, 1, 1, 1, 0.5F, 1, 1};
  const std::vector<TokenGroup> groups = group_tokens(labels, scores, 10);
  ASSERT_EQ(groups.size(), 5U);
  const std::vector<std::string> kinds = {"PER", "PER", "LOC", "ORG", "MISC"};
  const std::vector<std::size_t> begins = {10, 12, 14, 15, 16};
  const std::vector<std::size_t> ends = {12, 13, 15, 16, 18};
  for (std::size_t i = 0; i < groups.size(); ++i) {
    EXPECT_EQ(groups[i].label, kinds[i]);
    EXPECT_EQ(groups[i].tokens.begin, begins[i]);
    EXPECT_EQ(groups[i].tokens.end, ends[i]);
  }
  EXPECT_FLOAT_EQ(groups[0].score, 0.625F);
  EXPECT_FLOAT_EQ(groups[4].score, 0.75F);
  EXPECT_TRUE(group_tokens({}, {}, 0).empty());
}

TEST(Groups, OfOneKindApartStayApart) {
  const std::vector<std::string> labels = {"I-PER", "O", "I-PER"};
  EXPECT_EQ(group_tokens(labels, std::vector<float>(3, 1), 0).size(), 2U);
}

TEST(Answers, TheBestSpanKeepsItsOrderRangeAndLength) {
  // [begin, end] of each token: token 0 is outside of the range, an end before its beginning does not count.
  const std::vector<float> logits = {99, 99, 0, 3, 4, 0, 0, 1, 0, 2};
  const auto best = best_span(logits, {1, 5}, 0);
  ASSERT_TRUE(best);
  EXPECT_EQ(best->tokens.begin, 2U);
  EXPECT_EQ(best->tokens.end, 5U);
  EXPECT_GT(best->score, 0);
  EXPECT_LT(best->score, 1);
  const auto shorter = best_span(logits, {1, 5}, 2);
  EXPECT_EQ(shorter->tokens.begin, 2U);
  EXPECT_EQ(shorter->tokens.end, 4U);
  EXPECT_FALSE(best_span(logits, {3, 3}, 0));
}

TEST(Answers, LongTextsAreReadInWindows) {
  // [CLS] 2 tokens [SEP] 9 tokens [SEP]
  EncodedText pair;
  pair.ids = {1, 10, 11, 2, 20, 21, 22, 23, 24, 25, 26, 27, 28, 2};
  pair.type_ids = {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  pair.texts = {TokenRange{1, 3}, TokenRange{4, 13}};
  EXPECT_EQ(windows_of(pair, 14, 2).size(), 1U);
  const std::vector<TextWindow> windows = windows_of(pair, 9, 1);
  ASSERT_EQ(windows.size(), 3U);
  EXPECT_EQ(windows[0].pair.ids, (std::vector<std::int32_t>{1, 10, 11, 2, 20, 21, 22, 23, 2}));
  EXPECT_EQ(windows[1].pair.ids, (std::vector<std::int32_t>{1, 10, 11, 2, 23, 24, 25, 26, 2}));
  EXPECT_EQ(windows[2].pair.ids, (std::vector<std::int32_t>{1, 10, 11, 2, 26, 27, 28, 2}));
  EXPECT_EQ(windows[2].pair.type_ids, (std::vector<std::int32_t>{0, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(windows[2].pair.texts[0].end, 3U);
  EXPECT_EQ(windows[2].pair.texts[1].begin, 4U);
  EXPECT_EQ(windows[2].pair.texts[1].end, 7U);
  EXPECT_EQ(windows[0].first, 0U);
  EXPECT_EQ(windows[2].first, 6U);
  // Room for one token, and an overlap that would go no further.
  EXPECT_EQ(windows_of(pair, 6, 99).size(), 9U);
  EXPECT_EQ(windows_of(pair, 7, 99).size(), 8U);
  test::expect_error("leaves no room", [&] { windows_of(pair, 5, 0); });
  // The text to look in may stand first.
  pair.texts = {TokenRange{11, 13}, TokenRange{1, 10}};
  const std::vector<TextWindow> turned = windows_of(pair, 10, 0);
  ASSERT_EQ(turned.size(), 2U);
  EXPECT_EQ(turned[1].pair.texts[0].begin, 6U);
  EXPECT_EQ(turned[1].pair.ids[turned[1].pair.texts[0].begin], 27);
}

TEST(LabelNames, ComeFromTheConfiguration) {
  const TempFolder folder;
  const auto labels = [&](const nlohmann::json& changes, HeadKind head = HeadKind::sequence_class,
                          std::int64_t columns = 3) {
    const std::filesystem::path from = test::golden_encoders() / "bert_sequence_classification";
    nlohmann::json config = nlohmann::json::parse(std::ifstream(from / "config.json"));
    for (const auto& [key, value] : changes.items()) config[key] = value;
    std::filesystem::copy(from / "model.safetensors", folder.path() / "m" / "model.safetensors",
                          std::filesystem::copy_options::overwrite_existing);
    folder.write("m/config.json", config.dump());
    return read_labels(Checkpoint(folder.path() / "m"), head, columns);
  };
  std::filesystem::create_directory(folder.path() / "m");
  EXPECT_EQ(labels({}).names, (std::vector<std::string>{"LOW", "MIDDLE", "HIGH"}));
  EXPECT_EQ(labels({}).kind, ScoreKind::softmax);
  EXPECT_EQ(labels({}, HeadKind::sequence_class, 4).names[3], "LABEL_3");
  EXPECT_EQ(labels({}, HeadKind::sequence_class, 1).kind, ScoreKind::sigmoid);
  EXPECT_EQ(labels({{"id2label", nullptr}}).names[0], "LABEL_0");
  EXPECT_EQ(labels({{"problem_type", "multi_label_classification"}}).kind, ScoreKind::sigmoid);
  EXPECT_EQ(labels({{"problem_type", "regression"}}).kind, ScoreKind::value);
  EXPECT_EQ(labels({{"problem_type", "regression"}}, HeadKind::token_class).kind, ScoreKind::softmax);
  test::expect_error("problem_type should be", [&] { labels({{"problem_type", "guessing"}}); });
  test::expect_error("id2label", [&] { labels({{"id2label", {{"0", 5}}}}); });
}

TEST(TextModel, GivesEachTextItsOwnRowsOfTheHead) {
  const TempFolder folder;
  for (const std::string name : {"bert_mlm", "bert_sequence_classification", "bert_token_classification",
                                 "bert_question_answering", "distilbert_question_answering"}) {
    SCOPED_TRACE(name);
    TextModelOptions options;
    options.batch_size = 2;
    TextModel model(std::make_shared<const Checkpoint>(test::copy_encoder(folder, name, name)), options);
    std::vector<EncodedText> texts = {model.tokenize("w9"), model.tokenize_pair("w8 w7", "w20 w21 w22"),
                                      model.tokenize("w5 w6 w7 w8"), model.tokenize("")};
    EXPECT_EQ(texts[1].texts[0].begin, 1U);
    EXPECT_EQ(texts[1].texts[0].end, 3U);
    EXPECT_EQ(texts[1].texts[1].begin, 4U);
    EXPECT_EQ(texts[1].texts[1].end, 7U);
    const auto columns = static_cast<std::size_t>(model.engine().head_columns());
    std::vector<std::vector<float>> heads(texts.size());
    const TextWants wants = {.hidden = false, .head = true};
    model.run(texts, wants, [&](std::size_t text, const TextRows& rows) {
      EXPECT_TRUE(rows.hidden.empty());
      EXPECT_TRUE(heads[text].empty()) << "a text was given twice";
      heads[text].assign(rows.head.begin(), rows.head.end());
    });
    for (std::size_t i = 0; i < texts.size(); ++i) {
      ASSERT_EQ(heads[i].size(), (model.engine().head_has_rows() ? texts[i].ids.size() : 1) * columns);
      model.run({&texts[i], 1}, wants, [&](std::size_t, const TextRows& rows) {
        for (std::size_t v = 0; v < heads[i].size(); ++v) ASSERT_NEAR(rows.head[v], heads[i][v], 1e-4);
      });
    }
  }
}

TEST(TextModel, GivesTheRowsAskedForOfEachText) {
  const TempFolder folder;
  TextModelOptions options;
  options.batch_size = 2;
  TextModel model(std::make_shared<const Checkpoint>(test::copy_encoder(folder, "bert_mlm", "m")), options);
  const std::vector<EncodedText> texts = {model.tokenize("w9"), model.tokenize("w20 w21 w22 w23"),
                                          model.tokenize("w5 w6 w7")};
  const std::vector<std::vector<std::int32_t>> rows = {{1}, {0, 3, 5}, {2, 4}};
  const auto columns = static_cast<std::size_t>(model.engine().head_columns());
  std::vector<std::vector<float>> all(texts.size());
  model.run(texts, {.hidden = false, .head = true},
            [&](std::size_t text, const TextRows& of) { all[text].assign(of.head.begin(), of.head.end()); });
  std::size_t given = 0;
  model.run(texts, {.hidden = false, .head = true, .head_rows = rows}, [&](std::size_t text, const TextRows& of) {
    ++given;
    ASSERT_EQ(of.head.size(), rows[text].size() * columns);
    for (std::size_t i = 0; i < rows[text].size(); ++i) {
      const auto from = static_cast<std::size_t>(rows[text][i]) * columns;
      for (std::size_t c = 0; c < columns; ++c) ASSERT_NEAR(of.head[i * columns + c], all[text][from + c], 1e-4);
    }
  });
  EXPECT_EQ(given, texts.size());
  const auto refused = [&](const std::vector<std::vector<std::int32_t>>& wanted) {
    model.run(texts, {.hidden = false, .head = true, .head_rows = wanted}, [](std::size_t, const TextRows&) {});
  };
  test::expect_error("of 1 texts, but 3 were given", [&] { refused({{0}}); });
  test::expect_error("asked for of text 3: leave it out", [&] { refused({{0}, {0}, {}}); });
  test::expect_error("token 3 of sequence", [&] { refused({{3}, {0}, {0}}); });
}

TEST(TextModel, RefusesATextWithoutTokens) {
  const TempFolder folder;
  TextModel model(std::make_shared<const Checkpoint>(test::copy_encoder(folder, "bert", "model")), {});
  const std::vector<EncodedText> texts(1);
  test::expect_error("leave out empty texts", [&] { model.run(texts, {}, [](std::size_t, const TextRows&) {}); });
}

}  // namespace
}  // namespace nibble
