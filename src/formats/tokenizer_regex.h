// Regular expressions of tokenizer.json files: PCRE2 with UTF-8, Unicode properties and its JIT, bounded in time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace nibble {

struct TextRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  friend bool operator==(const TextRange&, const TextRange&) = default;
};

/// A compiled pattern; immutable, so threads may share it.
class Regex {
 public:
  /// Throws Error, naming `where`, for a pattern that PCRE2 does not take.
  Regex(std::string_view pattern, std::string_view where);

  const std::string& pattern() const { return pattern_; }

 private:
  friend class RegexMatcher;
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string pattern_;
  std::string where_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
  bool jit_ = false;
};

/// What one thread needs to match one Regex (borrowed): made once for many texts.
class RegexMatcher {
 public:
  explicit RegexMatcher(const Regex& regex);
  RegexMatcher(const RegexMatcher&) = delete;
  RegexMatcher& operator=(const RegexMatcher&) = delete;
  ~RegexMatcher();

  /// Begins on `text[range]`, which is matched as if it were a text of its own. `text` must be valid UTF-8, the range
  /// on character boundaries, and both alive until the last next().
  void start(std::string_view text, TextRange range);

  /// The next match, as offsets in `text`; none after the last. Matches do not overlap, and an empty one never touches
  /// the one before it. Throws Error where the pattern exceeds its limits of time or memory.
  std::optional<TextRange> next();

 private:
  struct Free {
    void operator()(pcre2_real_match_data_8* data) const;
    void operator()(pcre2_real_match_context_8* context) const;
    void operator()(pcre2_real_jit_stack_8* stack) const;
  };
  int match(std::size_t offset);

  const Regex& regex_;
  std::unique_ptr<pcre2_real_jit_stack_8, Free> jit_stack_;
  std::unique_ptr<pcre2_real_match_context_8, Free> context_;
  std::unique_ptr<pcre2_real_match_data_8, Free> data_;
  std::string_view subject_;
  std::uint32_t base_ = 0;
  std::size_t offset_ = 0;
  std::optional<std::size_t> last_end_;
};

}  // namespace nibble
