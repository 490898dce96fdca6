// The normalizer Precompiled: sentencepiece's table of text to replace ("precompiled_charsmap"), as bytes in base64.
// These are, little-endian: the size in bytes of a trie (uint32), the trie, and a pool of strings that end in a zero
// byte. The trie is a double array of uint32 units in the layout of darts-clone
// (https://github.com/s-yata/darts-clone): bits 0-7 and bit 31 are the label, bit 8 says that a value is below, bits
// 10-30 (times 256 where bit 9 is set) are the offset to exclusive-or with; a value is an offset into the pool.
#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

/// Bytes of base64 text, which may end in '=' or not; none where it is malformed.
std::optional<std::string> decode_base64(std::string_view text) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  constexpr std::uint8_t kNoDigit = 64;
  std::array<std::uint8_t, 256> digits{};
  digits.fill(kNoDigit);
  for (std::size_t i = 0; i < kAlphabet.size(); ++i) {
    digits[static_cast<unsigned char>(kAlphabet[i])] = static_cast<std::uint8_t>(i);
  }
  if (text.size() % 4 == 1) return std::nullopt;
  std::string out;
  out.reserve(text.size() / 4 * 3 + 2);
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::uint8_t digit = digits[static_cast<unsigned char>(c)];
    if (digit == kNoDigit) return std::nullopt;
    bits = (bits << 6) | digit;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out.push_back(static_cast<char>((bits >> count) & 0xFF));
  }
  return out;
}

std::uint32_t little_endian(std::string_view bytes, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i > 0; --i) value = (value << 8) | static_cast<unsigned char>(bytes[offset + i - 1]);
  return value;
}

class PrecompiledNormalizer final : public Normalizer {
 public:
  explicit PrecompiledNormalizer(const JsonView& part) : place_(part.place()) {
    const auto bytes = decode_base64(part.text("precompiled_charsmap"));
    if (!bytes) part.refuse("precompiled_charsmap", "base64");
    if (bytes->size() < 4) fail("{}: precompiled_charsmap has {} bytes; expected at least 4", place_, bytes->size());
    const std::size_t trie_bytes = little_endian(*bytes, 0);
    if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > bytes->size() - 4) {
      fail(
          "{}: precompiled_charsmap says that its trie has {} bytes; expected a multiple of 4 up to the {} that follow",
          place_, trie_bytes, bytes->size() - 4);
    }
    units_.reserve(trie_bytes / 4);
    for (std::size_t at = 4; at < 4 + trie_bytes; at += 4) units_.push_back(little_endian(*bytes, at));
    pool_ = bytes->substr(4 + trie_bytes);
    if (!is_valid_utf8(pool_)) fail("{}: the strings of precompiled_charsmap are not valid UTF-8", place_);
  }

  bool normalize(std::string& text) const override {
    std::string out;
    out.reserve(text.size() + text.size() / 8);
    bool first_dropped = false;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = grapheme_end(text, at);
      append_grapheme(std::string_view(text).substr(at, end - at), text.size(), out);
      check_text_growth(text.size(), out.size(), place_);
      if (at == 0) first_dropped = out.empty();
      at = end;
    }
    text = std::move(out);
    return first_dropped;
  }

 private:
  /// Clusters of this many bytes and more are looked up character by character only, as the `tokenizers` library does.
  static constexpr std::size_t kLongCluster = 6;

  /// `text_bytes`: the length of the text that the cluster is in.
  void append_grapheme(std::string_view cluster, std::size_t text_bytes, std::string& out) const {
    if (cluster.size() < kLongCluster) {
      if (const auto replacement = find(cluster)) {
        out += *replacement;
        return;
      }
    }
    for (std::size_t at = 0; at < cluster.size();) {
      const std::string_view character = cluster.substr(at, utf8_at(cluster, at).length);
      out += find(character).value_or(character);
      at += character.size();
      check_text_growth(text_bytes, out.size(), place_);
    }
  }

  /// What stands in the table for the shortest beginning of `text` that it has; the library takes that for the whole.
  /// None as well where a damaged table leads out of itself.
  std::optional<std::string_view> find(std::string_view text) const {
    std::size_t at = offset(units_[0]);
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      at ^= byte;
      if (byte == 0 || at >= units_.size() || (units_[at] & kLabelMask) != byte) return std::nullopt;
      const std::uint32_t unit = units_[at];
      at ^= offset(unit);
      if ((unit & kHasValue) == 0) continue;
      if (at >= units_.size()) return std::nullopt;
      return pool_string(units_[at] & kValueMask);
    }
    return std::nullopt;
  }

  std::optional<std::string_view> pool_string(std::size_t begin) const {
    if (begin >= pool_.size() || (static_cast<unsigned char>(pool_[begin]) & 0xC0) == 0x80) return std::nullopt;
    const std::size_t end = std::min(pool_.find('\0', begin), pool_.size());
    return std::string_view(pool_).substr(begin, end - begin);
  }

  static std::size_t offset(std::uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }

  static constexpr std::uint32_t kLabelMask = 0x800000FF;
  static constexpr std::uint32_t kHasValue = 0x100;
  static constexpr std::uint32_t kValueMask = 0x7FFFFFFF;

  std::string place_;
  std::vector<std::uint32_t> units_;
  std::string pool_;
};

}  // namespace

std::unique_ptr<Normalizer> make_precompiled_normalizer(const JsonView& part) {
  return std::make_unique<PrecompiledNormalizer>(part);
}

}  // namespace nibble
