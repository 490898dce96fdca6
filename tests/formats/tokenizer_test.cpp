// What the fixtures cannot show: configuration beside the file, limits, refusals, and time on hostile texts.
#include "formats/tokenizer.h"

#include "formats/unicode.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using nlohmann::json;
using test::expect_error;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path kData = std::filesystem::path(NIBBLE_TEST_DATA) / "tokenizers";

/// A tokenizer of the letters a, b, c, space and of some merges.
json small_file() {
  return json::parse(R"({
    "added_tokens": [{"id": 7, "content": "<s>", "special": true}, {"id": 9, "content": "</s>", "special": true},
                     {"id": 10, "content": "<tool>", "special": false}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, " ": 3, "ab": 4, "abc": 5, "aa": 6},
              "merges": [["a", "b"], "ab c", ["a", "a"]]}
  })");
}

Tokenizer make(const json& file) { return Tokenizer::from_json(file.dump(), "tokenizer.json"); }

TEST(Tokenizer, MergesTheLowestRankFirstAndTheLeftmostAmongEquals) {
  const Tokenizer tokenizer = make(small_file());
  EXPECT_EQ(tokenizer.encode("abc", false), (Ids{5}));
  EXPECT_EQ(tokenizer.encode("aab", false), (Ids{0, 4}));
  EXPECT_EQ(tokenizer.encode("aaa", false), (Ids{6, 0}));
  EXPECT_EQ(tokenizer.encode("", true), Ids{});
}

TEST(Tokenizer, DropsWhatTheVocabularyLacksWhereNoTokenStandsForIt) {
  // The letters on both sides of a dropped one become neighbours.
  EXPECT_EQ(make(small_file()).encode("aéb", false), (Ids{4}));
}

// As the `tokenizers` library 0.23.3 has it: the scheme "first" asks for the text's own first character.
TEST(Tokenizer, MarksNoBeginningWhoseFirstCharacterIsGone) {
  struct Case {
    json normalizer;
    std::string text;
    bool marked;
  };
  const auto replace = [](const char* pattern) {
    return json{{"type", "Replace"}, {"pattern", {{"Regex", pattern}}}, {"content", ""}};
  };
  const json strip = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  const json right = {{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}};
  const json bert = {{"type", "BertNormalizer"}};
  const json accents = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFD"}}, {{"type", "StripAccents"}}}}};
  const json prefix = {{"type", "Sequence"}, {"normalizers", {strip, {{"type", "Prepend"}, {"prepend", "c"}}}}};
  const std::vector<Case> cases = {
      {nullptr, "ab", true},
      {strip, "ab ", true},
      {strip, "  a b", false},
      {right, "ab ", true},
      {replace("x"), "xab", false},
      {replace("x"), "axb", true},
      {replace("^x*"), "ab", true},
      {bert, "ab", true},
      {bert, std::string("\x01", 1) + "ab", false},
      {{{"type", "Nmt"}},
       "\x01"
       "ab",
       false},
      {{{"type", "Nmt"}},
       "a\x01"
       "b",
       true},
      {accents, "\u0301ab", false},
      {accents, "\u00e1b", true},
      {{{"type", "Lowercase"}}, "AB", true},
      {prefix, "ab", true},
      {prefix, " ab", false},
  };
  json file = json::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "▁": 3}, "merges": []},
                              "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}})");
  for (const Case& c : cases) {
    SCOPED_TRACE(c.normalizer.dump() + " of " + c.text);
    if (!c.normalizer.is_null()) file["normalizer"] = c.normalizer;
    EXPECT_EQ(make(file).encode(c.text, false).front() == 3, c.marked);
  }
}

TEST(Tokenizer, KnowsTokensAndIds) {
  const Tokenizer tokenizer = make(small_file());
  EXPECT_EQ(tokenizer.token_id("abc"), 5);
  EXPECT_EQ(tokenizer.token_id("<s>"), 7);
  EXPECT_EQ(tokenizer.token_id("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer.token(5), "abc");
  EXPECT_EQ(tokenizer.token(10), "<tool>");
  EXPECT_EQ(tokenizer.token(8), "");
  EXPECT_EQ(tokenizer.token(-1), "");
  EXPECT_EQ(tokenizer.token(1'000'000), "");
  EXPECT_EQ(tokenizer.vocab_size(), 11U);
  EXPECT_TRUE(tokenizer.is_special(7));
  EXPECT_FALSE(tokenizer.is_special(10));
  EXPECT_FALSE(tokenizer.is_special(0));
}

TEST(Tokenizer, DecodesIdsThatNoTokenHasToNothing) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "gpt2");
  Ids ids = tokenizer.encode("The GNU", false);
  ids.insert(ids.begin() + 1, {-5, 2'000'000'000, static_cast<std::int32_t>(tokenizer.vocab_size())});
  EXPECT_EQ(tokenizer.decode(ids, false), "The GNU");
}

TEST(Tokenizer, ReadsBytesThatAreNoUtf8AsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "gpt2");
  EXPECT_EQ(tokenizer.encode("a\xFF\xE4\xBD", false), tokenizer.encode("a\uFFFD\uFFFD", false));
}

TEST(Tokenizer, TakesRolesAndFlagsFromTheFilesBesideIt) {
  const test::TempFolder folder;
  folder.write("tokenizer.json", small_file().dump());
  folder.write("tokenizer_config.json", R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>"})");
  folder.write("special_tokens_map.json", R"({"eos_token": "<s>", "pad_token": "</s>", "unk_token": null})");
  const Tokenizer plain = Tokenizer::load(folder.path());
  EXPECT_EQ(plain.special().bos, 7);
  EXPECT_EQ(plain.special().eos, 9);
  EXPECT_EQ(plain.special().pad, 9);
  EXPECT_EQ(plain.special().unk, std::nullopt);
  EXPECT_EQ(plain.encode("ab", true), (Ids{4}));

  folder.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true})");
  EXPECT_EQ(Tokenizer::load(folder.path()).encode("ab", true), (Ids{7, 4}));
  EXPECT_EQ(Tokenizer::load(folder.path() / "tokenizer.json").encode("ab", true), (Ids{7, 4}));
  folder.write("tokenizer_config.json",
               R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false, "add_eos_token": true})");
  EXPECT_EQ(Tokenizer::load(folder.path()).encode("ab", true), (Ids{4, 9}));
}

TEST(Tokenizer, SaysWhichFileIsMissing) {
  const test::TempFolder folder;
  expect_error("there is no tokenizer.json", [&] { Tokenizer::load(folder.path()); });
  folder.write("tokenizer.json", small_file().dump());
  folder.write("tokenizer_config.json", "{\"add_bos_token\": \"yes\"}");
  expect_error("add_bos_token should be true or false, found \"yes\"", [&] { Tokenizer::load(folder.path()); });
}

TEST(Tokenizer, RefusesPartsThatItDoesNotHaveByName) {
  const auto with = [](const char* key, const char* value) {
    json file = small_file();
    file[key] = json::parse(value);
    return file;
  };
  expect_error("normalizer \"X\" is not supported", [&] { make(with("normalizer", R"({"type": "X"})")); });
  expect_error("pre-tokenizer \"UnicodeScripts\" is not supported",
               [&] { make(with("pre_tokenizer", R"({"type": "UnicodeScripts"})")); });
  expect_error("decoder \"CTC\" is not supported", [&] { make(with("decoder", R"({"type": "CTC"})")); });
  expect_error("post-processor \"X\" is not supported", [&] { make(with("post_processor", R"({"type": "X"})")); });
  expect_error("model \"WordLevel\" is not supported", [&] { make(with("model", R"({"type": "WordLevel"})")); });
}

TEST(Tokenizer, RefusesMalformedFilesWithASentence) {
  const auto broken = [](const char* pointer, const json& value) {
    json file = small_file();
    file[json::json_pointer(pointer)] = value;
    return file;
  };
  expect_error("not valid JSON", [] { Tokenizer::from_json("{\"model\":", "tokenizer.json"); });
  expect_error("should be an object", [] { Tokenizer::from_json("[]", "tokenizer.json"); });
  expect_error("model should be an object", [] { Tokenizer::from_json("{}", "tokenizer.json"); });
  expect_error("token id from 0 to", [&] { make(broken("/model/vocab/a", -1)); });
  expect_error("token id from 0 to", [&] { make(broken("/model/vocab/a", 1 << 30)); });
  expect_error("token id from 0 to", [&] { make(broken("/model/vocab/a", 1.5)); });
  expect_error("have one id, 1", [&] { make(broken("/model/vocab/a", 1)); });
  expect_error("needs the token \"z\"", [&] { make(broken("/model/merges/0", {"a", "z"})); });
  expect_error("needs the token \"ac\"", [&] { make(broken("/model/merges/0", "a c")); });
  expect_error("merge 0 should be", [&] { make(broken("/model/merges/0", "abc")); });
  expect_error("merge 0 should be", [&] { make(broken("/model/merges/0", "a b c")); });
  expect_error("merge 0 should be", [&] { make(broken("/model/merges/0", 3)); });
  expect_error("unk_token should be a token of the vocabulary", [&] { make(broken("/model/unk_token", "<x>")); });
  expect_error("added_tokens[0].id should be a token id", [&] {
    json file = small_file();
    file["added_tokens"][0].erase("id");
    make(file);
  });
  expect_error("a string of at most", [&] { make(broken("/added_tokens/0/content", std::string(5000, 'x'))); });
  expect_error("adds the token id 8, which no token has", [&] {
    make(broken("/post_processor", json::parse(R"({"type": "BertProcessing", "sep": ["x", 8], "cls": ["<s>", 7]})")));
  });
  expect_error("cannot compile the regular expression \"(a\"", [&] {
    make(broken("/pre_tokenizer",
                json::parse(R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"})")));
  });
  expect_error("behavior should be Removed", [&] {
    make(broken("/pre_tokenizer", json::parse(R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Odd"})")));
  });
}

TEST(Tokenizer, EndsAPatternThatBacktracksWithoutEnd) {
  json file = small_file();
  file["pre_tokenizer"] =
      json::parse(R"({"type": "Split", "pattern": {"Regex": "(a+)+c"}, "behavior": "Isolated", "invert": false})");
  const Tokenizer tokenizer = make(file);
  expect_error("gave up on a text of 66 bytes", [&] { tokenizer.encode(std::string(64, 'a') + "bc", false); });
}

TEST(Tokenizer, RefusesToBlowATextUp) {
  json file = small_file();
  json step = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaa"}};
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", json(30, step)}};
  const Tokenizer tokenizer = make(file);
  expect_error("longer than", [&] { tokenizer.encode("a", false); });
}

TEST(Tokenizer, TakesTimeInProportionToOneLongWord) {
  // 400 thousand letters in one word: quadratic merging would take minutes.
  constexpr std::size_t kLetters = 400'000;
  const Tokenizer gpt2 = Tokenizer::load(kData / "gpt2");
  const std::string word(kLetters, 'a');
  EXPECT_EQ(gpt2.decode(gpt2.encode(word, false), false), word);
  const Tokenizer llama2 = Tokenizer::load(kData / "llama2_legacy");
  EXPECT_EQ(llama2.decode(llama2.encode(word, false), false), word);
  const std::string spaces(kLetters, ' ');
  const Tokenizer llama3 = Tokenizer::load(kData / "llama3");
  EXPECT_EQ(llama3.decode(llama3.encode(spaces, false), false), spaces);
  // Combining marks out of order are sorted.
  std::string marks;
  for (std::size_t i = 0; i < kLetters / 4; ++i) marks += i % 2 == 0 ? "\u0301" : "\u0323";
  EXPECT_EQ(to_valid_utf8(marks), marks);
  const std::string sorted = normalize_unicode(marks, NormalForm::nfd);
  EXPECT_EQ(sorted.substr(0, 4), "\u0323\u0323");
  EXPECT_TRUE(sorted.ends_with("\u0301\u0301"));
}

TEST(Tokenizer, TakesTimeInProportionToAddedTokensAmongSpaces) {
  json file = small_file();
  file["added_tokens"].push_back({{"id", 11}, {"content", " "}, {"special", true}, {"lstrip", true}, {"rstrip", true}});
  const Tokenizer tokenizer = make(file);
  EXPECT_EQ(tokenizer.encode(std::string(200'000, ' ') + "a", false).size(), 200'001U);
}

TEST(StreamingDecoder, HoldsBackAnIncompleteCharacter) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "gpt2");
  const Ids ids = tokenizer.encode("x👍y", false);
  ASSERT_GT(ids.size(), 4U);
  StreamingDecoder stream(tokenizer, false);
  EXPECT_EQ(stream.push(ids[0]), "x");
  for (std::size_t i = 1; i + 2 < ids.size(); ++i) EXPECT_EQ(stream.push(ids[i]), "");
  EXPECT_EQ(stream.push(ids[ids.size() - 2]), "👍");
  EXPECT_EQ(stream.push(ids.back()), "y");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamingDecoder, GivesOutBytesThatNothingCompletes) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "gpt2");
  const Ids ids = tokenizer.encode("👍", false);
  StreamingDecoder stream(tokenizer, false);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  // A model gone wrong repeats a first byte for ever: the text must come out, and the window not grow.
  std::string text;
  for (int i = 0; i < 1000; ++i) text += stream.push(ids[0]);
  EXPECT_GT(text.size(), 900U * 3);
}

TEST(StreamingDecoder, GivesOutWholeCharactersWhereBytesAreReadAnew) {
  // Two bytes spell þ, which is given out; with the bytes of U+FFFD, held back until there are too many, they spell
  // nothing.
  const Tokenizer tokenizer = Tokenizer::load(kData / "llama2_legacy");
  StreamingDecoder stream(tokenizer, false);
  for (const std::int32_t id : tokenizer.encode(" þ\uFFFD\uFFFD\uFFFD b", false)) {
    EXPECT_TRUE(is_valid_utf8(stream.push(id)));
  }
  EXPECT_TRUE(is_valid_utf8(stream.finish()));
}

TEST(Unicode, DecodesWhatIsUtf8AndReplacesMaximalParts) {
  EXPECT_EQ(to_valid_utf8("a\xC3\xA9\xF0\x9F\x91\x8D"), "aé👍");
  EXPECT_EQ(to_valid_utf8("\xC0\x80"), "\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // surrogate
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x91"), "\uFFFD");
  EXPECT_EQ(to_valid_utf8("\xF0\x9F x"), "\uFFFD x");
}

TEST(Unicode, NormalizesAndLowers) {
  EXPECT_EQ(normalize_unicode("e\u0301 \u1100\u1161\u11A8", NormalForm::nfc), "é 각");
  EXPECT_EQ(normalize_unicode("é각", NormalForm::nfd), "e\u0301\u1100\u1161\u11A8");
  EXPECT_EQ(normalize_unicode("\uFB01\u00B2", NormalForm::nfkc), "fi2");
  EXPECT_EQ(normalize_unicode("\u2126", NormalForm::nfkd), "Ω");
  EXPECT_EQ(lowercase_unicode("ÀΣİẞ"), "àσi\u0307ß");
}

}  // namespace
}  // namespace nibble
