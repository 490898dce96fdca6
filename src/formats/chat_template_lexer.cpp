#include "formats/chat_template_lexer.h"

#include "core/error.h"
#include "formats/unicode.h"

#include <algorithm>
#include <array>

namespace nibble::chat {
namespace {

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/// \r\n and \r become \n; one \n at the end goes.
std::string unify_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(unify_lines(to_valid_utf8(source))) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const std::size_t open = find_tag(at_);
      const std::string_view text = std::string_view(source_).substr(at_, open - at_);
      if (open == source_.size()) {
        put_text(text);
        at_ = open;
        break;
      }
      const char kind = source_[open + 1];
      const char mark = open + 2 < source_.size() ? source_[open + 2] : '\0';
      put_text(strip_before(text, kind, mark));
      advance(open + 2 + (mark == '-' || mark == '+' ? 1 : 0));
      if (kind == '#') {
        read_comment();
      } else if (kind == '%' && read_raw()) {
        continue;
      } else {
        read_tag(kind);
      }
    }
    tokens_.push_back({TokenKind::end, line_, ""});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const { fail("chat template, line {}: {}", line_, what); }

  /// Where the next {{, {% or {# begins, or the end.
  std::size_t find_tag(std::size_t from) const {
    for (std::size_t i = source_.find('{', from); i != std::string::npos; i = source_.find('{', i + 1)) {
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    }
    return source_.size();
  }

  /// Moves on, counting lines.
  void advance(std::size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  void put_text(std::string_view text) {
    if (text.empty()) return;
    tokens_.push_back({TokenKind::text, line_, std::string(text)});
  }

  /// The text before a tag, without the white space that its mark, or lstrip_blocks, takes.
  std::string_view strip_before(std::string_view text, char kind, char mark) const {
    if (mark == '-') {
      while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
      return text;
    }
    if (mark == '+' || kind == '{') return text;
    const std::size_t newline = text.rfind('\n');
    const std::size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
    // A tag that is the first of its line, which may have begun before this text only where nothing else stands on it.
    const bool line_starts = newline != std::string_view::npos || at_ == 0 || source_[at_ - 1] == '\n';
    if (line_starts && std::all_of(text.begin() + static_cast<std::ptrdiff_t>(begin), text.end(), is_space)) {
      return text.substr(0, begin);
    }
    return text;
  }

  /// After the end of a tag: white space that its mark, or trim_blocks, takes.
  void strip_after(char mark, bool trims) {
    if (mark == '-') {
      std::size_t end = at_;
      while (end < source_.size() && is_space(source_[end])) ++end;
      advance(end);
    } else if (trims && mark != '+' && at_ < source_.size() && source_[at_] == '\n') {
      advance(at_ + 1);
    }
  }

  void read_comment() {
    const std::size_t close = source_.find("#}", at_);
    if (close == std::string::npos) refuse("a comment has no end (#})");
    const char mark = close > at_ ? source_[close - 1] : '\0';
    advance(close + 2);
    strip_after(mark, true);
  }

  /// {% raw %} ... {% endraw %}: text, whatever it holds. The opening {% has been read.
  bool read_raw() {
    std::size_t i = skip_space(at_);
    if (source_.compare(i, 3, "raw") != 0) return false;
    i = skip_space(i + 3);
    char mark = '\0';
    if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) mark = source_[i++];
    if (source_.compare(i, 2, "%}") != 0) return false;
    advance(i + 2);
    strip_after(mark, true);
    const std::size_t begin = at_;
    for (std::size_t open = source_.find("{%", begin); open != std::string::npos; open = source_.find("{%", open + 2)) {
      std::size_t j = open + 2;
      char open_mark = '\0';
      if (j < source_.size() && (source_[j] == '-' || source_[j] == '+')) open_mark = source_[j++];
      j = skip_space(j);
      if (source_.compare(j, 6, "endraw") != 0) continue;
      j = skip_space(j + 6);
      char close_mark = '\0';
      if (j < source_.size() && (source_[j] == '-' || source_[j] == '+')) close_mark = source_[j++];
      if (source_.compare(j, 2, "%}") != 0) continue;
      put_text(strip_before(std::string_view(source_).substr(begin, open - begin), '%', open_mark));
      advance(j + 2);
      strip_after(close_mark, true);
      return true;
    }
    refuse("raw has no end ({% endraw %})");
  }

  std::size_t skip_space(std::size_t i) const {
    while (i < source_.size() && is_space(source_[i])) ++i;
    return i;
  }

  void read_tag(char kind) {
    const bool block = kind == '%';
    const std::string close = block ? "%}" : "}}";
    tokens_.push_back({block ? TokenKind::block_begin : TokenKind::print_begin, line_, ""});
    int open_brackets = 0;
    while (true) {
      advance(skip_space(at_));
      if (at_ >= source_.size()) refuse(block ? "a tag has no end (%})" : "a tag has no end (}})");
      if (open_brackets == 0) {
        const bool marked = source_[at_] == '-' || source_[at_] == '+';
        if (source_.compare(at_ + (marked ? 1 : 0), 2, close) == 0) {
          const char mark = marked ? source_[at_] : '\0';
          tokens_.push_back({block ? TokenKind::block_end : TokenKind::print_end, line_, ""});
          advance(at_ + (marked ? 3 : 2));
          strip_after(mark, block);
          return;
        }
      }
      read_token(open_brackets);
    }
  }

  void read_token(int& open_brackets) {
    const char c = source_[at_];
    if (is_name_start(c)) {
      std::size_t end = at_;
      while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
      put(TokenKind::name, end);
    } else if (is_digit(c)) {
      read_number();
    } else if (c == '"' || c == '\'') {
      read_string(c);
    } else {
      static constexpr std::array<std::string_view, 6> kPairs = {"==", "!=", "<=", ">=", "//", "**"};
      for (const std::string_view pair : kPairs) {
        if (source_.compare(at_, 2, pair) == 0) {
          put(TokenKind::symbol, at_ + 2);
          return;
        }
      }
      if (std::string_view("()[]{},:.|~+-*/%<>=").find(c) == std::string_view::npos) {
        refuse(fmt::format("unexpected \"{}\" in a tag", source_.substr(at_, utf8_at(source_, at_).length)));
      }
      if (c == '(' || c == '[' || c == '{') ++open_brackets;
      if (c == ')' || c == ']' || c == '}') open_brackets = std::max(0, open_brackets - 1);
      put(TokenKind::symbol, at_ + 1);
    }
  }

  void put(TokenKind kind, std::size_t end) {
    tokens_.push_back({kind, line_, source_.substr(at_, end - at_)});
    advance(end);
  }

  void read_number() {
    std::size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    const auto at = [&](std::size_t i) { return i < source_.size() ? source_[i] : '\0'; };
    digits();
    TokenKind kind = TokenKind::integer;
    if (at(end) == '.' && is_digit(at(end + 1))) {
      kind = TokenKind::number;
      ++end;
      digits();
    }
    const std::size_t exponent = at(end + 1) == '+' || at(end + 1) == '-' ? end + 2 : end + 1;
    if ((at(end) == 'e' || at(end) == 'E') && is_digit(at(exponent))) {
      kind = TokenKind::number;
      end = exponent;
      digits();
    }
    put(kind, end);
    std::string& text = tokens_.back().text;
    std::erase(text, '_');
  }

  /// A code point in hexadecimal, `count` digits long.
  char32_t read_hex(std::size_t& i, std::size_t count) const {
    char32_t code = 0;
    for (std::size_t n = 0; n < count; ++n, ++i) {
      const char c = i < source_.size() ? source_[i] : '\0';
      const int digit = is_digit(c)            ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) refuse("an escape in a string has too few hexadecimal digits");
      code = code * 16 + static_cast<char32_t>(digit);
    }
    return code;
  }

  void read_string(char quote) {
    std::string text;
    std::size_t i = at_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        text += source_[i++];
        continue;
      }
      if (++i >= source_.size()) break;
      const char c = source_[i++];
      static constexpr std::string_view kLetters = "abfnrtv\\'\"";
      static constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
      if (const std::size_t known = kLetters.find(c); known != std::string_view::npos) {
        text += kMeanings[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        append_utf8(text, read_hex(i, c == 'x' ? 2 : c == 'u' ? 4 : 8));
      } else if (c >= '0' && c <= '7') {
        char32_t code = static_cast<char32_t>(c - '0');
        for (int n = 0; n < 2 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++n, ++i) {
          code = code * 8 + static_cast<char32_t>(source_[i] - '0');
        }
        append_utf8(text, code);
      } else if (c != '\n') {
        // As in Python, an escape that means nothing is kept; a line break after a backslash joins two lines.
        text += '\\';
        text += c;
      }
    }
    if (i >= source_.size()) refuse("a string has no end");
    tokens_.push_back({TokenKind::string, line_, std::move(text)});
    advance(i + 1);
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex_template(std::string_view source) { return Lexer(source).run(); }

}  // namespace nibble::chat
