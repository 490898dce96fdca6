#include "formats/token_places.h"

#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <string>
#include <system_error>

namespace nibble {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";
constexpr char32_t kSentencepieceSpace = 0x2581;

// The text without ASCII's white space and sentencepiece's, of which normalisers and pre-tokenizers add and drop some.
std::string solid(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char c = utf8_at(text, at);
    const bool space = c.code == ' ' || (c.code >= '\t' && c.code <= '\r') || c.code == kSentencepieceSpace;
    if (!space) out += text.substr(at, c.length);
    at += c.length;
  }
  return out;
}

// The normalised text, and of which part of the text each of its bytes is.
struct NormalText {
  std::string bytes;
  std::vector<TextRange> from;
};

std::optional<NormalText> normal_text(const Tokenizer& tokenizer, std::string_view text) {
  NormalText out;
  out.bytes.reserve(text.size());
  out.from.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = grapheme_end(text, at);
    const std::string part = solid(tokenizer.normalize(text.substr(at, end - at)));
    out.bytes += part;
    out.from.insert(out.from.end(), part.size(), {static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(end)});
    at = end;
  }
  if (out.bytes != solid(tokenizer.normalize(text))) return std::nullopt;
  return out;
}

// The bytes of a token that are no whole characters: one such as <0xE2>, or several in the spelling of byte-level BPE.
std::optional<std::string> bytes_of(std::string_view token) {
  if (token.size() == 6 && token.starts_with("<0x") && token.back() == '>') {
    unsigned value = 0;
    const char* end = token.data() + 5;
    const auto [stop, error] = std::from_chars(token.data() + 3, end, value, 16);
    if (error == std::errc() && stop == end) return std::string(1, static_cast<char>(value));
  }
  std::string out;
  for (std::size_t at = 0; at < token.size();) {
    const Utf8Char c = utf8_at(token, at);
    const auto byte = byte_level_byte(c.code);
    if (!byte) return std::nullopt;
    out.push_back(static_cast<char>(*byte));
    at += c.length;
  }
  return out;
}

// What a token spells; none where it stands for something else.
std::optional<std::string> spelling(const Tokenizer& tokenizer, std::int32_t id) {
  if (tokenizer.is_special(id) || id == tokenizer.special().unk) return std::nullopt;
  std::string text = tokenizer.decode({&id, 1}, false);
  if (text.find(kReplacement) != std::string::npos) {
    const std::optional<std::string> bytes = bytes_of(tokenizer.token(id));
    if (!bytes) return std::nullopt;
    return bytes->starts_with(' ') ? bytes->substr(1) : *bytes;
  }
  // WordPiece's decoder leaves the mark of a word's later parts on what it takes for a first one.
  if (text.starts_with("##")) text.erase(0, 2);
  return solid(text);
}

// Whether a word may begin at a place of the text.
bool begins_word(std::string_view text, std::size_t at) {
  if (at == 0 || is_bert_punctuation(utf8_at(text, at).code)) return true;
  const char32_t before = utf8_at(text, utf8_before(text, at)).code;
  return is_unicode_space(before) || is_bert_punctuation(before);
}

// find_tokens(); `words`: what follows something unknown begins a word.
std::optional<std::vector<TextRange>> find_pieces(const NormalText& normal, std::string_view text,
                                                  std::span<const std::optional<std::string>> pieces, bool words) {
  std::vector<TextRange> out(pieces.size());
  const auto part = [&](std::size_t begin, std::size_t end) {
    // Nothing where a token has no letters.
    if (begin == end) {
      const std::uint32_t at = begin == 0 ? 0 : normal.from[begin - 1].end;
      return TextRange{at, at};
    }
    return TextRange{normal.from[begin].begin, normal.from[end - 1].end};
  };
  std::size_t at = 0;       // in the normalised text
  std::size_t unknown = 0;  // tokens before this one that spell nothing
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::optional<std::string>& piece = pieces[i];
    if (!piece || (unknown > 0 && piece->empty())) {
      ++unknown;
      continue;
    }
    std::size_t begin = at;
    if (unknown > 0) {
      do {
        begin = normal.bytes.find(*piece, begin + 1);
        if (begin == std::string::npos) return std::nullopt;
      } while (words && !begins_word(text, normal.from[begin].begin));
    } else if (normal.bytes.compare(at, piece->size(), *piece) != 0) {
      return std::nullopt;
    }
    for (; unknown > 0; --unknown) out[i - unknown] = part(at, begin);
    out[i] = part(begin, begin + piece->size());
    at = begin + piece->size();
  }
  for (; unknown > 0; --unknown) out[pieces.size() - unknown] = part(at, normal.bytes.size());
  return out;
}

}  // namespace

std::optional<std::vector<TextRange>> find_tokens(const Tokenizer& tokenizer, std::string_view text,
                                                  std::span<const std::int32_t> ids) {
  if (!is_valid_utf8(text)) return std::nullopt;
  const std::optional<NormalText> normal = normal_text(tokenizer, text);
  if (!normal) return std::nullopt;
  std::vector<std::optional<std::string>> pieces;
  pieces.reserve(ids.size());
  for (const std::int32_t id : ids) pieces.push_back(spelling(tokenizer, id));
  // WordPiece has one unknown token for a word, others for what no token has within one.
  std::optional<std::vector<TextRange>> out = find_pieces(*normal, text, pieces, true);
  return out ? out : find_pieces(*normal, text, pieces, false);
}

}  // namespace nibble
