#include "formats/gguf.h"

#include "support/expect_error.h"
#include "support/gguf_builder.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

using test::expect_error;
using test::GgufBuilder;

GgufContents parse(const std::string& file) {
  return GgufContents::parse(std::as_bytes(std::span(file.data(), file.size())), "x.gguf");
}

void expect_refused(std::string_view part, const GgufBuilder& builder) {
  expect_error(part, [&] { parse(builder.bytes()); });
}

// The expected values come from gguf-py (tools/make_gguf_fixture.py).
TEST(GgufTypesTest, DequantisesEveryTypeAsItsPythonPackageDoes) {
  const GgufFile file(NIBBLE_TEST_DATA "/gguf/blocks.gguf");
  const GgufContents& gguf = file.contents();
  int types = 0;
  for (const auto& [name, tensor] : gguf.tensors()) {
    const GgufTensor* expected = gguf.find(name + ".expected");
    if (expected == nullptr) continue;
    ++types;
    ASSERT_EQ(tensor.shape, (Shape{2, 256}));
    std::vector<float> ours(512);
    std::vector<float> theirs(512);
    tensor.rows_to_float(0, 1, ours);
    tensor.rows_to_float(1, 1, std::span(ours).subspan(256));
    expected->rows_to_float(0, 2, theirs);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      EXPECT_NEAR(ours[i], theirs[i], 1e-6f * std::max(1.0f, std::fabs(theirs[i]))) << name << " element " << i;
    }
    file.drop(tensor);
  }
  EXPECT_EQ(types, 9);
}

TEST(GgufContentsTest, ReadsValuesOfEveryType) {
  for (const std::uint32_t version : {1u, 2u, 3u}) {
    GgufBuilder builder(version);
    builder.key("u8", 0, GgufBuilder::raw(std::uint8_t{200})).key("i8", 1, GgufBuilder::raw(std::int8_t{-5}));
    builder.key("u16", 2, GgufBuilder::raw(std::uint16_t{60000})).key("i16", 3, GgufBuilder::raw(std::int16_t{-600}));
    builder.u32("u32", 4'000'000'000u).key("i32", 5, GgufBuilder::raw(std::int32_t{-7}));
    builder.f32("f32", 1e-5f).boolean("yes", true).string("text", "abc");
    builder.key("u64", 10, GgufBuilder::raw(std::uint64_t{1} << 40))
        .key("i64", 11, GgufBuilder::raw(std::int64_t{-1} << 40));
    builder.key("f64", 12, GgufBuilder::raw(0.1));
    builder.strings("words", {"a", "", "ccc"})
        .array("ints", 5, std::vector<std::int32_t>{1, -2})
        .array("reals", 6, std::vector<float>{0.5f});
    builder.tensor("t", 0, {2, 3}, std::string(24, '\0'));
    const std::string file = builder.bytes();
    const GgufContents gguf = parse(file);
    EXPECT_EQ(gguf.integer("u8"), 200);
    EXPECT_EQ(gguf.integer("i8"), -5);
    EXPECT_EQ(gguf.integer("u16"), 60000);
    EXPECT_EQ(gguf.integer("i16"), -600);
    EXPECT_EQ(gguf.integer("u32"), 4'000'000'000);
    EXPECT_EQ(gguf.integer("i32"), -7);
    EXPECT_EQ(gguf.number("f32"), 1e-5);
    EXPECT_TRUE(gguf.boolean("yes", false));
    EXPECT_EQ(gguf.text("text"), "abc");
    EXPECT_EQ(gguf.integer("u64"), std::int64_t{1} << 40);
    EXPECT_EQ(gguf.integer("i64"), -(std::int64_t{1} << 40));
    EXPECT_EQ(gguf.number("f64"), 0.1);
    EXPECT_EQ(gguf.number("i8"), -5.0);
    EXPECT_EQ(gguf.texts("words"), (std::vector<std::string_view>{"a", "", "ccc"}));
    EXPECT_EQ(gguf.integers("ints"), (std::vector<std::int64_t>{1, -2}));
    EXPECT_EQ(gguf.numbers("reals"), (std::vector<double>{0.5}));
    EXPECT_EQ(gguf.integer("absent", 3), 3);
    EXPECT_TRUE(gguf.texts("absent").empty());
    EXPECT_EQ(gguf.find("t")->shape, (Shape{3, 2}));
  }
}

TEST(GgufContentsTest, NamesFileAndKeyOfAWrongValue) {
  GgufBuilder builder;
  builder.string("text", "abc")
      .f32("nan", NAN)
      .key("huge", 10, GgufBuilder::raw(~std::uint64_t{0}))
      .strings("words", {"a"})
      .u32("n", 1);
  const std::string file = builder.bytes();
  const GgufContents gguf = parse(file);
  expect_error("x.gguf: text should be an integer", [&] { (void)gguf.integer("text"); });
  expect_error("huge should be an integer", [&] { (void)gguf.integer("huge"); });
  expect_error("nan should be a finite number", [&] { (void)gguf.number("nan"); });
  expect_error("n should be a string", [&] { (void)gguf.text("n"); });
  expect_error("n should be true or false", [&] { (void)gguf.boolean("n", true); });
  expect_error("words should be an array of integers", [&] { (void)gguf.integers("words"); });
  expect_error("words should be an array of finite numbers", [&] { (void)gguf.numbers("words"); });
  expect_error("n should be an array of strings", [&] { (void)gguf.texts("n"); });
  expect_error("x.gguf has no key absent", [&] { (void)gguf.integer("absent"); });
}

TEST(GgufContentsTest, RefusesWhatIsNoGguf) {
  expect_error("does not start with GGUF", [] { parse(""); });
  expect_error("does not start with GGUF", [] { parse("GGML...."); });
  expect_error("GGUF version 4", [] { parse(GgufBuilder(4).bytes()); });
  expect_error("GGUF version 0", [] { parse(GgufBuilder(0).bytes()); });
  expect_error("big-endian", [] { parse(GgufBuilder(0x03000000u).bytes()); });
  expect_refused("part 2 of 3; merge the parts first", GgufBuilder()
                                                           .key("split.no", 2, GgufBuilder::raw(std::uint16_t{1}))
                                                           .key("split.count", 2, GgufBuilder::raw(std::uint16_t{3})));
}

TEST(GgufContentsTest, RefusesAFileCutOffAnywhere) {
  GgufBuilder builder;
  builder.u32("a", 1).strings("b", {"x", "yy"}).array("c", 6, std::vector<float>{1, 2});
  builder.tensor("t", 0, {2, 3}, std::string(24, 'x'));
  const std::string file = builder.bytes();
  // The last 8 bytes are padding behind the data.
  for (std::size_t size = 0; size < file.size() - 8; ++size) {
    EXPECT_THROW(parse(file.substr(0, size)), Error) << size << " of " << file.size() << " bytes";
  }
  EXPECT_NO_THROW(parse(file.substr(0, file.size() - 8)));
}

TEST(GgufContentsTest, RefusesHostileCounts) {
  GgufBuilder many_keys;
  many_keys.key_count = ~std::uint64_t{0};
  expect_refused("cut off or damaged", many_keys);
  GgufBuilder many_tensors;
  many_tensors.tensor_count = std::uint64_t{1} << 60;
  expect_refused("cut off or damaged", many_tensors);
  const std::string huge = GgufBuilder::raw(~std::uint64_t{0});
  expect_refused("cut off or damaged", GgufBuilder().key("s", 8, huge));
  expect_refused("too large", GgufBuilder().key("a", 9, GgufBuilder::raw(std::uint32_t{6}) + huge));
  expect_refused("cut off or damaged", GgufBuilder().key("a", 9, GgufBuilder::raw(std::uint32_t{8}) + huge));
  expect_refused("unknown type 99", GgufBuilder().key("a", 99, ""));
  expect_refused("unknown type 99",
                 GgufBuilder().key("a", 9, GgufBuilder::raw(std::uint32_t{99}) + GgufBuilder::raw(std::uint64_t{1})));
  std::string nested;
  for (int i = 0; i < 100; ++i) nested += GgufBuilder::raw(std::uint32_t{9}) + GgufBuilder::raw(std::uint64_t{1});
  expect_refused("nested deeper than", GgufBuilder().key("a", 9, nested));
}

TEST(GgufContentsTest, RefusesNamesGivenTwice) {
  expect_refused("the key a is there twice", GgufBuilder().u32("a", 1).u32("a", 2));
  expect_refused("tensor t is there twice", GgufBuilder().tensor("t", 0, {1}, "abcd").tensor("t", 0, {1}, "abcd"));
}

TEST(GgufContentsTest, RefusesHostileTensors) {
  const std::uint64_t huge = std::uint64_t{1} << 62;
  expect_refused("has 5 dimensions", GgufBuilder().tensor("t", 0, {1, 1, 1, 1, 1}, "abcd"));
  expect_refused("has 0 dimensions", GgufBuilder().tensor("t", 0, {}, "abcd"));
  expect_refused("impossible dimension 0", GgufBuilder().tensor("t", 0, {0}, ""));
  expect_refused("impossible dimension", GgufBuilder().tensor("t", 0, {~std::uint64_t{0}}, ""));
  expect_refused("too large", GgufBuilder().tensor("t", 0, {huge, huge}, ""));
  expect_refused("too large", GgufBuilder().tensor("t", 0, {huge}, ""));
  expect_refused("type number 10, which nibble does not read", GgufBuilder().tensor("t", 10, {256}, ""));
  expect_refused("no multiple of the 32 in a block of Q4_0", GgufBuilder().tensor("t", 2, {33}, ""));
  expect_refused("not aligned to 32", GgufBuilder().tensor_info("t", 0, {1}, 4, "abcd"));
  expect_refused("cut off or damaged", GgufBuilder().tensor_info("t", 0, {1}, 64, "abcd"));
  expect_refused("too large", GgufBuilder().tensor_info("t", 0, {1}, ~std::uint64_t{31}, "abcd"));
  expect_refused("general.alignment is 0", GgufBuilder().u32("general.alignment", 0));
  expect_error("lie outside of tensor t", [] {
    const std::string file = GgufBuilder().tensor("t", 0, {1, 2}, "abcdefgh").bytes();
    std::vector<float> out(2);
    parse(file).find("t")->rows_to_float(1, 2, out);
  });
}

TEST(GgufContentsTest, HonoursTheAlignmentOfTheFile) {
  GgufBuilder builder;
  builder.u32("general.alignment", 4096).tensor_info("t", 0, {1}, 4096);
  std::string file = builder.bytes();
  ASSERT_LT(file.size(), 4096U);
  file.resize(8192);
  file += GgufBuilder::raw(2.5f);
  float value = 0;
  parse(file).find("t")->rows_to_float(0, 1, std::span(&value, 1));
  EXPECT_EQ(value, 2.5f);
}

}  // namespace
}  // namespace nibble
