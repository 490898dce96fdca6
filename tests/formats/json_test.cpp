#include "formats/json.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using test::expect_error;

TEST(ParseJsonTest, RefusesWhatIsNoJson) {
  expect_error("x.json is not valid JSON: parse error at line 1, column", [] { parse_json("{\"a\": }", "x.json"); });
  expect_error("not valid JSON", [] { parse_json("", "x.json"); });
  expect_error("not valid JSON", [] { parse_json("{} {}", "x.json"); });
  expect_error("not valid JSON", [] { parse_json("{\"a\": \"\xff\"}", "x.json"); });
}

TEST(ParseJsonTest, RefusesAKeyTwiceButNotInTwoObjects) {
  expect_error("the key \"a\" stands twice", [] { parse_json(R"({"a": 1, "b": {"a": 2}, "a": 3})", "x.json"); });
  EXPECT_EQ(parse_json(R"({"a": {"b": 1}, "c": {"b": 2}})", "x.json")["c"]["b"], 2);
}

TEST(ParseJsonTest, RefusesDeepNesting) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(kJsonDepthLimit), "x.json"));
  expect_error("deeper than 64", [&] { parse_json(nested(kJsonDepthLimit + 1), "x.json"); });
  expect_error("deeper than 64", [&] { parse_json(std::string(1'000'000, '['), "x.json"); });
}

TEST(ParseJsonTest, KeepsOrderWhereAsked) {
  const nlohmann::ordered_json json = parse_ordered_json(R"({"z": 1, "a": 2})", "x.json");
  EXPECT_EQ(json.begin().key(), "z");
}

TEST(JsonViewTest, GetsTypedValues) {
  const nlohmann::json json = parse_json(
      R"({"n": 3, "neg": -4, "whole": 2048.0, "half": 0.5, "yes": true, "word": "w", "list": [1, 2], "none": null,
          "texts": ["a"], "inner": {"x": 1}})",
      "x.json");
  const JsonView view(json, "x.json");
  EXPECT_EQ(view.positive("n"), 3);
  EXPECT_EQ(view.integer("neg"), -4);
  EXPECT_EQ(view.integer("whole"), 2048);
  EXPECT_EQ(view.number("half"), 0.5);
  EXPECT_EQ(view.number("n"), 3.0);
  EXPECT_TRUE(view.boolean("yes"));
  EXPECT_EQ(view.text("word"), "w");
  EXPECT_EQ(view.integers("list"), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(view.integers("n"), (std::vector<std::int64_t>{3}));
  EXPECT_EQ(view.numbers("list"), (std::vector<double>{1, 2}));
  EXPECT_EQ(view.texts("texts"), (std::vector<std::string>{"a"}));
  EXPECT_EQ(view.object("inner")->integer("x"), 1);
  EXPECT_FALSE(view.has("none"));
  EXPECT_FALSE(view.object("none"));
  EXPECT_EQ(view.positive("none", 7), 7);
  EXPECT_EQ(view.text("absent", "d"), "d");
}

TEST(JsonViewTest, NamesFileKeyAndValueInErrors) {
  const nlohmann::json json = parse_json(
      R"({"hidden_size": "abc", "zero": 0, "huge": 18446744073709551615, "half": 1.5, "inner": {"x": []}, "flag": 1,
          "mixed": [1, "a"]})",
      "config.json");
  const JsonView view(json, "config.json");
  EXPECT_EQ(test::error_of([&] { view.positive("hidden_size"); }),
            "config.json: hidden_size should be a positive integer, found \"abc\"");
  expect_error("zero should be a positive integer, found 0", [&] { view.positive("zero"); });
  expect_error("huge should be an integer", [&] { view.integer("huge"); });
  expect_error("half should be an integer, found 1.5", [&] { view.integer("half"); });
  expect_error("inner.x should be a number", [&] { view.object("inner")->number("x"); });
  expect_error("flag should be true or false, found 1", [&] { view.boolean("flag"); });
  expect_error("absent is missing; it should be a string", [&] { view.text("absent"); });
  expect_error("mixed should be an integer or a list of integers", [&] { view.integers("mixed"); });
  expect_error("mixed should be a list of numbers", [&] { view.numbers("mixed"); });
  expect_error("mixed should be a list of strings", [&] { view.texts("mixed"); });
  expect_error("config.json: flag should be an object, found 1", [&] { (void)view.object("flag"); });
}

TEST(ReadJsonFileTest, NamesTheFile) {
  const test::TempFolder folder;
  expect_error("bad.json is not valid JSON", [&] { read_json_file(folder.write("bad.json", "[1,")); });
}

}  // namespace
}  // namespace nibble
