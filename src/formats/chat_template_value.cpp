#include "formats/chat_template_value.h"

#include "core/error.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>

namespace nibble::chat {
namespace {

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // Both fmt and Python write the shortest digits that read back, but Python marks a whole number as a float.
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

/// Python quotes with ' unless the text holds ' and no ".
std::string text_repr(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + quote;
}

/// The text in JSON's quotes; only what JSON demands is escaped.
std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

void append_repr(const Value& value, std::string& out, Budget& budget) {
  budget.charge(1);
  if (value.is_list()) {
    out += value.is_tuple() ? '(' : '[';
    bool first = true;
    for (const Value& item : value.as_list()) {
      if (!first) out += ", ";
      first = false;
      append_repr(item, out, budget);
    }
    if (value.is_tuple() && value.as_list().size() == 1) out += ',';
    out += value.is_tuple() ? ')' : ']';
  } else if (value.is_dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.as_dict()) {
      if (!first) out += ", ";
      first = false;
      out += text_repr(key);
      out += ": ";
      append_repr(item, out, budget);
    }
    out += '}';
  } else if (value.is_text()) {
    budget.charge(value.as_text().size());
    out += text_repr(value.as_text());
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else {
    out += to_text(value, budget);
  }
}

void append_json(const Value& value, std::int64_t indent, std::int64_t level, std::string& out, Budget& budget) {
  budget.charge(1);
  const auto line = [&](std::int64_t depth) {
    if (indent < 0) return;
    budget.charge(static_cast<std::uint64_t>(indent * depth));
    out += '\n';
    out.append(static_cast<std::size_t>(indent * depth), ' ');
  };
  const char* separator = indent < 0 ? ", " : ",";
  if (value.is_none()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_int() || value.is_float()) {
    const bool odd = value.is_float() && !std::isfinite(value.as_float());
    out += !odd                           ? to_text(value, budget)
           : std::isnan(value.as_float()) ? "NaN"
           : value.as_float() > 0         ? "Infinity"
                                          : "-Infinity";
  } else if (value.is_text()) {
    budget.charge(value.as_text().size());
    out += json_text(value.as_text());
  } else if (value.is_list()) {
    out += '[';
    bool first = true;
    for (const Value& item : value.as_list()) {
      if (!first) out += separator;
      first = false;
      line(level + 1);
      append_json(item, indent, level + 1, out, budget);
    }
    if (!first) line(level);
    out += ']';
  } else if (value.is_dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.as_dict()) {
      if (!first) out += separator;
      first = false;
      line(level + 1);
      out += json_text(key);
      out += ": ";
      append_json(item, indent, level + 1, out, budget);
    }
    if (!first) line(level);
    out += '}';
  } else {
    fail("a value of type {} cannot be written as JSON", type_name(value));
  }
}

}  // namespace

void Budget::charge(std::uint64_t units) {
  if (units > left_) fail("the template does more work than any real one (an endless loop or a text that grows?)");
  left_ -= units;
}

Value Value::undefined(std::string name) {
  Value value;
  value.data_ = Undefined{std::make_shared<const std::string>(std::move(name))};
  return value;
}

namespace {

void check_depth(int depth) {
  if (depth > kMaxValueDepth) fail("a value is nested deeper than {} levels", kMaxValueDepth);
}

}  // namespace

Value Value::list(std::vector<Value> items) { return make_list(std::move(items), false); }

Value Value::tuple(std::vector<Value> items) { return make_list(std::move(items), true); }

bool Value::is_tuple() const { return is_list() && std::get<std::shared_ptr<const List>>(data_)->is_tuple; }

Value Value::make_list(std::vector<Value> items, bool is_tuple) {
  auto list = std::make_shared<List>();
  list->is_tuple = is_tuple;
  for (const Value& item : items) list->depth = std::max(list->depth, item.depth());
  check_depth(++list->depth);
  list->items = std::move(items);
  Value value;
  value.data_ = std::shared_ptr<const List>(std::move(list));
  return value;
}

Value Value::dict(std::vector<std::pair<std::string, Value>> items) {
  auto dict = std::make_shared<Dict>();
  for (const auto& [key, item] : items) dict->depth = std::max(dict->depth, item.depth());
  check_depth(++dict->depth);
  dict->items = std::move(items);
  Value value;
  value.data_ = std::shared_ptr<const Dict>(std::move(dict));
  return value;
}

const std::vector<Value>& Value::as_list() const { return std::get<std::shared_ptr<const List>>(data_)->items; }

const std::vector<std::pair<std::string, Value>>& Value::as_dict() const {
  return std::get<std::shared_ptr<const Dict>>(data_)->items;
}

int Value::depth() const {
  if (is_list()) return std::get<std::shared_ptr<const List>>(data_)->depth;
  if (is_dict()) return std::get<std::shared_ptr<const Dict>>(data_)->depth;
  return 0;
}

std::string_view type_name(const Value& value) {
  if (value.is_undefined()) return "undefined";
  if (value.is_none()) return "None";
  if (value.is_bool()) return "bool";
  if (value.is_int()) return "int";
  if (value.is_float()) return "float";
  if (value.is_text()) return "str";
  if (value.is_list()) return value.is_tuple() ? "tuple" : "list";
  if (value.is_dict()) return "dict";
  if (value.as_namespace() != nullptr) return "namespace";
  if (value.as_loop() != nullptr) return "loop";
  return "function";
}

bool is_true(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_float()) return value.as_float() != 0;
  if (value.is_number()) return value.as_int() != 0;
  if (value.is_text()) return !value.as_text().empty();
  if (value.is_list()) return !value.as_list().empty();
  if (value.is_dict()) return !value.as_dict().empty();
  return true;
}

const Value* find_item(const std::vector<std::pair<std::string, Value>>& items, std::string_view key, Budget& budget) {
  budget.charge(items.size() / 8);
  const auto found = std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == key; });
  return found == items.end() ? nullptr : &found->second;
}

std::string to_text(const Value& value, Budget& budget) {
  if (value.is_text()) {
    budget.charge(value.as_text().size());
    return value.as_text();
  }
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.as_bool() ? "True" : "False";
  if (value.is_int()) return std::to_string(value.as_int());
  if (value.is_float()) return float_text(value.as_float());
  if (value.is_list() || value.is_dict()) return to_repr(value, budget);
  return fmt::format("<{}>", type_name(value));
}

std::string to_repr(const Value& value, Budget& budget) {
  std::string out;
  append_repr(value, out, budget);
  return out;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.as_float() == b.as_float() : a.as_int() == b.as_int();
  }
  if (a.is_text() && b.is_text()) {
    if (a.as_text().size() != b.as_text().size()) return false;
    budget.charge(a.as_text().size() / 16);
    return a.as_text() == b.as_text();
  }
  if (a.is_list() && b.is_list()) {
    if (a.is_tuple() != b.is_tuple()) return false;
    return std::equal(a.as_list().begin(), a.as_list().end(), b.as_list().begin(), b.as_list().end(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.as_dict().size() != b.as_dict().size()) return false;
    return std::all_of(a.as_dict().begin(), a.as_dict().end(), [&](const auto& item) {
      const Value* other = find_item(b.as_dict(), item.first, budget);
      return other != nullptr && equal(item.second, *other, budget);
    });
  }
  if (a.is_undefined() && b.is_undefined()) return true;
  if (a.is_none() && b.is_none()) return true;
  if (a.as_namespace() != nullptr) return a.as_namespace() == b.as_namespace();
  if (a.as_loop() != nullptr) return a.as_loop() == b.as_loop();
  if (a.as_macro() != nullptr) return a.as_macro() == b.as_macro();
  return a.as_function() != nullptr && b.as_function() != nullptr && *a.as_function() == *b.as_function();
}

bool contains(const Value& haystack, const Value& needle, Budget& budget) {
  if (haystack.is_text()) {
    if (!needle.is_text()) fail("\"in\" of a text needs a text on its left, not {}", type_name(needle));
    budget.charge_search(haystack.as_text().size(), needle.as_text().size());
    return haystack.as_text().find(needle.as_text()) != std::string::npos;
  }
  if (haystack.is_dict()) {
    return needle.is_text() && find_item(haystack.as_dict(), needle.as_text(), budget) != nullptr;
  }
  if (haystack.is_list()) {
    return std::any_of(haystack.as_list().begin(), haystack.as_list().end(),
                       [&](const Value& item) { return equal(item, needle, budget); });
  }
  if (haystack.is_undefined()) return false;
  fail("\"in\" needs a list, dict or text on its right, not {}", type_name(haystack));
}

int compare(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_float() || b.is_float()) return a.as_float() < b.as_float() ? -1 : a.as_float() > b.as_float() ? 1 : 0;
    return a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int() ? 1 : 0;
  }
  if (a.is_text() && b.is_text()) {
    budget.charge(std::min(a.as_text().size(), b.as_text().size()) / 16);
    // The order of UTF-8 bytes is that of code points.
    return a.as_text().compare(b.as_text());
  }
  if (a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    const std::size_t count = std::min(a.as_list().size(), b.as_list().size());
    for (std::size_t i = 0; i < count; ++i) {
      if (const int order = compare(a.as_list()[i], b.as_list()[i], budget); order != 0) return order;
    }
    return a.as_list().size() < b.as_list().size() ? -1 : a.as_list().size() > b.as_list().size() ? 1 : 0;
  }
  fail("{} and {} cannot be compared", type_name(a), type_name(b));
}

std::vector<Value> to_items(const Value& value, Budget& budget) {
  std::vector<Value> out;
  if (value.is_list()) {
    budget.charge(value.as_list().size());
    return value.as_list();
  }
  if (value.is_dict()) {
    for (const auto& [key, item] : value.as_dict()) {
      budget.charge(key.size() + 1);
      out.emplace_back(key);
    }
    return out;
  }
  if (value.is_text()) {
    const std::string& text = value.as_text();
    // A character as a value takes about 64 bytes.
    budget.charge(text.size() * 64);
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t length = utf8_at(text, i).length;
      out.emplace_back(text.substr(i, length));
      i += length;
    }
    return out;
  }
  if (value.is_undefined()) return out;
  fail("a value of type {} has no elements to go through", type_name(value));
}

std::string to_json(const Value& value, std::int64_t indent, Budget& budget) {
  std::string out;
  append_json(value, indent, 0, out, budget);
  return out;
}

Value from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::null:
      return None{};
    case nlohmann::ordered_json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::ordered_json::value_t::number_integer:
      return json.get<std::int64_t>();
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) return json.get<double>();
      return json.get<std::int64_t>();
    case nlohmann::ordered_json::value_t::number_float:
      return json.get<double>();
    case nlohmann::ordered_json::value_t::string:
      return json.get<std::string>();
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item));
      return Value::list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<std::pair<std::string, Value>> items;
      for (const auto& [key, item] : json.items()) items.emplace_back(key, from_json(item));
      return Value::dict(std::move(items));
    }
    default:
      fail("a JSON value of type {} cannot be given to a template", json.type_name());
  }
}

}  // namespace nibble::chat
