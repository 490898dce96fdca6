#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

namespace nibble {
namespace {

/// GPT-2's pattern: English contractions, words and numbers with at most one space before them, runs of other
/// characters, and white space, whose last character goes to the word after it.
constexpr std::string_view kGpt2Pattern = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// What becomes of the parts that a pattern matched (delimiters) and of those between.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

SplitBehavior to_behavior(const JsonView& part, std::string_view fallback) {
  const std::string name = part.text("behavior", fallback);
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  part.refuse("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

struct Part {
  TextRange range;
  bool matched = false;
};

/// Appends the pieces that a behaviour makes of one piece's parts, which cover it in order.
void append_split(const std::vector<Part>& parts, SplitBehavior behavior, std::vector<TextRange>& out) {
  const auto put = [&](TextRange range) {
    if (range.begin != range.end) out.push_back(range);
  };
  TextRange open{};
  bool has_open = false;
  bool previous = false;
  const auto flush = [&] {
    if (has_open) put(open);
    has_open = false;
  };
  switch (behavior) {
    case SplitBehavior::isolated:
      for (const Part& part : parts) put(part.range);
      return;
    case SplitBehavior::removed:
      for (const Part& part : parts) {
        if (!part.matched) put(part.range);
      }
      return;
    case SplitBehavior::contiguous:
    case SplitBehavior::merged_with_previous:
      for (const Part& part : parts) {
        const bool joins = behavior == SplitBehavior::contiguous ? part.matched == previous : part.matched && !previous;
        if (joins && has_open) {
          open.end = part.range.end;
        } else {
          flush();
          open = part.range;
          has_open = true;
        }
        previous = part.matched;
      }
      flush();
      return;
    case SplitBehavior::merged_with_next:
      // A delimiter joins what follows it, unless that is a delimiter too.
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const bool joins = i > 0 && parts[i - 1].matched && !parts[i].matched;
        if (joins && has_open) {
          open.end = parts[i].range.end;
        } else {
          flush();
          open = parts[i].range;
          has_open = true;
        }
      }
      flush();
      return;
  }
}

/// Cuts every piece by what `find_parts(text, range, parts)` says of it.
template <typename FindParts>
void split_pieces(Pieces& pieces, SplitBehavior behavior, FindParts&& find_parts) {
  std::vector<TextRange> out;
  out.reserve(pieces.ranges.size());
  std::vector<Part> parts;
  for (const TextRange range : pieces.ranges) {
    parts.clear();
    find_parts(range, parts);
    append_split(parts, behavior, out);
  }
  pieces.ranges = std::move(out);
}

/// Each character of a class is a match of its own.
template <typename IsMatch>
void split_characters(Pieces& pieces, SplitBehavior behavior, IsMatch&& is_match) {
  split_pieces(pieces, behavior, [&](TextRange range, std::vector<Part>& parts) {
    std::uint32_t open = range.begin;
    for (std::uint32_t i = range.begin; i < range.end;) {
      const Utf8Char c = utf8_at(pieces.text, i);
      if (is_match(c.code)) {
        if (open < i) parts.push_back({{open, i}, false});
        parts.push_back({{i, i + c.length}, true});
        open = i + c.length;
      }
      i += c.length;
    }
    if (open < range.end) parts.push_back({{open, range.end}, false});
  });
}

void split_regex(Pieces& pieces, const Regex& regex, SplitBehavior behavior, bool invert) {
  RegexMatcher matcher(regex);
  if (behavior == SplitBehavior::isolated) {
    // The way of every byte-level tokenizer, without the list of parts.
    std::vector<TextRange> out;
    out.reserve(pieces.ranges.size() + pieces.text.size() / 8);
    for (const TextRange range : pieces.ranges) {
      std::uint32_t open = range.begin;
      matcher.start(pieces.text, range);
      while (const auto match = matcher.next()) {
        if (open < match->begin) out.push_back({open, match->begin});
        if (match->begin < match->end) out.push_back(*match);
        open = match->end;
      }
      if (open < range.end) out.push_back({open, range.end});
    }
    pieces.ranges = std::move(out);
    return;
  }
  split_pieces(pieces, behavior, [&](TextRange range, std::vector<Part>& parts) {
    std::uint32_t open = range.begin;
    matcher.start(pieces.text, range);
    while (const auto match = matcher.next()) {
      if (open < match->begin) parts.push_back({{open, match->begin}, invert});
      parts.push_back({*match, !invert});
      open = match->end;
    }
    if (open < range.end) parts.push_back({{open, range.end}, invert});
  });
}

/// Rewrites every piece: `append(text of the piece, whether it begins the user's text, out)`.
template <typename Append>
void rewrite_pieces(Pieces& pieces, const char* where, Append&& append) {
  std::string out;
  out.reserve(pieces.text.size() + pieces.text.size() / 4 + 16);
  for (TextRange& range : pieces.ranges) {
    const std::string_view piece = std::string_view(pieces.text).substr(range.begin, range.end - range.begin);
    const std::size_t begin = out.size();
    append(piece, pieces.at_start && range.begin == 0, out);
    check_text_growth(pieces.text.size(), out.size(), where);
    range = {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(out.size())};
  }
  pieces.text = std::move(out);
}

class ByteLevelPreTokenizer final : public PreTokenizer {
 public:
  explicit ByteLevelPreTokenizer(const JsonView& part) : add_prefix_space_(part.boolean("add_prefix_space", true)) {
    if (part.boolean("use_regex", true)) regex_.emplace(kGpt2Pattern, part.place());
  }

  void split(Pieces& pieces) const override {
    if (add_prefix_space_) {
      rewrite_pieces(pieces, "pre_tokenizer ByteLevel", [](std::string_view piece, bool, std::string& out) {
        if (piece.front() != ' ') out.push_back(' ');
        out.append(piece);
      });
    }
    if (regex_) split_regex(pieces, *regex_, SplitBehavior::isolated, false);
    rewrite_pieces(pieces, "pre_tokenizer ByteLevel", [](std::string_view piece, bool, std::string& out) {
      for (const char c : piece) out.append(byte_level_spelling(static_cast<unsigned char>(c)));
    });
  }

 private:
  bool add_prefix_space_;
  std::optional<Regex> regex_;
};

class MetaspacePreTokenizer final : public PreTokenizer {
 public:
  explicit MetaspacePreTokenizer(const JsonView& part)
      : mark_(part.text("replacement", "\u2581")), split_(part.boolean("split", true)) {
    if (mark_.empty() || utf8_at(mark_, 0).length != mark_.size()) {
      part.refuse("replacement", "one character");
    }
    // Files from before prepend_scheme have add_prefix_space instead.
    const bool legacy = part.boolean("add_prefix_space", true);
    const std::string scheme = part.text("prepend_scheme", legacy ? "always" : "never");
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      part.refuse("prepend_scheme", "always, first or never");
    }
    always_ = scheme == "always";
    first_ = scheme == "first";
  }

  void split(Pieces& pieces) const override {
    rewrite_pieces(pieces, "pre_tokenizer Metaspace", [&](std::string_view piece, bool at_start, std::string& out) {
      if ((always_ || (first_ && at_start)) && piece.front() != ' ' && !piece.starts_with(mark_)) out.append(mark_);
      for (const char c : piece) {
        if (c == ' ') {
          out.append(mark_);
        } else {
          out.push_back(c);
        }
      }
    });
    if (!split_) return;
    const char32_t mark = utf8_at(mark_, 0).code;
    split_characters(pieces, SplitBehavior::merged_with_next, [&](char32_t code) { return code == mark; });
  }

 private:
  std::string mark_;
  bool split_;
  bool always_ = false;
  bool first_ = false;
};

class SplitPreTokenizer final : public PreTokenizer {
 public:
  explicit SplitPreTokenizer(const JsonView& part)
      : regex_(part_pattern(part), part.place()),
        behavior_(to_behavior(part, "")),
        invert_(part.boolean("invert", false)) {}
  void split(Pieces& pieces) const override { split_regex(pieces, regex_, behavior_, invert_); }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class DigitsPreTokenizer final : public PreTokenizer {
 public:
  explicit DigitsPreTokenizer(bool individual) : individual_(individual) {}
  void split(Pieces& pieces) const override {
    split_characters(pieces, individual_ ? SplitBehavior::isolated : SplitBehavior::contiguous, is_unicode_number);
  }

 private:
  bool individual_;
};

/// Runs of word characters and runs of others that are no white space.
class WhitespacePreTokenizer final : public PreTokenizer {
 public:
  void split(Pieces& pieces) const override {
    std::vector<TextRange> out;
    for (const TextRange range : pieces.ranges) {
      int last = 0;
      for (std::uint32_t i = range.begin; i < range.end;) {
        const Utf8Char c = utf8_at(pieces.text, i);
        const int kind = is_unicode_word(c.code) ? 1 : is_unicode_space(c.code) ? 0 : 2;
        if (kind != 0 && kind == last) {
          out.back().end += c.length;
        } else if (kind != 0) {
          out.push_back({i, i + c.length});
        }
        last = kind;
        i += c.length;
      }
    }
    pieces.ranges = std::move(out);
  }
};

class WhitespaceSplitPreTokenizer final : public PreTokenizer {
 public:
  void split(Pieces& pieces) const override { split_characters(pieces, SplitBehavior::removed, is_unicode_space); }
};

class PunctuationPreTokenizer final : public PreTokenizer {
 public:
  explicit PunctuationPreTokenizer(SplitBehavior behavior) : behavior_(behavior) {}
  void split(Pieces& pieces) const override { split_characters(pieces, behavior_, is_bert_punctuation); }

 private:
  SplitBehavior behavior_;
};

class BertPreTokenizer final : public PreTokenizer {
 public:
  void split(Pieces& pieces) const override {
    split_characters(pieces, SplitBehavior::removed, is_unicode_space);
    split_characters(pieces, SplitBehavior::isolated, is_bert_punctuation);
  }
};

class PreTokenizerSequence final : public PreTokenizer {
 public:
  explicit PreTokenizerSequence(const JsonView& part) : where_(part.place()) {
    for (const JsonView& step : part.objects("pretokenizers", kMaxSequence)) {
      steps_.push_back(make_pre_tokenizer(step));
    }
  }
  void split(Pieces& pieces) const override {
    const std::size_t before = pieces.text.size();
    for (const auto& step : steps_) {
      step->split(pieces);
      check_text_growth(before, pieces.text.size(), where_);
    }
  }

 private:
  std::string where_;
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const JsonView& part) {
  const std::string type = part.text("type");
  if (type == "Sequence") return std::make_unique<PreTokenizerSequence>(part);
  if (type == "ByteLevel") return std::make_unique<ByteLevelPreTokenizer>(part);
  if (type == "Metaspace") return std::make_unique<MetaspacePreTokenizer>(part);
  if (type == "Split") return std::make_unique<SplitPreTokenizer>(part);
  if (type == "Digits") return std::make_unique<DigitsPreTokenizer>(part.boolean("individual_digits", false));
  if (type == "Whitespace") return std::make_unique<WhitespacePreTokenizer>();
  if (type == "WhitespaceSplit") return std::make_unique<WhitespaceSplitPreTokenizer>();
  if (type == "Punctuation") {
    return std::make_unique<PunctuationPreTokenizer>(to_behavior(part, "Isolated"));
  }
  if (type == "BertPreTokenizer") return std::make_unique<BertPreTokenizer>();
  fail(
      "{}: the pre-tokenizer \"{}\" is not supported (supported: Sequence, ByteLevel, Metaspace, Split, Digits, "
      "Whitespace, WhitespaceSplit, Punctuation, BertPreTokenizer)",
      part.place(), type);
}

}  // namespace nibble
