// Where tokens stand in their text, against the places that the `tokenizers` library keeps (tools/encoder_fixtures.py).
#include "formats/token_places.h"
#include "formats/json.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>

namespace nibble {
namespace {

using nlohmann::json;

const std::filesystem::path kData = std::filesystem::path(NIBBLE_TEST_DATA) / "tokenizers";

class TokenPlaces : public testing::TestWithParam<const char*> {};

TEST_P(TokenPlaces, AreThoseOfTheTokenizersLibrary) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "encoders" / GetParam());
  const json expected = read_json_file(kData / "encoders" / (GetParam() + std::string(".ids.json")));
  const json strings = read_json_file(kData / "strings.json");
  int compared = 0;
  int missing = 0;
  for (std::size_t i = 0; i < expected["texts"].size(); ++i) {
    if (expected["places"][i].is_null()) continue;
    const std::string text = strings[expected["texts"][i].get<std::size_t>()];
    SCOPED_TRACE(json(text));
    const auto places = expected["places"][i].get<std::vector<std::uint32_t>>();
    const auto found = find_tokens(tokenizer, text, tokenizer.encode(text, false));
    ++compared;
    if (!found) {
      ++missing;
      continue;
    }
    ASSERT_EQ(2 * found->size(), places.size());
    for (std::size_t t = 0; t < found->size(); ++t) {
      const std::uint32_t begin = places[2 * t];
      const std::uint32_t end = places[2 * t + 1];
      const TextRange range = (*found)[t];
      // Of tokens without letters the library has the character that follows, or none.
      if (begin == end || range.begin == range.end) continue;
      // A letter comes with the marks on it here, a picture of several characters as a whole.
      constexpr std::uint32_t kMostOfCluster = 24;
      EXPECT_LE(range.begin, begin) << t;
      EXPECT_GE(range.end, end) << t;
      EXPECT_LE(range.end - range.begin, end - begin + kMostOfCluster) << t;
    }
  }
  EXPECT_GT(compared, 30);
  EXPECT_LE(missing * 20, compared);
}

INSTANTIATE_TEST_SUITE_P(All, TokenPlaces,
                         testing::Values("bert", "bert_cased", "mpnet", "roberta", "xlm_roberta", "albert",
                                         "unigram_bytes"),
                         [](const auto& kind) { return std::string(kind.param); });

TEST(TokenPlace, UnknownWordsHaveWhatIsBetweenTheirNeighbours) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "encoders" / "bert");
  const std::string text = "The  \u6F22\u5B57 fox";
  const auto ids = tokenizer.encode(text, false);
  const auto places = find_tokens(tokenizer, text, ids);
  ASSERT_TRUE(places);
  EXPECT_EQ(text.substr(places->front().begin, places->front().end), "The");
  EXPECT_EQ(places->back().end, text.size());
  EXPECT_EQ((*places)[1].begin, 5U);
}

TEST(TokenPlace, NoneWhereTokensAreNotOfTheText) {
  const Tokenizer tokenizer = Tokenizer::load(kData / "encoders" / "bert");
  EXPECT_FALSE(find_tokens(tokenizer, "the lazy dog", tokenizer.encode("the quick fox", false)));
  EXPECT_FALSE(find_tokens(tokenizer, "", tokenizer.encode("the", false)));
  EXPECT_FALSE(find_tokens(tokenizer, "\xFF the", tokenizer.encode("\xFF the", false)));
  EXPECT_TRUE(find_tokens(tokenizer, "", {})->empty());
}

}  // namespace
}  // namespace nibble
