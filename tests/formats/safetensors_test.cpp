#include "formats/safetensors.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

namespace nibble {
namespace {

using test::expect_error;
using test::TempFolder;

std::string with_length(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + data;
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file.data(), file.size())), "x.safetensors");
}

void expect_refused(std::string_view part, const std::string& header, const std::string& data = "") {
  expect_error(part, [&] { parse(with_length(header, data)); });
}

TEST(ParseSafetensorsTest, ReadsTensorsScalarsAndMetadata) {
  const std::string file = with_length(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[],"data_offsets":[4,8]},)"
      R"("a":{"dtype":"I16","shape":[1,2],"data_offsets":[0,4]},"z":{"dtype":"BF16","shape":[0,3],"data_offsets":[8,8]}}   )",
      "abcdefgh");
  const SafetensorsHeader header = parse(file);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  ASSERT_EQ(header.tensors.size(), 3U);
  const TensorView& a = header.tensors.at("a");
  EXPECT_EQ(a.dtype, DType::i16);
  EXPECT_EQ(a.shape, (Shape{1, 2}));
  EXPECT_EQ(std::memcmp(a.bytes.data(), "abcd", 4), 0);
  EXPECT_EQ(header.tensors.at("b").elements(), 1);
  EXPECT_EQ(header.tensors.at("z").bytes.size(), 0U);
}

TEST(ParseSafetensorsTest, KnowsEveryType) {
  for (const char* name : {"BOOL", "U8",  "I8",  "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
                           "I16",  "U16", "F16", "BF16",    "I32",     "U32",     "F32",         "F64",
                           "I64",  "U64", "C64", "F4",      "F6_E2M3", "F6_E3M2"}) {
    const std::string header = std::string(R"({"a":{"dtype":")") + name + R"(","shape":[0],"data_offsets":[0,0]}})";
    EXPECT_NO_THROW(parse(with_length(header, ""))) << name;
  }
  expect_refused("dtype \"f32\" is not one", R"({"a":{"dtype":"f32","shape":[0],"data_offsets":[0,0]}})");
  expect_refused("dtype 3 is not one", R"({"a":{"dtype":3,"shape":[0],"data_offsets":[0,0]}})");
}

TEST(ParseSafetensorsTest, CountsTypesNarrowerThanAByte) {
  EXPECT_NO_THROW(parse(with_length(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", "ab")));
  expect_refused("no whole number of bytes", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "ab");
}

TEST(ParseSafetensorsTest, RefusesACutOffFile) {
  expect_error("too few", [] { parse("1234567"); });
  std::string huge(8, '\xff');
  expect_error("more than the 100000000 allowed", [&] { parse(huge + "{}"); });
  expect_error("cut off: its header has 2 bytes", [] { parse(with_length("{}", "").substr(0, 9)); });
  expect_refused("cut off: tensor a ends at byte 4", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                 "abc");
}

TEST(ParseSafetensorsTest, RefusesAHeaderThatIsNoObject) {
  expect_refused("opening brace", "");
  expect_refused("opening brace", " {}");
  expect_refused("opening brace", "[]");
  expect_refused("not valid JSON", "{");
  expect_refused("not valid JSON", "{\"a\xff\":1}");
  expect_refused("should be an object", R"({"a":1})");
  expect_refused("has no dtype", R"({"a":{"shape":[0],"data_offsets":[0,0]}})");
  expect_refused("has no shape", R"({"a":{"dtype":"F32","data_offsets":[0,0]}})");
  expect_refused("has no data_offsets", R"({"a":{"dtype":"F32","shape":[0]}})");
  expect_refused("deeper than", R"({"a":{"dtype":"F32","shape":[[0]],"data_offsets":[0,0]}})");
}

TEST(ParseSafetensorsTest, RefusesANameGivenTwice) {
  expect_refused(
      "\"a\" stands twice",
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
      "ab");
}

TEST(ParseSafetensorsTest, RefusesMetadataThatIsNotText) {
  expect_refused("__metadata__.n should be a string", R"({"__metadata__":{"n":1}})");
  expect_refused("__metadata__ should be an object", R"({"__metadata__":"pt"})");
}

TEST(ParseSafetensorsTest, RefusesHostileShapes) {
  expect_refused("non-negative integer", R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})");
  expect_refused("non-negative integer", R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,0]}})");
  expect_refused("should be a list", R"({"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})", "abcd");
  expect_refused("is too large", R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})");
  expect_refused("too large", R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})");
  expect_refused("too large", R"({"a":{"dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,0]}})");
}

TEST(ParseSafetensorsTest, RefusesHostileOffsets) {
  expect_refused("before it begins", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", "a");
  expect_refused("two integers", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", "a");
  expect_refused("non-negative integer", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", "a");
  expect_refused("takes 4 bytes, but the header gives it 2",
                 R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,2]}})", "ab");
  expect_refused("begins at byte 1", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", "ab");
  expect_refused("belong to no tensor", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "ab");
  expect_refused(
      "without holes or overlaps",
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
      "abc");
  expect_refused("cut off",
                 R"({"a":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}})");
}

TEST(SafetensorsFileTest, NamesTheFileInErrors) {
  const TempFolder folder;
  expect_error("short.safetensors has 3 bytes", [&] { SafetensorsFile(folder.write("short.safetensors", "abc")); });
}

template <typename T>
std::span<const std::byte> bytes_of_value(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

TEST(SafetensorsWriterTest, RoundTripsTensorsWrittenInAnyOrderAndInPieces) {
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const std::uint16_t half[3] = {1, 2, 3};
  const std::uint32_t word = 77;
  SafetensorsWriter writer(
      path,
      {{"half", DType::f16, {3}}, {"flag", DType::u8, {1}}, {"word", DType::i32, {1, 1}}, {"none", DType::f32, {0}}});
  writer.append("half", bytes_of_value(half[0]));
  writer.append("word", bytes_of_value(word));
  writer.append("half", std::as_bytes(std::span(half).subspan(1)));
  writer.append("flag", bytes_of_value(std::uint8_t{9}));
  EXPECT_EQ(writer.total_size(), 11U);
  writer.commit();

  const SafetensorsFile file(path);
  EXPECT_EQ(file.header().metadata.at("format"), "pt");
  EXPECT_EQ(file.header().bytes.size() % 8, 0U);
  EXPECT_EQ(std::memcmp(file.find("half")->bytes.data(), half, sizeof half), 0);
  EXPECT_EQ(std::memcmp(file.find("word")->bytes.data(), &word, sizeof word), 0);
  EXPECT_EQ(file.find("word")->shape, (Shape{1, 1}));
  EXPECT_EQ(file.find("flag")->bytes[0], std::byte{9});
  EXPECT_EQ(file.find("other"), nullptr);
  // Wider types come first, so that everything is aligned for its type.
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.find("word")->bytes.data()) % 4, 0U);
  EXPECT_LT(file.find("half")->bytes.data(), file.find("flag")->bytes.data());
}

TEST(SafetensorsWriterTest, RefusesWhatWasNotDeclared) {
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", DType::u8, {2}}});
    expect_error("without having been declared", [&] { writer.append("b", bytes_of_value('x')); });
    writer.append("a", bytes_of_value('x'));
    expect_error("has 1 of its 2 bytes", [&] { writer.commit(); });
    expect_error("more were written", [&] { writer.append("a", bytes_of_value(std::uint16_t{1})); });
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  if (std::filesystem::exists("/dev/full")) {
    expect_error("cannot write /dev/full: No space left",
                 [&] { SafetensorsWriter("/dev/full", {{"a", DType::u8, {2}}}); });
  }
  expect_error("the name is taken", [&] { SafetensorsWriter(path, {{"a", DType::u8, {2}}, {"a", DType::u8, {2}}}); });
  expect_error("the name is taken", [&] { SafetensorsWriter(path, {{"__metadata__", DType::u8, {2}}}); });
}

}  // namespace
}  // namespace nibble
