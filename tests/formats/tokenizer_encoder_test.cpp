// Tokenizers of text encoders: single texts and pairs with their segments, truncation, vocabulary files without
// tokenizer.json, hostile files and texts. The expectations are those of the `tokenizers` library
// (tools/encoder_fixtures.py).
#include "formats/json.h"
#include "formats/tokenizer.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <chrono>

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

}  // namespace
}  // namespace nibble
