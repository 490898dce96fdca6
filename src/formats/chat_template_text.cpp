#include "formats/chat_template_text.h"

#include "core/error.h"
#include "formats/unicode.h"

#include <algorithm>

namespace nibble::chat {
namespace {

/// Python's str.isspace: White_Space and the four separators of ASCII.
bool is_python_space(char32_t code) { return is_unicode_space(code) || (code >= 0x1C && code <= 0x1F); }

/// Where a line ends for str.splitlines.
bool is_line_end(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

/// A piece as a value takes about this much memory beside its bytes.
constexpr std::size_t kPieceCost = 64;

}  // namespace

std::string_view strip(std::string_view text, bool left, bool right, const std::string* characters, Budget& budget) {
  const auto goes = [&](std::size_t at) {
    const Utf8Char c = utf8_at(text, at);
    if (characters == nullptr) return is_python_space(c.code);
    budget.charge(characters->size() / 16 + 1);
    // A character is found as a whole: UTF-8 never has one within another.
    return characters->find(text.substr(at, c.length)) != std::string::npos;
  };
  while (left && !text.empty() && goes(0)) text.remove_prefix(utf8_at(text, 0).length);
  while (right && !text.empty()) {
    const std::size_t last = utf8_before(text, text.size());
    if (!goes(last)) break;
    text = text.substr(0, last);
  }
  return text;
}

namespace {

std::vector<Value> split_at_space(std::string_view text, std::int64_t limit, bool from_right, Budget& budget) {
  std::vector<Value> out;
  const auto put = [&](std::string_view piece) {
    budget.charge(piece.size() + kPieceCost);
    out.emplace_back(piece);
  };
  text = strip(text, !from_right, from_right, nullptr, budget);
  while (!text.empty()) {
    if (limit >= 0 && static_cast<std::int64_t>(out.size()) == limit) {
      put(text);
      break;
    }
    std::size_t cut = from_right ? text.size() : 0;
    if (from_right) {
      while (cut > 0 && !is_python_space(utf8_at(text, utf8_before(text, cut)).code)) cut = utf8_before(text, cut);
      put(text.substr(cut));
      text = strip(text.substr(0, cut), false, true, nullptr, budget);
    } else {
      while (cut < text.size() && !is_python_space(utf8_at(text, cut).code)) cut += utf8_at(text, cut).length;
      put(text.substr(0, cut));
      text = strip(text.substr(cut), true, false, nullptr, budget);
    }
  }
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace

std::vector<Value> split(std::string_view text, const std::string* separator, std::int64_t limit, bool from_right,
                         Budget& budget) {
  budget.charge(text.size());
  if (separator == nullptr) return split_at_space(text, limit, from_right, budget);
  if (separator->empty()) fail("split needs a separator that is not empty");
  budget.charge_search(text.size(), separator->size());
  std::vector<Value> out;
  while (limit < 0 || static_cast<std::int64_t>(out.size()) < limit) {
    const std::size_t found = from_right ? text.rfind(*separator) : text.find(*separator);
    if (found == std::string_view::npos) break;
    budget.charge(kPieceCost);
    out.emplace_back(from_right ? text.substr(found + separator->size()) : text.substr(0, found));
    text = from_right ? text.substr(0, found) : text.substr(found + separator->size());
  }
  out.emplace_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

std::vector<Value> split_lines(std::string_view text, Budget& budget) {
  budget.charge(text.size());
  std::vector<Value> out;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    i += c.length;
    if (!is_line_end(c.code)) continue;
    budget.charge(kPieceCost);
    out.emplace_back(text.substr(begin, i - c.length - begin));
    if (c.code == '\r' && i < text.size() && text[i] == '\n') ++i;
    begin = i;
  }
  if (begin < text.size()) out.emplace_back(text.substr(begin));
  return out;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, std::int64_t limit,
                    Budget& budget) {
  budget.charge_search(text.size(), from.size());
  std::string out;
  std::int64_t done = 0;
  const auto may = [&] { return limit < 0 || done < limit; };
  const auto put = [&] {
    budget.charge(to.size() + 1);
    out += to;
    ++done;
  };
  if (from.empty()) {
    for (std::size_t i = 0; i < text.size();) {
      if (may()) put();
      const std::size_t size = utf8_at(text, i).length;
      out += text.substr(i, size);
      i += size;
    }
    if (may()) put();
    return out;
  }
  while (may()) {
    const std::size_t found = text.find(from);
    if (found == std::string_view::npos) break;
    out += text.substr(0, found);
    put();
    text = text.substr(found + from.size());
  }
  out += text;
  return out;
}

std::int64_t count_text(std::string_view text, std::string_view part, Budget& budget) {
  budget.charge_search(text.size(), part.size());
  if (part.empty()) return length(text) + 1;
  std::int64_t found = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

std::int64_t length(std::string_view text) { return static_cast<std::int64_t>(utf8_length(text)); }

std::int64_t find_text(std::string_view text, std::string_view part, Budget& budget) {
  budget.charge_search(text.size(), part.size());
  const std::size_t found = text.find(part);
  return found == std::string_view::npos ? -1 : length(text.substr(0, found));
}

std::string indent(std::string_view text, std::string_view blanks, bool first, bool blank, Budget& budget) {
  std::string out;
  budget.charge(text.size());
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    if (begin == 0 ? first : blank || !line.empty()) {
      budget.charge(blanks.size());
      out += blanks;
    }
    out += line;
    if (end < text.size()) out += '\n';
    begin = end + 1;
  }
  return out;
}

std::string escape_html(std::string_view text, Budget& budget) {
  std::string out;
  budget.charge(text.size() * 5);
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::vector<std::size_t> slice_positions(std::size_t size, std::optional<std::int64_t> start,
                                         std::optional<std::int64_t> stop, std::optional<std::int64_t> step_given) {
  const std::int64_t step = step_given.value_or(1);
  if (step == 0) fail("a slice cannot have a step of 0");
  const auto n = static_cast<std::int64_t>(size);
  // Python's rule: a negative bound counts from the end, and both are clamped to where the walk may stand.
  const std::int64_t lowest = step > 0 ? 0 : -1;
  const std::int64_t highest = step > 0 ? n : n - 1;
  const auto bound = [&](std::optional<std::int64_t> given, std::int64_t fallback) {
    if (!given) return fallback;
    return std::clamp(*given < 0 ? std::max(*given, -n - 1) + n : *given, lowest, highest);
  };
  const std::int64_t from = bound(start, step > 0 ? lowest : highest);
  const std::int64_t to = bound(stop, step > 0 ? highest : lowest);
  std::vector<std::size_t> out;
  // A step beyond the size ends after one element; clamped, it cannot overflow.
  const std::int64_t stride = std::clamp(step, -n - 1, n + 1);
  for (std::int64_t i = from; step > 0 ? i < to : i > to; i += stride) out.push_back(static_cast<std::size_t>(i));
  return out;
}

}  // namespace nibble::chat
