#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

namespace nibble {
namespace {

class NormalFormNormalizer final : public Normalizer {
 public:
  explicit NormalFormNormalizer(NormalForm form) : form_(form) {}
  void normalize(std::string& text) const override { text = normalize_unicode(text, form_); }

 private:
  NormalForm form_;
};

class LowercaseNormalizer final : public Normalizer {
 public:
  void normalize(std::string& text) const override { text = lowercase_unicode(text); }
};

/// Removes white space at the ends.
class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  void normalize(std::string& text) const override {
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
  }

 private:
  bool left_;
  bool right_;
};

/// Drops combining marks, which NFD before it has split off.
class StripAccentsNormalizer final : public Normalizer {
 public:
  void normalize(std::string& text) const override {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
      const Utf8Char c = utf8_at(text, i);
      if (!is_unicode_mark(c.code)) out.append(text, i, c.length);
      i += c.length;
    }
    text = std::move(out);
  }
};

class ReplaceNormalizer final : public Normalizer {
 public:
  explicit ReplaceNormalizer(const JsonView& part)
      : where_(part.place()), regex_(part_pattern(part), part.place()), content_(part.text("content")) {}

  void normalize(std::string& text) const override {
    RegexMatcher matcher(regex_);
    matcher.start(text, {0, static_cast<std::uint32_t>(text.size())});
    std::string out;
    std::size_t copied = 0;
    while (const auto match = matcher.next()) {
      out.append(text, copied, match->begin - copied).append(content_);
      copied = match->end;
      check_text_growth(text.size(), out.size(), where_);
    }
    if (copied == 0 && out.empty()) return;
    out.append(text, copied);
    text = std::move(out);
  }

 private:
  std::string where_;
  Regex regex_;
  std::string content_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  void normalize(std::string& text) const override {
    if (!text.empty()) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void normalize(std::string& text) const override { text = byte_level_text(text); }
};

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(const JsonView& part) : where_(part.place()) {
    for (const JsonView& step : part.objects("normalizers", kMaxSequence)) {
      steps_.push_back(make_normalizer(step));
    }
  }
  void normalize(std::string& text) const override {
    const std::size_t before = text.size();
    for (const auto& step : steps_) {
      step->normalize(text);
      check_text_growth(before, text.size(), where_);
    }
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
  fail(
      "{}: the normalizer \"{}\" is not supported (supported: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, "
      "StripAccents, Replace, Prepend, ByteLevel)",
      part.place(), type);
}

}  // namespace nibble
