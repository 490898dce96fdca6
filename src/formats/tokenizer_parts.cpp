#include "formats/tokenizer_parts.h"

#include "core/error.h"

#include <nlohmann/json.hpp>

#include <array>
#include <limits>

namespace nibble {
namespace {

struct ByteSpelling {
  std::array<char, 2> text{};
  std::uint8_t length = 0;
};

constexpr bool is_printable_byte(unsigned byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

constexpr std::array<ByteSpelling, 256> make_spellings() {
  std::array<ByteSpelling, 256> out{};
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const unsigned code = is_printable_byte(byte) ? byte : next++;
    if (code < 0x80) {
      out[byte] = {{static_cast<char>(code), 0}, 1};
    } else {
      out[byte] = {{static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))}, 2};
    }
  }
  return out;
}

constexpr std::array<ByteSpelling, 256> kSpellings = make_spellings();

/// For each code point below 0x100 + 68: the byte, or -1.
constexpr std::array<std::int16_t, 0x144> make_bytes() {
  std::array<std::int16_t, 0x144> out{};
  out.fill(-1);
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    out[is_printable_byte(byte) ? byte : next++] = static_cast<std::int16_t>(byte);
  }
  return out;
}

constexpr std::array<std::int16_t, 0x144> kBytes = make_bytes();

}  // namespace

std::unique_ptr<TokenModel> make_token_model(const JsonView& part) {
  // Files from before 2021 name no type; what the model has tells which it is.
  const auto has_list = [&](const char* key) { return part.has(key) && part.value().at(key).is_array(); };
  const std::string type = part.text("type", part.has("merges")                      ? "BPE"
                                             : has_list("vocab")                     ? "Unigram"
                                             : part.has("continuing_subword_prefix") ? "WordPiece"
                                                                                     : "");
  if (type == "BPE") return make_bpe_model(part);
  if (type == "WordPiece") return make_wordpiece_model(part);
  if (type == "Unigram") return make_unigram_model(part);
  fail("{}: the tokenizer model \"{}\" is not supported (supported: BPE, WordPiece, Unigram)", part.place(), type);
}

std::int32_t to_token_id(const nlohmann::json& value, std::string_view place) {
  const bool in_range =
      value.is_number_unsigned()
          ? value.get<std::uint64_t>() < static_cast<std::uint64_t>(kMaxTokenIds)
          : value.is_number_integer() && value.get<std::int64_t>() >= 0 && value.get<std::int64_t>() < kMaxTokenIds;
  if (!in_range) {
    fail("{}: expected a token id from 0 to {}, found {}", place, kMaxTokenIds - 1, json_excerpt(value));
  }
  return value.get<std::int32_t>();
}

std::string part_pattern(const JsonView& part) {
  const auto pattern = part.value().find("pattern");
  const bool bare = pattern != part.value().end() && pattern->is_string();
  const auto choice = bare ? std::nullopt : part.object("pattern");
  if (!bare && !choice) part.refuse("pattern", "{\"String\": text} or {\"Regex\": text}");
  if (choice && choice->has("Regex")) return choice->text("Regex");
  const std::string literal = bare ? part.text("pattern") : choice->text("String");
  // Within \Q...\E nothing is special but \E itself.
  std::string quoted = "\\Q";
  for (std::size_t i = 0; i < literal.size(); ++i) {
    if (literal.compare(i, 2, "\\E") == 0) {
      quoted += "\\E\\\\E\\Q";
      ++i;
    } else {
      quoted += literal[i];
    }
  }
  return quoted + "\\E";
}

void check_text_growth(std::size_t before, std::size_t after, std::string_view place) {
  if (after > kMaxTextGrowth * before + kMaxTextGrowthBase) {
    fail("{}: it makes a text of {} bytes longer than {} bytes, which no real tokenizer does", place, before,
         kMaxTextGrowth * before + kMaxTextGrowthBase);
  }
  if (after > std::numeric_limits<std::uint32_t>::max()) {
    fail("{}: it makes a text of {} bytes longer than 4 GiB; encode it in parts", place, before);
  }
}

std::string_view byte_level_spelling(unsigned char byte) {
  const ByteSpelling& spelling = kSpellings[byte];
  return {spelling.text.data(), spelling.length};
}

std::optional<unsigned char> byte_level_byte(char32_t code) {
  if (code >= kBytes.size() || kBytes[code] < 0) return std::nullopt;
  return static_cast<unsigned char>(kBytes[code]);
}

std::string byte_level_text(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  for (const char c : text) out.append(byte_level_spelling(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace nibble
