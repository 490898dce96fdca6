#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

namespace nibble {
namespace {

class NormalFormNormalizer final : public Normalizer {
 public:
  explicit NormalFormNormalizer(NormalForm form) : form_(form) {}
  bool normalize(std::string& text) const override {
    text = normalize_unicode(text, form_);
    return false;
  }

 private:
  NormalForm form_;
};

class LowercaseNormalizer final : public Normalizer {
 public:
  bool normalize(std::string& text) const override {
    text = lowercase_unicode(text);
    return false;
  }
};

/// Removes white space at the ends.
class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  bool normalize(std::string& text) const override {
    std::size_t begin = 0;
    std::size_t end = text.size();
    while (left_ && begin < end) {
      const Utf8Char c = utf8_at(text, begin);
      if (!is_unicode_space(c.code)) break;
      begin += c.length;
    }
    while (right_ && begin < end) {
      const std::size_t before = utf8_before(text, end);
      if (!is_unicode_space(utf8_at(text, before).code)) break;
      end = before;
    }
    text = text.substr(begin, end - begin);
    return begin > 0;
  }

 private:
  bool left_;
  bool right_;
};

/// Puts each character through `map(out, code, character)`, which appends what stands for it. Whether there is nothing
/// for the first one.
template <typename Map>
bool map_text(std::string& text, Map&& map) {
  std::string out;
  out.reserve(text.size());
  bool first_dropped = false;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    map(out, c.code, std::string_view(text).substr(i, c.length));
    if (i == 0) first_dropped = out.empty();
    i += c.length;
  }
  text = std::move(out);
  return first_dropped;
}

/// Drops combining marks, which NFD before it has split off.
class StripAccentsNormalizer final : public Normalizer {
 public:
  bool normalize(std::string& text) const override {
    return map_text(text, [](std::string& out, char32_t code, std::string_view character) {
      if (!is_unicode_mark(code)) out += character;
    });
  }
};

/// Blocks of Chinese characters, which BERT makes words of their own.
bool is_cjk_ideograph(char32_t code) {
  return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
         (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B81F) ||
         (code >= 0x2B920 && code <= 0x2CEAF) || (code >= 0xF900 && code <= 0xFAFF) ||
         (code >= 0x2F800 && code <= 0x2FA1F);
}

/// BERT's: drop control characters, make white space spaces, put spaces around ideographs, drop accents, lower case;
/// each where the file asks for it. Categories are utf8proc's; the `tokenizers` library's are of Unicode 8, so that
/// marks and format characters which came later, of rare scripts, stay there and go here.
class BertNormalizer final : public Normalizer {
 public:
  explicit BertNormalizer(const JsonView& part)
      : clean_(part.boolean("clean_text", true)),
        ideographs_(part.boolean("handle_chinese_chars", true)),
        lowercase_(part.boolean("lowercase", true)),
        strip_accents_(part.boolean("strip_accents", lowercase_)) {}

  bool normalize(std::string& text) const override {
    bool first_dropped = false;
    if (clean_) {
      first_dropped = map_text(text, [](std::string& out, char32_t code, std::string_view character) {
        // Tab and the ends of lines are control characters as well; the other such spaces are dropped.
        if (code == '\t' || code == '\n' || code == '\r') {
          out.push_back(' ');
        } else if (code != 0xFFFD && !is_unicode_control(code)) {
          out += is_unicode_space(code) ? " " : character;
        }
      });
    }
    if (ideographs_) {
      map_text(text, [](std::string& out, char32_t code, std::string_view character) {
        const bool is_word = is_cjk_ideograph(code);
        if (is_word) out.push_back(' ');
        out += character;
        if (is_word) out.push_back(' ');
      });
    }
    if (strip_accents_) {
      text = normalize_unicode(text, NormalForm::nfd);
      const bool mark_dropped = map_text(text, [](std::string& out, char32_t code, std::string_view character) {
        if (!is_unicode_nonspacing_mark(code)) out += character;
      });
      first_dropped = first_dropped || mark_dropped;
    }
    if (lowercase_) text = lowercase_unicode(text);
    return first_dropped;
  }

 private:
  bool clean_;
  bool ideographs_;
  bool lowercase_;
  bool strip_accents_;
};

/// Sentencepiece's rules for translation: drop control characters, and make spaces of white space, of characters
/// without width and of its own mark for a space.
class NmtNormalizer final : public Normalizer {
 public:
  bool normalize(std::string& text) const override {
    return map_text(text, [](std::string& out, char32_t code, std::string_view character) {
      if (is_space(code)) {
        out.push_back(' ');
      } else if (!is_dropped(code)) {
        out += character;
      }
    });
  }

 private:
  static bool is_dropped(char32_t code) {
    return (code >= 0x01 && code <= 0x08) || code == 0x0B || (code >= 0x0E && code <= 0x1F) || code == 0x7F ||
           code == 0x8F || code == 0x9F;
  }
  static bool is_space(char32_t code) {
    return code == 0x09 || code == 0x0A || code == 0x0C || code == 0x0D || code == 0x1680 ||
           (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xFEFF ||
           code == 0xFFFD;
  }
};

class ReplaceNormalizer final : public Normalizer {
 public:
  explicit ReplaceNormalizer(const JsonView& part)
      : where_(part.place()), regex_(part_pattern(part), part.place()), content_(part.text("content")) {}

  bool normalize(std::string& text) const override {
    RegexMatcher matcher(regex_);
    matcher.start(text, {0, static_cast<std::uint32_t>(text.size())});
    std::string out;
    std::size_t copied = 0;
    bool first_dropped = false;
    while (const auto match = matcher.next()) {
      if (match->begin == 0) first_dropped = match->end > 0 && content_.empty();
      out.append(text, copied, match->begin - copied).append(content_);
      copied = match->end;
      check_text_growth(text.size(), out.size(), where_);
    }
    if (copied == 0 && out.empty()) return false;
    out.append(text, copied);
    text = std::move(out);
    return first_dropped;
  }

 private:
  std::string where_;
  Regex regex_;
  std::string content_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  bool normalize(std::string& text) const override {
    if (!text.empty()) text.insert(0, prefix_);
    return false;
  }

 private:
  std::string prefix_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  bool normalize(std::string& text) const override {
    text = byte_level_text(text);
    return false;
  }
};

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(const JsonView& part) : where_(part.place()) {
    for (const JsonView& step : part.objects("normalizers", kMaxSequence)) {
      steps_.push_back(make_normalizer(step));
    }
  }
  bool normalize(std::string& text) const override {
    const std::size_t before = text.size();
    bool first_dropped = false;
    for (const auto& step : steps_) {
      first_dropped = step->normalize(text) || first_dropped;
      check_text_growth(before, text.size(), where_);
    }
    return first_dropped;
  }

 private:
  std::string where_;
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const JsonView& part) {
  const std::string type = part.text("type");
  if (type == "Sequence") return std::make_unique<NormalizerSequence>(part);
  if (type == "NFC") return std::make_unique<NormalFormNormalizer>(NormalForm::nfc);
  if (type == "NFD") return std::make_unique<NormalFormNormalizer>(NormalForm::nfd);
  if (type == "NFKC") return std::make_unique<NormalFormNormalizer>(NormalForm::nfkc);
  if (type == "NFKD") return std::make_unique<NormalFormNormalizer>(NormalForm::nfkd);
  if (type == "Lowercase") return std::make_unique<LowercaseNormalizer>();
  if (type == "Strip") {
    return std::make_unique<StripNormalizer>(part.boolean("strip_left", true), part.boolean("strip_right", true));
  }
  if (type == "StripAccents") return std::make_unique<StripAccentsNormalizer>();
  if (type == "Replace") return std::make_unique<ReplaceNormalizer>(part);
  if (type == "Prepend") {
    std::string prefix = part.text("prepend");
    if (prefix.size() > kMaxTextGrowthBase)
      fail("{}: the prefix has {} bytes, more than {}", part.place(), prefix.size(), kMaxTextGrowthBase);
    return std::make_unique<PrependNormalizer>(std::move(prefix));
  }
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  if (type == "BertNormalizer") return std::make_unique<BertNormalizer>(part);
  if (type == "Nmt") return std::make_unique<NmtNormalizer>();
  if (type == "Precompiled") return make_precompiled_normalizer(part);
  fail(
      "{}: the normalizer \"{}\" is not supported (supported: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, "
      "StripAccents, Replace, Prepend, ByteLevel, BertNormalizer, Nmt, Precompiled)",
      part.place(), type);
}

}  // namespace nibble
