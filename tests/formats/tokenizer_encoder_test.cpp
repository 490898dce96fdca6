// Tokenizers of text encoders: single texts and pairs with their segments, truncation, vocabulary files without
// tokenizer.json, hostile files and texts. The expectations are those of the `tokenizers` library
// (tools/encoder_fixtures.py).
#include "formats/json.h"
#include "formats/tokenizer.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <map>

namespace nibble {
namespace {

using nlohmann::json;
using test::expect_error;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path kData = std::filesystem::path(NIBBLE_TEST_DATA) / "tokenizers";

std::optional<std::size_t> to_length(const json& value) {
  if (value.is_null()) return std::nullopt;
  return value.get<std::size_t>();
}

/// Every text and pair of a fixture.
void check_encoder(const Tokenizer& tokenizer, const json& expected) {
  const json strings = read_json_file(kData / "strings.json");
  const auto indexes = expected.at("texts").get<std::vector<std::size_t>>();
  ASSERT_GT(indexes.size(), 200U);
  ASSERT_GT(expected.at("pairs").size(), 50U);
  const auto text_at = [&](std::size_t i) { return strings.at(indexes.at(i)).get<std::string>(); };
  for (std::size_t i = 0; i < indexes.size(); ++i) {
    const std::string text = text_at(i);
    const Ids ids = expected["ids"][i].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text, true), ids) << json(text);
    const EncodedText encoded = tokenizer.encode_text(text);
    EXPECT_EQ(encoded.ids, ids) << json(text);
    EXPECT_EQ(encoded.type_ids, Ids(ids.size(), 0)) << json(text);
    EXPECT_EQ(tokenizer.decode(ids, i % 2 == 1), expected["decoded"][i].get<std::string>()) << json(text);
  }
  for (const json& pair : expected["pairs"]) {
    const std::string first = text_at(pair[0]);
    const std::string second = text_at(pair[1]);
    const EncodeOptions options = {.add_special_tokens = pair[3].get<bool>(), .max_length = to_length(pair[2])};
    const EncodedText encoded = tokenizer.encode_pair(first, second, options);
    EXPECT_EQ(encoded.ids, pair[4].get<Ids>()) << json(first) << " and " << json(second) << " up to " << pair[2];
    EXPECT_EQ(encoded.type_ids, pair[5].get<Ids>()) << json(first) << " and " << json(second);
  }
}

class EncoderKind : public testing::TestWithParam<const char*> {};

TEST_P(EncoderKind, AgreesWithTheTokenizersLibrary) {
  const std::filesystem::path folder = kData / "encoders";
  check_encoder(Tokenizer::load(folder / GetParam()), read_json_file(folder / (GetParam() + std::string(".ids.json"))));
}

INSTANTIATE_TEST_SUITE_P(All, EncoderKind,
                         testing::Values("bert", "bert_cased", "mpnet", "roberta", "xlm_roberta", "albert",
                                         "unigram_bytes"),
                         [](const auto& kind) { return std::string(kind.param); });

json encoder_file(const std::string& name) { return read_json_file(kData / "encoders" / name / "tokenizer.json"); }
json encoder_ids(const std::string& name) { return read_json_file(kData / "encoders" / (name + ".ids.json")); }
Tokenizer make(const json& file) { return Tokenizer::from_json(file.dump(), "tokenizer.json"); }

/// The vocabulary of a file, and its added tokens, as vocab.txt has them.
std::string vocabulary_lines(const json& file) {
  std::map<std::int32_t, std::string> tokens;
  for (const auto& [token, id] : file.at("model").at("vocab").items()) tokens[id.get<std::int32_t>()] = token;
  for (const json& added : file.at("added_tokens")) {
    tokens[added.at("id").get<std::int32_t>()] = added.at("content").get<std::string>();
  }
  std::string lines;
  for (const auto& [id, token] : tokens) lines += token + "\n";
  return lines;
}

TEST(VocabularyFiles, MakeTheTokenizerThatTokenizerJsonDoes) {
  for (const char* name : {"bert", "mpnet"}) {
    const test::TempFolder folder;
    EXPECT_FALSE(Tokenizer::is_in(folder.path()));
    folder.write("vocab.txt", vocabulary_lines(encoder_file(name)));
    EXPECT_TRUE(Tokenizer::is_in(folder.path()));
    check_encoder(Tokenizer::load(folder.path()), encoder_ids(name));
  }
  const test::TempFolder folder;
  const json file = encoder_file("roberta");
  json vocab = file.at("model").at("vocab");
  for (const json& added : file.at("added_tokens")) vocab[added.at("content").get<std::string>()] = added.at("id");
  folder.write("vocab.json", vocab.dump());
  EXPECT_FALSE(Tokenizer::is_in(folder.path()));
  std::string merges = "#version: 0.2\r\n";
  for (const json& pair : file.at("model").at("merges")) {
    merges += pair[0].get<std::string>() + " " + pair[1].get<std::string>() + "\r\n";
  }
  folder.write("merges.txt", merges);
  check_encoder(Tokenizer::load(folder.path()), encoder_ids("roberta"));
}

TEST(VocabularyFiles, FollowTheFlagsOfTokenizerConfig) {
  const test::TempFolder folder;
  folder.write("vocab.txt", "[PAD]\n[UNK]\n<cls>\n[SEP]\n[MASK]\nÄ\na\n中文\nä\n");
  folder.write("tokenizer_config.json", R"({"do_lower_case": false, "tokenize_chinese_chars": false,
    "cls_token": {"content": "<cls>"}, "model_max_length": 512})");
  Tokenizer tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.encode("Ä 中文", true), (Ids{2, 5, 7, 3}));
  EXPECT_EQ(tokenizer.special().cls, 2);
  EXPECT_EQ(tokenizer.special().sep, 3);
  EXPECT_EQ(tokenizer.special().pad, 0);
  EXPECT_EQ(tokenizer.special().mask, 4);
  EXPECT_EQ(tokenizer.model_max_length(), 512U);
  folder.write("tokenizer_config.json", R"({"cls_token": "<cls>", "model_max_length": 1e30})");
  tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.encode("Ä 中文", true), (Ids{2, 6, 1, 1, 3}));
  EXPECT_EQ(tokenizer.model_max_length(), std::nullopt);
  folder.write("tokenizer_config.json", R"({"cls_token": "<cls>", "strip_accents": false})");
  EXPECT_EQ(Tokenizer::load(folder.path()).encode("Ä", true), (Ids{2, 8, 3}));
  folder.write("tokenizer_config.json", "{}");
  expect_error("the vocabulary lacks the cls_token \"[CLS]\"", [&] { Tokenizer::load(folder.path()); });
  folder.write("vocab.txt", "[CLS]\n[SEP]\n");
  expect_error("unk_token should be a token of the vocabulary", [&] { Tokenizer::load(folder.path()); });
  folder.write("vocab.txt", "[CLS]\n\xFF\n");
  expect_error("expected UTF-8 text", [&] { Tokenizer::load(folder.path()); });
}

TEST(EncodeText, TruncatesAsTransformersDoes) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "encoders" / "bert");
  const Ids a = tokenizer.encode("a a a a a a", false);
  ASSERT_EQ(a.size(), 6U);
  const auto lengths = [&](std::string_view first, std::string_view second, std::size_t max_length) {
    const EncodedText pair = tokenizer.encode_pair(first, second, {.max_length = max_length});
    EXPECT_EQ(pair.ids.size(), pair.type_ids.size());
    const auto second_segment = std::count(pair.type_ids.begin(), pair.type_ids.end(), 1);
    // [CLS] and [SEP] are of the first segment, another [SEP] of the second.
    return std::pair(static_cast<std::ptrdiff_t>(pair.ids.size()) - second_segment - 2, second_segment - 1);
  };
  EXPECT_EQ(lengths("a a a a a a", "a a a a a a", 10), std::pair(3L, 4L));
  EXPECT_EQ(lengths("a a a a a a", "a a a a a", 10), std::pair(4L, 3L));
  EXPECT_EQ(lengths("a", "a a a a a a", 8), std::pair(1L, 4L));
  EXPECT_EQ(lengths("a a a a a a", "a", 8), std::pair(4L, 1L));
  EXPECT_EQ(lengths("a a", "a a", 100), std::pair(2L, 2L));
  EXPECT_EQ(lengths("a a", "", 5), std::pair(2L, 0L));
  EXPECT_EQ(lengths("a a", "a", 3), std::pair(0L, 0L));
  EXPECT_EQ(tokenizer.encode_text("a a a", {.max_length = 4}).ids.size(), 4U);
  EXPECT_EQ(tokenizer.encode_text("a a a", {.add_special_tokens = false, .max_length = 0}).ids, Ids{});
  expect_error("max_length is 2, but the special tokens alone are 3",
               [&] { tokenizer.encode_pair("a", "a", {.max_length = 2}); });
}

TEST(EncodeText, TruncatesAtTheSideThatTheConfigurationNames) {
  const test::TempFolder folder;
  folder.write("tokenizer.json", encoder_file("bert").dump());
  folder.write("tokenizer_config.json", R"({"truncation_side": "left"})");
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  const Ids whole = tokenizer.encode("one two three", true);
  const EncodedText cut = tokenizer.encode_text("one two three", {.max_length = 5});
  EXPECT_EQ(cut.ids,
            (Ids{whole[0], whole[whole.size() - 4], whole[whole.size() - 3], whole[whole.size() - 2], whole.back()}));
}

TEST(EncodeText, WrapsEachTextOfAPairWhereTheConfigurationAddsBosAndEos) {
  const test::TempFolder folder;
  folder.write("tokenizer.json", encoder_file("xlm_roberta").dump());
  folder.write("tokenizer_config.json",
               R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true})");
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  const EncodedText pair = tokenizer.encode_pair("", "", {});
  EXPECT_EQ(pair.ids, (Ids{0, 2, 0, 2}));
  EXPECT_EQ(pair.type_ids, (Ids{0, 0, 1, 1}));
}

TEST(EncoderTokenizer, TakesTimeInProportionToOneLongWord) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string letters(1'000'000, 'a');
  std::string marks = "e";
  for (int i = 0; i < 500'000; ++i) marks += "\u0301";
  for (const char* name : {"bert", "mpnet", "xlm_roberta", "albert", "unigram_bytes"}) {
    const Tokenizer tokenizer = Tokenizer::load(kData / "encoders" / name);
    EXPECT_FALSE(tokenizer.encode(letters, false).empty());
    EXPECT_FALSE(tokenizer.encode(marks, false).empty());
  }
  // A vocabulary that makes every search as long as it can be, with and without a limit on words.
  json vocab = json::object({{"[UNK]", 0}});
  json pieces = json::array({json::array({"<unk>", -20.0})});
  for (std::size_t length = 1; length <= 64; ++length) {
    vocab["##" + std::string(length, 'a')] = length;
    pieces.push_back({std::string(length, 'a') + (length == 64 ? "b" : ""), -1.0});
  }
  vocab["a"] = 65;
  const Tokenizer wordpiece =
      make({{"model", {{"type", "WordPiece"}, {"vocab", vocab}, {"max_input_chars_per_word", 100'000'000}}}});
  EXPECT_EQ(wordpiece.encode(letters, false).size(), 1 + 15'625U);
  const Tokenizer unigram = make({{"model", {{"type", "Unigram"}, {"vocab", pieces}, {"unk_id", 0}}}});
  EXPECT_EQ(unigram.encode(letters, false).size(), 15'874U);
  // Seconds where it is linear even under sanitizers; quadratic work would take hours.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

TEST(EncoderTokenizer, CutsWhatIsUnknown) {
  json file = {{"model",
                {{"type", "WordPiece"},
                 {"max_input_chars_per_word", 3},
                 {"vocab", {{"[UNK]", 0}, {"a", 1}, {"##b", 2}, {"##bb", 3}, {"é", 4}, {"##é", 5}}}}}};
  const Tokenizer wordpiece = make(file);
  EXPECT_EQ(wordpiece.encode("ab", false), (Ids{1, 2}));
  EXPECT_EQ(wordpiece.encode("abb", false), (Ids{1, 3}));
  EXPECT_EQ(wordpiece.encode("abc", false), (Ids{0}));
  EXPECT_EQ(wordpiece.encode("b", false), (Ids{0}));
  EXPECT_EQ(wordpiece.encode("ééé", false), (Ids{4, 5, 5}));
  EXPECT_EQ(wordpiece.encode("éééé", false), (Ids{0}));
  json unigram = {{"model", {{"type", "Unigram"}, {"vocab", json::parse(R"([["a", -1], ["b", -2], ["ab", -2.5]])")}}}};
  EXPECT_EQ(make(unigram).encode("abba", false), (Ids{2, 1, 0}));
  expect_error("no token spells the character \"é\"", [&] { make(unigram).encode("aéb", false); });
  unigram["model"]["unk_id"] = 1;
  EXPECT_EQ(make(unigram).encode("aéüb", false), (Ids{0, 1}));
}

TEST(EncoderTokenizer, RefusesMalformedModels) {
  const auto model = [](const char* text) { return [text] { make({{"model", json::parse(text)}}); }; };
  expect_error("unk_token should be a token of the vocabulary", model(R"({"type": "WordPiece", "vocab": {"a": 0}})"));
  expect_error("max_input_chars_per_word should be",
               model(R"({"type": "WordPiece", "vocab": {"[UNK]": 0}, "max_input_chars_per_word": -1})"));
  expect_error("vocab has a token of 1025 bytes (id 1)", [] {
    make({{"model", {{"type", "WordPiece"}, {"vocab", {{"[UNK]", 0}, {std::string(1025, 'a'), 1}}}}}});
  });
  expect_error("vocab should be a list", model(R"({"type": "Unigram", "vocab": {"a": 0}})"));
  expect_error("vocab should be a list", model(R"({"type": "Unigram", "vocab": []})"));
  expect_error("vocab[1] should be [token, log probability], found [\"b\"]",
               model(R"({"type": "Unigram", "vocab": [["a", 0], ["b"]]})"));
  expect_error("unk_id should be an id of the vocabulary",
               model(R"({"type": "Unigram", "vocab": [["a", 0]], "unk_id": 1})"));
}

TEST(EncoderTokenizer, RefusesMalformedPostProcessors) {
  const auto with = [](const char* text) {
    return [text] {
      json file = encoder_file("bert");
      file["post_processor"] = json::parse(text);
      make(file);
    };
  };
  expect_error("single should be a template with the text A once",
               with(R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}]})"));
  expect_error("pair should be a template with each of the texts A and B once", with(R"({"type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}]})"));
  expect_error("type_id should be an integer from 0 to 3",
               with(R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": -1}}]})"));
  expect_error("two of its steps add special tokens", with(R"({"type": "Sequence", "processors": [
    {"type": "BertProcessing", "cls": ["a", 1], "sep": ["b", 2]}, {"type": "ByteLevel"},
    {"type": "RobertaProcessing", "cls": ["a", 1], "sep": ["b", 2]}]})"));
}

TEST(EncoderTokenizer, RefusesMalformedTablesOfCharacters) {
  const auto with = [](const char* base64) {
    json file = encoder_file("bert");
    file["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", base64}};
    return make(file);
  };
  expect_error("precompiled_charsmap should be base64", [&] { with("A"); });
  expect_error("precompiled_charsmap should be base64", [&] { with("AA!A"); });
  expect_error("has 3 bytes; expected at least 4", [&] { with("AAAA"); });
  expect_error("says that its trie has 0 bytes", [&] { with("AAAAAA=="); });
  expect_error("says that its trie has 8 bytes; expected a multiple of 4 up to the 4 that follow",
               [&] { with("CAAAAAAAAAA="); });
  expect_error("are not valid UTF-8", [&] { with("BAAAAAAAAAD/"); });
  // A trie that leads out of itself has no rule there.
  EXPECT_EQ(with("BAAAAP///38A").encode("Abc é", false).empty(), false);
}

}  // namespace
}  // namespace nibble
