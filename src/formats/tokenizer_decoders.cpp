#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr std::string_view kReplacementCharacter = "\uFFFD";

/// Characters of byte-level spelling back to bytes; a token with any other character stands for itself.
class ByteLevelDecoder final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override {
    std::string bytes;
    for (const std::string& token : tokens) {
      const std::size_t begin = bytes.size();
      for (std::size_t i = 0; i < token.size();) {
        const Utf8Char c = utf8_at(token, i);
        const auto byte = byte_level_byte(c.code);
        if (!byte) {
          bytes.resize(begin);
          bytes.append(token);
          break;
        }
        bytes.push_back(static_cast<char>(*byte));
        i += c.length;
      }
    }
    tokens.assign(1, to_valid_utf8(bytes));
  }
};

class MetaspaceDecoder final : public Decoder {
 public:
  explicit MetaspaceDecoder(const JsonView& part) : mark_(part.text("replacement", "\u2581")) {
    if (mark_.empty()) part.refuse("replacement", "a string that is not empty");
    const bool legacy = part.boolean("add_prefix_space", true);
    drop_first_ = part.text("prepend_scheme", legacy ? "always" : "never") != "never";
  }

  void decode(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::string out;
      const std::string& token = tokens[i];
      for (std::size_t at = 0; at < token.size();) {
        if (token.compare(at, mark_.size(), mark_) == 0) {
          if (i > 0 || !drop_first_) out.push_back(' ');
          at += mark_.size();
        } else {
          out.push_back(token[at++]);
        }
      }
      tokens[i] = std::move(out);
    }
  }

 private:
  std::string mark_;
  bool drop_first_ = true;
};

class ReplaceDecoder final : public Decoder {
 public:
  explicit ReplaceDecoder(const JsonView& part)
      : where_(part.place()), regex_(part_pattern(part), part.place()), content_(part.text("content")) {}

  void decode(std::vector<std::string>& tokens) const override {
    RegexMatcher matcher(regex_);
    for (std::string& token : tokens) {
      matcher.start(token, {0, static_cast<std::uint32_t>(token.size())});
      std::string out;
      std::size_t copied = 0;
      while (const auto match = matcher.next()) {
        out.append(token, copied, match->begin - copied).append(content_);
        copied = match->end;
        check_text_growth(token.size(), out.size(), where_);
      }
      out.append(token, copied);
      token = std::move(out);
    }
  }

 private:
  std::string where_;
  Regex regex_;
  std::string content_;
};

/// Runs of <0xHH> become the characters that their bytes spell, or, if they spell none, one U+FFFD a byte.
class ByteFallbackDecoder final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override {
    std::vector<std::string> out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (is_valid_utf8(bytes)) {
        out.push_back(std::move(bytes));
      } else {
        for (std::size_t i = 0; i < bytes.size(); ++i) out.emplace_back(kReplacementCharacter);
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = to_byte(token)) {
        bytes.push_back(static_cast<char>(*byte));
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    tokens = std::move(out);
  }

 private:
  static std::optional<unsigned char> to_byte(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
    const auto digit = [](char c) -> int {
      if (c >= '0' && c <= '9') return c - '0';
      if (c >= 'A' && c <= 'F') return c - 'A' + 10;
      if (c >= 'a' && c <= 'f') return c - 'a' + 10;
      return -1;
    };
    const int high = digit(token[3]);
    const int low = digit(token[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<unsigned char>(high * 16 + low);
  }
};

/// Joins all tokens, so that what follows sees one.
class FuseDecoder final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override {
    std::string text;
    for (const std::string& token : tokens) text += token;
    tokens.clear();
    tokens.push_back(std::move(text));
  }
};

/// Removes up to `start` and `stop` characters from the ends of each token, where they are `content`.
class StripDecoder final : public Decoder {
 public:
  explicit StripDecoder(const JsonView& part)
      : content_(part.text("content")), start_(part.integer("start")), stop_(part.integer("stop")) {
    if (content_.empty() || utf8_at(content_, 0).length != content_.size()) {
      part.refuse("content", "one character");
    }
  }

  void decode(std::vector<std::string>& tokens) const override {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (std::int64_t i = 0; i < start_ && rest.starts_with(content_); ++i) rest.remove_prefix(content_.size());
      for (std::int64_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
      token = std::string(rest);
    }
  }

 private:
  std::string content_;
  std::int64_t start_;
  std::int64_t stop_;
};

/// Undoes the spacing of English that words split at white space and punctuation get.
std::string clean_up_spacing(std::string text) {
  // In this order, each over the whole token.
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) {
    std::string out;
    std::size_t copied = 0;
    for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, copied)) {
      out.append(text, copied, at - copied).append(to);
      copied = at + from.size();
    }
    out.append(text, copied);
    text = std::move(out);
  }
  return text;
}

/// Words with a prefix for pieces that continue one; others get a space before them.
class WordPieceDecoder final : public Decoder {
 public:
  explicit WordPieceDecoder(const JsonView& part)
      : prefix_(part.text("prefix", "##")), cleanup_(part.boolean("cleanup", true)) {}

  void decode(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::string& token = tokens[i];
      if (i > 0) {
        if (!prefix_.empty() && token.starts_with(prefix_)) {
          token.erase(0, prefix_.size());
        } else {
          token.insert(token.begin(), ' ');
        }
      }
      if (cleanup_) token = clean_up_spacing(std::move(token));
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

/// Words with a suffix on their last piece, which becomes a space but at the end of the text.
class BpeDecoder final : public Decoder {
 public:
  explicit BpeDecoder(const JsonView& part) : suffix_(part.text("suffix", "</w>")) {
    if (suffix_.empty()) part.refuse("suffix", "a string that is not empty");
  }

  void decode(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::string out;
      const std::string& token = tokens[i];
      for (std::size_t at = 0; at < token.size();) {
        if (token.compare(at, suffix_.size(), suffix_) == 0) {
          if (i + 1 < tokens.size()) out.push_back(' ');
          at += suffix_.size();
        } else {
          out.push_back(token[at++]);
        }
      }
      tokens[i] = std::move(out);
    }
  }

 private:
  std::string suffix_;
};

class DecoderSequence final : public Decoder {
 public:
  explicit DecoderSequence(const JsonView& part) : where_(part.place()) {
    for (const JsonView& step : part.objects("decoders", kMaxSequence)) {
      steps_.push_back(make_decoder(step));
    }
  }
  void decode(std::vector<std::string>& tokens) const override {
    const auto size = [&] {
      std::size_t bytes = 0;
      for (const std::string& token : tokens) bytes += token.size();
      return bytes;
    };
    const std::size_t before = size() + tokens.size();
    for (const auto& step : steps_) {
      step->decode(tokens);
      check_text_growth(before, size(), where_);
    }
  }

 private:
  std::string where_;
  std::vector<std::unique_ptr<Decoder>> steps_;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const JsonView& part) {
  const std::string type = part.text("type");
  if (type == "Sequence") return std::make_unique<DecoderSequence>(part);
  if (type == "ByteLevel") return std::make_unique<ByteLevelDecoder>();
  if (type == "Metaspace") return std::make_unique<MetaspaceDecoder>(part);
  if (type == "Replace") return std::make_unique<ReplaceDecoder>(part);
  if (type == "ByteFallback") return std::make_unique<ByteFallbackDecoder>();
  if (type == "Fuse") return std::make_unique<FuseDecoder>();
  if (type == "Strip") return std::make_unique<StripDecoder>(part);
  if (type == "WordPiece") return std::make_unique<WordPieceDecoder>(part);
  if (type == "BPEDecoder") return std::make_unique<BpeDecoder>(part);
  fail(
      "{}: the decoder \"{}\" is not supported (supported: Sequence, ByteLevel, Metaspace, Replace, ByteFallback, "
      "Fuse, "
      "Strip, WordPiece, BPEDecoder)",
      part.place(), type);
}

}  // namespace nibble
