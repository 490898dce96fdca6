#include "formats/chat_template_builtins.h"

#include "core/error.h"
#include "formats/chat_template_text.h"
#include "formats/unicode.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

namespace nibble::chat {
namespace {

const std::string& need_text(const Value& value, std::string_view what) {
  if (!value.is_text()) fail("{} needs a text, not {}", what, type_name(value));
  return value.as_text();
}

std::int64_t need_int(const Value& value, std::string_view what) {
  if (!value.is_int() && !value.is_bool()) fail("{} needs an integer, not {}", what, type_name(value));
  return value.as_int();
}

/// The text of an optional argument; null for none or None.
const std::string* text_or_null(const Arguments& arguments, std::size_t position, std::string_view name) {
  const Value* value = arguments.find(position, name);
  return value == nullptr || value->is_none() ? nullptr : &need_text(*value, name);
}

std::int64_t int_or(const Arguments& arguments, std::size_t position, std::string_view name, std::int64_t fallback) {
  const Value* value = arguments.find(position, name);
  return value == nullptr || value->is_none() ? fallback : need_int(*value, name);
}

bool bool_or(const Arguments& arguments, std::size_t position, std::string_view name, bool fallback) {
  const Value* value = arguments.find(position, name);
  return value == nullptr ? fallback : is_true(*value);
}

std::int64_t size_of(const Value& value) {
  if (value.is_text()) return length(value.as_text());
  if (value.is_list()) return static_cast<std::int64_t>(value.as_list().size());
  if (value.is_dict()) return static_cast<std::int64_t>(value.as_dict().size());
  if (value.is_undefined()) return 0;
  fail("a value of type {} has no length", type_name(value));
}

/// The attribute of a dotted path, as `map(attribute="a.b")` names it; what is undefined on the way becomes `fallback`.
Value attribute_path(Value value, std::string_view path, Session& session, const Value* fallback = nullptr) {
  while (true) {
    const std::size_t dot = path.find('.');
    const std::string_view part = path.substr(0, dot);
    std::int64_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = error == std::errc() && end == part.data() + part.size();
    value = is_index ? get_item(value, index, session) : get_attribute(value, part, session);
    if (fallback != nullptr && value.is_undefined()) value = *fallback;
    if (dot == std::string_view::npos) return value;
    path = path.substr(dot + 1);
  }
}

/// For case-insensitive order, as sort and unique have it by default.
Value sort_key(const Value& value, const std::string* attribute, bool case_sensitive, Session& session) {
  Value key = attribute == nullptr ? value : attribute_path(value, *attribute, session);
  if (key.is_text() && !case_sensitive) {
    session.budget.charge(key.as_text().size());
    return lowercase_unicode(key.as_text());
  }
  return key;
}

std::vector<Value> sorted(const Value& input, const std::string* attribute, bool case_sensitive, bool reverse,
                          Session& session) {
  std::vector<Value> items = to_items(input, session.budget);
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    Value key = sort_key(item, attribute, case_sensitive, session);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = compare(a.first, b.first, session.budget);
    return reverse ? order > 0 : order < 0;
  });
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = std::move(keyed[i].second);
  return items;
}

/// select, reject, selectattr, rejectattr: arguments are [attribute,] [test, its arguments].
Value select(std::string_view name, const Value& input, const Arguments& arguments, Session& session) {
  const bool keep = name.starts_with("select");
  const bool by_attribute = name.ends_with("attr");
  const std::size_t skip = by_attribute ? 1 : 0;
  const std::string attribute = by_attribute ? need_text(arguments.need(0, "", name), name) : "";
  std::string test;
  Arguments rest{{}, arguments.named};
  if (arguments.positional.size() > skip) {
    test = need_text(arguments.positional[skip], name);
    rest.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(skip) + 1,
                           arguments.positional.end());
  }
  std::vector<Value> out;
  for (Value& item : to_items(input, session.budget)) {
    const Value subject = by_attribute ? attribute_path(item, attribute, session) : item;
    const bool passes = test.empty() ? is_true(subject) : apply_test(test, subject, rest, session);
    if (passes == keep) out.push_back(std::move(item));
  }
  return Value::list(std::move(out));
}

/// map(attribute=..., default=...) or map("filter", its arguments).
Value map(const Value& input, const Arguments& arguments, Session& session) {
  std::vector<Value> out;
  const bool by_attribute = arguments.positional.empty();
  if (by_attribute) {
    const std::string& attribute = need_text(arguments.need(99, "attribute", "map"), "map");
    const Value* fallback = arguments.find(99, "default");
    for (const Value& item : to_items(input, session.budget)) {
      out.push_back(attribute_path(item, attribute, session, fallback));
    }
    return Value::list(std::move(out));
  }
  const std::string& filter = need_text(arguments.positional[0], "map");
  const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
  for (const Value& item : to_items(input, session.budget)) out.push_back(apply_filter(filter, item, rest, session));
  return Value::list(std::move(out));
}

Value join(const Value& input, const Arguments& arguments, Session& session) {
  const Value* separator_value = arguments.find(0, "d");
  const std::string separator = separator_value == nullptr ? "" : to_text(*separator_value, session.budget);
  const std::string* attribute = text_or_null(arguments, 1, "attribute");
  std::string out;
  bool first = true;
  for (const Value& item : to_items(input, session.budget)) {
    session.budget.charge(separator.size());
    if (!first) out += separator;
    first = false;
    out += to_text(attribute == nullptr ? item : attribute_path(item, *attribute, session), session.budget);
  }
  return out;
}

Value default_value(const Value& input, const Arguments& arguments) {
  const bool replaces = input.is_undefined() || (bool_or(arguments, 1, "boolean", false) && !is_true(input));
  if (!replaces) return input;
  const Value* value = arguments.find(0, "default_value");
  return value == nullptr ? Value("") : *value;
}

Value to_int(const Value& input, const Arguments& arguments) {
  if (input.is_int() || input.is_bool()) return input.as_int();
  double number = 0;
  bool known = input.is_float();
  if (known) number = input.as_float();
  if (input.is_text()) {
    Budget unbounded(input.as_text().size() + 1);
    const std::string_view text = strip(input.as_text(), true, true, nullptr, unbounded);
    std::int64_t whole = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), whole);
    if (error == std::errc() && end == text.data() + text.size()) return whole;
    const auto [float_end, float_error] = std::from_chars(text.data(), text.data() + text.size(), number);
    known = !text.empty() && float_error == std::errc() && float_end == text.data() + text.size();
  }
  // 2^63 is the first double that does not fit.
  if (known && std::fabs(number) < 0x1p63) return static_cast<std::int64_t>(number);
  const Value* fallback = arguments.find(0, "default");
  return fallback == nullptr ? Value(std::int64_t{0}) : *fallback;
}

Value to_float(const Value& input, const Arguments& arguments) {
  if (input.is_number()) return input.as_float();
  if (input.is_text()) {
    double number = 0;
    const std::string& text = input.as_text();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (!text.empty() && error == std::errc() && end == text.data() + text.size()) return number;
  }
  const Value* fallback = arguments.find(0, "default");
  return fallback == nullptr ? Value(0.0) : *fallback;
}

Value round_number(const Value& input, const Arguments& arguments) {
  if (!input.is_number()) fail("round needs a number, not {}", type_name(input));
  // Beyond 15 digits a double has nothing left to round.
  const std::int64_t digits = std::clamp<std::int64_t>(int_or(arguments, 0, "precision", 0), -15, 15);
  const std::string* method = text_or_null(arguments, 1, "method");
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = input.as_float() * scale;
  if (method != nullptr && *method == "ceil") return std::ceil(scaled) / scale;
  if (method != nullptr && *method == "floor") return std::floor(scaled) / scale;
  if (method != nullptr && *method != "common") fail("round knows common, ceil and floor, not \"{}\"", *method);
  return std::nearbyint(scaled) / scale;
}

Value extreme(std::string_view name, const Value& input, const Arguments& arguments, Session& session) {
  const std::vector<Value> items = sorted(input, text_or_null(arguments, 1, "attribute"),
                                          bool_or(arguments, 0, "case_sensitive", false), name == "max", session);
  return items.empty() ? Value::undefined("the " + std::string(name) + " of nothing") : items.front();
}

Value sum(const Value& input, const Arguments& arguments, Session& session) {
  const std::string* attribute = text_or_null(arguments, 0, "attribute");
  std::int64_t whole = 0;
  double real = 0;
  bool is_real = false;
  for (const Value& item : to_items(input, session.budget)) {
    const Value value = attribute == nullptr ? item : attribute_path(item, *attribute, session);
    if (!value.is_number()) fail("sum needs numbers, not {}", type_name(value));
    is_real = is_real || value.is_float();
    real += value.as_float();
    if (!value.is_float() && __builtin_add_overflow(whole, value.as_int(), &whole)) fail("sum does not fit in 64 bits");
  }
  return is_real ? Value(real) : Value(whole);
}

Value unique(const Value& input, const Arguments& arguments, Session& session) {
  const std::string* attribute = text_or_null(arguments, 1, "attribute");
  const bool case_sensitive = bool_or(arguments, 0, "case_sensitive", false);
  std::vector<Value> keys;
  std::vector<Value> out;
  for (Value& item : to_items(input, session.budget)) {
    Value key = sort_key(item, attribute, case_sensitive, session);
    const auto is_key = [&](const Value& other) { return equal(key, other, session.budget); };
    if (std::any_of(keys.begin(), keys.end(), is_key)) continue;
    keys.push_back(std::move(key));
    out.push_back(std::move(item));
  }
  return Value::list(std::move(out));
}

Value end_item(std::string_view name, const Value& input, Session& session) {
  if (size_of(input) == 0) return Value::undefined("the " + std::string(name) + " of nothing");
  if (input.is_text()) {
    const std::string& text = input.as_text();
    const std::size_t at = name == "first" ? 0 : utf8_before(text, text.size());
    return text.substr(at, utf8_at(text, at).length);
  }
  const std::vector<Value> items = to_items(input, session.budget);
  return name == "first" ? items.front() : items.back();
}

Value reverse(const Value& input, Session& session) {
  std::vector<Value> items = to_items(input, session.budget);
  std::reverse(items.begin(), items.end());
  if (!input.is_text()) return Value::list(std::move(items));
  std::string out;
  for (const Value& item : items) out += item.as_text();
  return out;
}

std::vector<Value> dict_pairs(const std::vector<std::pair<std::string, Value>>& items, Session& session) {
  std::vector<Value> out;
  out.reserve(items.size());
  for (const auto& [key, value] : items) {
    session.budget.charge(key.size() + 8);
    out.push_back(Value::tuple({key, value}));
  }
  return out;
}

const std::vector<std::pair<std::string, Value>>& need_dict(const Value& value, std::string_view what) {
  if (!value.is_dict()) fail("{} needs a dict, not {}", what, type_name(value));
  return value.as_dict();
}

Value dict_sort(const Value& input, const Arguments& arguments, Session& session) {
  const std::string* by = text_or_null(arguments, 1, "by");
  const std::string path = by != nullptr && *by == "value" ? "1" : "0";
  return Value::list(sorted(Value::list(dict_pairs(need_dict(input, "dictsort"), session)), &path,
                            bool_or(arguments, 0, "case_sensitive", false), bool_or(arguments, 2, "reverse", false),
                            session));
}

Value absolute(const Value& input) {
  if (input.is_float()) return std::fabs(input.as_float());
  if (!input.is_number() || input.as_int() == INT64_MIN) fail("abs needs a number, not {}", type_name(input));
  return std::abs(input.as_int());
}

Value indent_filter(const Value& input, const Arguments& arguments, Session& session) {
  const Value* width = arguments.find(0, "width");
  std::string blanks;
  if (width != nullptr && width->is_text()) {
    blanks = width->as_text();
  } else {
    const std::int64_t count = std::max<std::int64_t>(0, int_or(arguments, 0, "width", 4));
    session.budget.charge(static_cast<std::uint64_t>(count));
    blanks.assign(static_cast<std::size_t>(count), ' ');
  }
  return indent(to_text(input, session.budget), blanks, bool_or(arguments, 1, "first", false),
                bool_or(arguments, 2, "blank", false), session.budget);
}

/// Jinja's filter (Python's method differs): words begin after white space, hyphens and opening brackets.
std::string title_words(std::string_view text) {
  std::string out;
  bool first = true;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    const std::string_view character = text.substr(i, c.length);
    out += first ? uppercase_unicode(character) : lowercase_unicode(character);
    first =
        is_unicode_space(c.code) || c.code == '-' || c.code == '(' || c.code == '{' || c.code == '[' || c.code == '<';
    i += c.length;
  }
  return out;
}

/// Filters that see their input as text, whatever it is; none where the name is another filter's.
std::optional<Value> apply_text_filter(std::string_view name, const Value& input, const Arguments& arguments,
                                       Session& session) {
  static constexpr std::array<std::string_view, 11> kNames = {
      "capitalize", "e", "escape", "lower", "replace", "safe", "string", "title", "trim", "upper", "indent"};
  if (std::find(kNames.begin(), kNames.end(), name) == kNames.end()) return std::nullopt;
  if (name == "indent") return indent_filter(input, arguments, session);
  std::string text = to_text(input, session.budget);
  if (name == "capitalize") return capitalize_unicode(text);
  if (name == "e" || name == "escape") return escape_html(text, session.budget);
  if (name == "lower") return lowercase_unicode(text);
  if (name == "title") return title_words(text);
  if (name == "upper") return uppercase_unicode(text);
  if (name == "trim") return strip(text, true, true, text_or_null(arguments, 0, "chars"), session.budget);
  if (name == "replace") {
    return replace(text, to_text(arguments.need(0, "old", name), session.budget),
                   to_text(arguments.need(1, "new", name), session.budget), int_or(arguments, 2, "count", -1),
                   session.budget);
  }
  return text;
}

/// How far apart the two sides of a loop may be is up to the template; a text or a list of this many elements is not.
std::vector<Value> make_range(const Arguments& arguments, Session& session) {
  arguments.at_most(3, "range");
  std::int64_t start = 0;
  std::int64_t stop = need_int(arguments.need(0, "", "range"), "range");
  if (arguments.positional.size() > 1) {
    start = stop;
    stop = need_int(arguments.positional[1], "range");
  }
  const std::int64_t step = arguments.positional.size() > 2 ? need_int(arguments.positional[2], "range") : 1;
  if (step == 0) fail("range needs a step that is not 0");
  std::vector<Value> out;
  for (std::int64_t i = start; step > 0 ? i < stop : i > stop;) {
    // An element takes 32 bytes.
    session.budget.charge(32);
    out.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return out;
}

std::string format_time(const std::string& format, std::time_t now) {
  std::tm local{};
  localtime_r(&now, &local);
  // Dates and times are short; a format that needs more is none.
  std::array<char, 512> out{};
  const std::size_t size = std::strftime(out.data(), out.size(), format.c_str(), &local);
  if (size == 0 && !format.empty()) fail("strftime_now gives nothing for \"{}\"", format);
  return to_valid_utf8({out.data(), size});
}

}  // namespace

const Value* Arguments::find(std::size_t position, std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  const auto found = std::find_if(named.begin(), named.end(), [&](const auto& item) { return item.first == name; });
  return found == named.end() ? nullptr : &found->second;
}

const Value& Arguments::need(std::size_t position, std::string_view name, std::string_view what) const {
  const Value* value = find(position, name);
  if (value == nullptr) fail("{} needs {} argument{}", what, position < 9 ? position + 1 : 1, position == 0 ? "" : "s");
  return *value;
}

void Arguments::at_most(std::size_t count, std::string_view what) const {
  if (positional.size() > count) fail("{} takes at most {} arguments, not {}", what, count, positional.size());
}

Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments, Session& session) {
  arguments.at_most(8, name);
  session.budget.charge(4);
  if (auto text = apply_text_filter(name, input, arguments, session)) return std::move(*text);
  if (name == "abs") return absolute(input);
  if (name == "count" || name == "length") return size_of(input);
  if (name == "d" || name == "default") return default_value(input, arguments);
  if (name == "dictsort") return dict_sort(input, arguments, session);
  if (name == "first" || name == "last") return end_item(name, input, session);
  if (name == "float") return to_float(input, arguments);
  if (name == "int") return to_int(input, arguments);
  if (name == "items") {
    if (input.is_undefined()) return Value::list({});
    return Value::list(dict_pairs(need_dict(input, name), session));
  }
  if (name == "join") return join(input, arguments, session);
  if (name == "list") return Value::list(to_items(input, session.budget));
  if (name == "map") return map(input, arguments, session);
  if (name == "max" || name == "min") return extreme(name, input, arguments, session);
  if (name == "reverse") return reverse(input, session);
  if (name == "round") return round_number(input, arguments);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    return select(name, input, arguments, session);
  }
  if (name == "sort") {
    return Value::list(sorted(input, text_or_null(arguments, 2, "attribute"),
                              bool_or(arguments, 1, "case_sensitive", false), bool_or(arguments, 0, "reverse", false),
                              session));
  }
  if (name == "sum") return sum(input, arguments, session);
  if (name == "tojson") return to_json(input, int_or(arguments, 1, "indent", -1), session.budget);
  if (name == "unique") return unique(input, arguments, session);
  fail("the filter \"{}\" is not known here", name);
}

bool apply_test(std::string_view name, const Value& input, const Arguments& arguments, Session& session) {
  session.budget.charge(2);
  const auto other = [&]() -> const Value& { return arguments.need(0, "", name); };
  if (name == "defined") return !input.is_undefined();
  if (name == "undefined") return input.is_undefined();
  if (name == "none") return input.is_none();
  if (name == "string") return input.is_text();
  if (name == "mapping") return input.is_dict();
  if (name == "iterable" || name == "sequence") {
    return input.is_list() || input.is_dict() || input.is_text() || input.is_undefined();
  }
  if (name == "number") return input.is_number();
  if (name == "integer") return input.is_int();
  if (name == "float") return input.is_float();
  if (name == "boolean") return input.is_bool();
  if (name == "true") return input.is_bool() && input.as_bool();
  if (name == "false") return input.is_bool() && !input.as_bool();
  if (name == "callable") return input.as_function() != nullptr || input.as_macro() != nullptr;
  if (name == "odd") return need_int(input, name) % 2 != 0;
  if (name == "even") return need_int(input, name) % 2 == 0;
  if (name == "divisibleby") {
    const std::int64_t divisor = need_int(other(), name);
    if (divisor == 0) fail("divisibleby needs a divisor that is not 0");
    return divisor == -1 || need_int(input, name) % divisor == 0;
  }
  if (name == "eq" || name == "equalto" || name == "==") return equal(input, other(), session.budget);
  if (name == "sameas") return type_name(input) == type_name(other()) && equal(input, other(), session.budget);
  if (name == "ne" || name == "!=") return !equal(input, other(), session.budget);
  if (name == "lt" || name == "lessthan" || name == "<") return compare(input, other(), session.budget) < 0;
  if (name == "le" || name == "<=") return compare(input, other(), session.budget) <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return compare(input, other(), session.budget) > 0;
  if (name == "ge" || name == ">=") return compare(input, other(), session.budget) >= 0;
  if (name == "in") return contains(other(), input, session.budget);
  if (name == "lower" || name == "upper") {
    const std::string text = to_text(input, session.budget);
    const std::string lower = lowercase_unicode(text);
    const std::string upper = uppercase_unicode(text);
    return lower != upper && text == (name == "lower" ? lower : upper);
  }
  fail("the test \"{}\" is not known here", name);
}

namespace {

/// Whether all characters, of which there is one, are of a kind.
bool all_characters(std::string_view text, bool (*is_kind)(char32_t)) {
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    if (!is_kind(c.code)) return false;
    i += c.length;
  }
  return !text.empty();
}

Value call_text_method(const std::string& text, std::string_view name, const Arguments& arguments, Session& session) {
  Budget& budget = session.budget;
  budget.charge(text.size());
  arguments.at_most(3, name);
  if (name == "strip") return strip(text, true, true, text_or_null(arguments, 0, "chars"), budget);
  if (name == "lstrip") return strip(text, true, false, text_or_null(arguments, 0, "chars"), budget);
  if (name == "rstrip") return strip(text, false, true, text_or_null(arguments, 0, "chars"), budget);
  if (name == "split" || name == "rsplit") {
    return Value::list(
        split(text, text_or_null(arguments, 0, "sep"), int_or(arguments, 1, "maxsplit", -1), name == "rsplit", budget));
  }
  if (name == "splitlines") return Value::list(split_lines(text, budget));
  if (name == "startswith" || name == "endswith") {
    const Value& given = arguments.need(0, "", name);
    const auto fits = [&](const Value& part) {
      const std::string& end = need_text(part, name);
      return name == "startswith" ? text.starts_with(end) : text.ends_with(end);
    };
    return given.is_list() ? std::any_of(given.as_list().begin(), given.as_list().end(), fits) : fits(given);
  }
  if (name == "upper") return uppercase_unicode(text);
  if (name == "lower") return lowercase_unicode(text);
  if (name == "title") return titlecase_unicode(text);
  if (name == "capitalize") return capitalize_unicode(text);
  if (name == "replace") {
    return replace(text, need_text(arguments.need(0, "", name), name), need_text(arguments.need(1, "", name), name),
                   int_or(arguments, 2, "count", -1), budget);
  }
  if (name == "find") return find_text(text, need_text(arguments.need(0, "", name), name), budget);
  if (name == "count") return count_text(text, need_text(arguments.need(0, "", name), name), budget);
  if (name == "join") return join(arguments.need(0, "", name), Arguments{{text}, {}}, session);
  if (name == "isdigit") return all_characters(text, is_unicode_number);
  if (name == "isspace") return all_characters(text, is_unicode_space);
  if (name == "isalpha") {
    return all_characters(text, [](char32_t code) {
      return is_unicode_word(code) && !is_unicode_number(code) && !is_unicode_mark(code) && code != '_';
    });
  }
  fail("a text has no method \"{}\" here", name);
}

Value call_dict_method(const Value& dict, std::string_view name, const Arguments& arguments, Session& session) {
  const auto& items = dict.as_dict();
  if (name == "items") return Value::list(dict_pairs(items, session));
  if (name == "keys") return Value::list(to_items(dict, session.budget));
  if (name == "values") {
    std::vector<Value> out;
    session.budget.charge(items.size());
    out.reserve(items.size());
    for (const auto& item : items) out.push_back(item.second);
    return Value::list(std::move(out));
  }
  if (name == "get") {
    const Value& key = arguments.need(0, "key", name);
    const Value* found = key.is_text() ? find_item(items, key.as_text(), session.budget) : nullptr;
    if (found != nullptr) return *found;
    const Value* fallback = arguments.find(1, "default");
    return fallback == nullptr ? Value(None{}) : *fallback;
  }
  fail("a dict has no method \"{}\" here", name);
}

Value call_list_method(const Value& list, std::string_view name, const Arguments& arguments, Session& session) {
  const auto& items = list.as_list();
  const auto is_it = [&](const Value& item) { return equal(item, arguments.need(0, "", name), session.budget); };
  if (name == "count") return std::int64_t{std::count_if(items.begin(), items.end(), is_it)};
  if (name == "index") {
    const auto found = std::find_if(items.begin(), items.end(), is_it);
    if (found == items.end()) fail("index: the list has no such element");
    return std::int64_t{found - items.begin()};
  }
  fail("a list has no method \"{}\" here (lists cannot be changed; add two with +)", name);
}

}  // namespace

Value call_method(const Value& object, std::string_view name, const Arguments& arguments, Session& session) {
  session.budget.charge(2);
  if (object.is_text()) return call_text_method(object.as_text(), name, arguments, session);
  if (object.is_dict()) return call_dict_method(object, name, arguments, session);
  if (object.is_list()) return call_list_method(object, name, arguments, session);
  if (const Loop* loop = object.as_loop(); loop != nullptr && name == "cycle") {
    if (arguments.positional.empty()) fail("loop.cycle needs an argument");
    return arguments.positional[static_cast<std::size_t>(loop->index0) % arguments.positional.size()];
  }
  if (object.is_undefined()) fail("\"{}\" is undefined, so it has no method \"{}\"", *object.as_undefined().name, name);
  fail("a value of type {} has no method \"{}\" here", type_name(object), name);
}

Value call_function(Function function, const Arguments& arguments, Session& session) {
  session.budget.charge(2);
  switch (function) {
    case Function::range:
      return Value::list(make_range(arguments, session));
    case Function::namespace_: {
      // Owned to the end of the rendering, so it is paid for.
      session.budget.charge(64);
      Namespace& made = session.namespaces.emplace_back();
      if (!arguments.positional.empty()) made.items = need_dict(arguments.positional[0], "namespace");
      made.items.insert(made.items.end(), arguments.named.begin(), arguments.named.end());
      return &made;
    }
    case Function::dict: {
      std::vector<std::pair<std::string, Value>> items;
      if (!arguments.positional.empty()) items = need_dict(arguments.positional[0], "dict");
      items.insert(items.end(), arguments.named.begin(), arguments.named.end());
      return Value::dict(std::move(items));
    }
    case Function::raise_exception:
      fail("the template refuses this conversation: {}",
           to_text(arguments.need(0, "message", "raise_exception"), session.budget));
    case Function::strftime_now:
      return format_time(need_text(arguments.need(0, "format", "strftime_now"), "strftime_now"), session.now);
  }
  fail("an unknown function");
}

namespace {

Value loop_attribute(const Loop& loop, std::string_view name) {
  const auto& items = loop.items.as_list();
  const auto size = static_cast<std::int64_t>(items.size());
  const auto at = [&](std::int64_t index) {
    return index < 0 || index >= size ? Value::undefined("loop." + std::string(name))
                                      : items[static_cast<std::size_t>(index)];
  };
  if (name == "index") return loop.index0 + 1;
  if (name == "index0") return loop.index0;
  if (name == "revindex") return size - loop.index0;
  if (name == "revindex0") return size - loop.index0 - 1;
  if (name == "first") return loop.index0 == 0;
  if (name == "last") return loop.index0 == size - 1;
  if (name == "length") return size;
  // Deeper only in recursive loops, which are not here.
  if (name == "depth") return std::int64_t{1};
  if (name == "depth0") return std::int64_t{0};
  if (name == "previtem") return at(loop.index0 - 1);
  if (name == "nextitem") return at(loop.index0 + 1);
  return Value::undefined("loop." + std::string(name));
}

}  // namespace

Value get_attribute(const Value& object, std::string_view name, Session& session) {
  session.budget.charge(1);
  if (object.is_undefined()) fail("\"{}\" is undefined, so it has no \"{}\"", *object.as_undefined().name, name);
  const Value* found = nullptr;
  if (object.is_dict()) found = find_item(object.as_dict(), name, session.budget);
  if (const Namespace* space = object.as_namespace()) found = find_item(space->items, name, session.budget);
  if (const Loop* loop = object.as_loop()) return loop_attribute(*loop, name);
  return found == nullptr ? Value::undefined(std::string(name)) : *found;
}

Value get_item(const Value& object, const Value& key, Session& session) {
  session.budget.charge(1);
  if (key.is_text()) return get_attribute(object, key.as_text(), session);
  if (object.is_undefined()) fail("\"{}\" is undefined, so it has no elements", *object.as_undefined().name);
  if ((object.is_list() || object.is_text()) && (key.is_int() || key.is_bool())) {
    const std::int64_t size = size_of(object);
    const std::int64_t index = key.as_int() < 0 ? key.as_int() + size : key.as_int();
    if (index < 0 || index >= size) return Value::undefined(fmt::format("element {}", key.as_int()));
    if (object.is_list()) return object.as_list()[static_cast<std::size_t>(index)];
    session.budget.charge(object.as_text().size());
    std::size_t at = 0;
    for (std::int64_t i = 0; i < index; ++i) at += utf8_at(object.as_text(), at).length;
    return object.as_text().substr(at, utf8_at(object.as_text(), at).length);
  }
  return Value::undefined(fmt::format("an element of a {}", type_name(object)));
}

}  // namespace nibble::chat
