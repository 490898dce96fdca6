// Tokenizers of every kind against ids and texts that the `tokenizers` library made (tools/make_tokenizer_fixtures.py).
#include "core/file.h"
#include "formats/json.h"
#include "formats/tokenizer.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>

namespace nibble {
namespace {

using nlohmann::json;

const std::filesystem::path kData = std::filesystem::path(NIBBLE_TEST_DATA) / "tokenizers";
using Ids = std::vector<std::int32_t>;

Ids joined(const Ids& a, const Ids& b, const Ids& c) {
  Ids out = a;
  out.insert(out.end(), b.begin(), b.end());
  out.insert(out.end(), c.begin(), c.end());
  return out;
}

/// Every text of the fixture: encoded with and without special tokens, decoded both ways, and decoded id by id.
void check_fixture(const Tokenizer& tokenizer, const std::filesystem::path& fixture) {
  const json strings = read_json_file(kData / "strings.json");
  const json expected = read_json_file(fixture);
  const Ids before = expected.at("before").get<Ids>();
  const Ids after = expected.at("after").get<Ids>();
  ASSERT_EQ(strings.size(), expected.at("ids").size());
  ASSERT_GT(strings.size(), 2000U);
  int wrong = 0;
  for (std::size_t i = 0; i < strings.size() && wrong < 10; ++i) {
    const std::string text = strings[i].get<std::string>();
    const Ids ids = expected["ids"][i].get<Ids>();
    const std::string key = std::to_string(i);
    const std::string decoded = expected["decoded"].value(key, text);
    const std::string skipped = expected["decoded_skip"].value(key, decoded);
    EXPECT_EQ(tokenizer.encode(text, false), ids) << "text " << i << ": " << strings[i];
    EXPECT_EQ(tokenizer.encode(text, true), joined(before, ids, after)) << "text " << i << ": " << strings[i];
    EXPECT_EQ(tokenizer.decode(ids, false), decoded) << "text " << i << ": " << strings[i];
    EXPECT_EQ(tokenizer.decode(ids, true), skipped) << "text " << i << ": " << strings[i];
    StreamingDecoder stream(tokenizer, true);
    std::string streamed;
    for (const std::int32_t id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    EXPECT_EQ(streamed, skipped) << "text " << i << ", id by id: " << strings[i];
    if (testing::Test::HasFailure()) ++wrong;
  }
}

class TokenizerKind : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerKind, AgreesWithTheTokenizersLibrary) {
  const std::string name = GetParam();
  check_fixture(Tokenizer::load(kData / name), kData / (name + ".ids.json"));
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerKind,
                         testing::Values("gpt2", "llama3", "qwen2", "smollm", "roberta", "clip", "llama2_legacy",
                                         "llama2_metaspace", "bert_bpe", "words"),
                         [](const auto& kind) { return std::string(kind.param); });

TEST(TokenizerParts, EachCutsRewritesAndJoinsAsTheTokenizersLibraryDoes) {
  const json file = read_json_file(kData / "parts.json");
  const std::vector<std::string> strings = file.at("strings").get<std::vector<std::string>>();
  ASSERT_GT(strings.size(), 50U);
  ASSERT_GT(file.at("variants").size(), 40U);
  for (const json& variant : file.at("variants")) {
    json with_part = file.at("base");
    const std::string part = variant.at("part");
    with_part[part] = variant.at("value");
    const Tokenizer tokenizer = Tokenizer::from_json(with_part.dump(), "parts.json");
    for (std::size_t i = 0; i < strings.size(); ++i) {
      const Ids ids = tokenizer.encode(strings[i], false);
      if (part == "decoder") {
        EXPECT_EQ(tokenizer.decode(ids, false), variant.at("decoded")[i].get<std::string>())
            << variant.at("value") << " of " << json(strings[i]);
      } else {
        EXPECT_EQ(ids, variant.at("ids")[i].get<Ids>()) << variant.at("value") << " of " << json(strings[i]);
      }
    }
  }
}

TEST(SmolLM2Tokenizer, AgreesWithTheTokenizersLibrary) {
  const char* folder = std::getenv("NIBBLE_SMOLLM2");
  if (folder == nullptr) GTEST_SKIP() << "NIBBLE_SMOLLM2 does not name the folder of the imported model";
  check_fixture(Tokenizer::load(folder), kData / "smollm2.ids.json");
}

}  // namespace
}  // namespace nibble
