// Values of the chat template language: Python's None, bool, int, float, str, list and dict, and what templates add.
// Values do not change once made (transformers' sandbox forbids it as well), except for namespaces.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::chat {

class Value;
struct Macro;
struct Loop;

/// Bounds what one rendering may do. A unit is one step of evaluation or one byte of text made.
class Budget {
 public:
  explicit Budget(std::uint64_t units) : left_(units) {}
  /// Throws Error when the units are used up.
  void charge(std::uint64_t units);
  /// For a search of one text in another, whose worst case is the product of their lengths.
  void charge_search(std::size_t haystack, std::size_t needle) { charge(haystack + haystack / 64 * needle); }

 private:
  std::uint64_t left_;
};

/// A variable, attribute or element that is not there; `name` says which. It prints as nothing and counts as false.
struct Undefined {
  std::shared_ptr<const std::string> name;
};
struct None {
  friend bool operator==(None, None) = default;
};

/// A global function, or a method taken from a value.
enum class Function { range, namespace_, dict, raise_exception, strftime_now };

struct List;
struct Dict;
struct Namespace;

class Value {
 public:
  using Text = std::shared_ptr<const std::string>;

  Value() : data_(None{}) {}
  Value(None none) : data_(none) {}
  Value(bool value) : data_(value) {}
  Value(std::int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::make_shared<const std::string>(std::move(value))) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char* value) : Value(std::string(value)) {}
  Value(Namespace* value) : data_(value) {}
  Value(const Loop* value) : data_(value) {}
  Value(const Macro* value) : data_(value) {}
  Value(Function value) : data_(value) {}
  static Value undefined(std::string name);
  /// Throws Error for a nesting deeper than kMaxValueDepth.
  static Value list(std::vector<Value> items);
  /// A list that prints with parentheses and equals no list.
  static Value tuple(std::vector<Value> items);
  static Value dict(std::vector<std::pair<std::string, Value>> items);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<std::int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  /// As in Python, True and False are numbers.
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_text() const { return std::holds_alternative<Text>(data_); }
  /// Tuples too.
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(data_); }
  bool is_tuple() const;
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }

  bool as_bool() const { return std::get<bool>(data_); }
  /// Of a bool or an int.
  std::int64_t as_int() const { return is_bool() ? (as_bool() ? 1 : 0) : std::get<std::int64_t>(data_); }
  /// Of any number.
  double as_float() const { return is_float() ? std::get<double>(data_) : static_cast<double>(as_int()); }
  const std::string& as_text() const { return *std::get<Text>(data_); }
  const std::vector<Value>& as_list() const;
  const std::vector<std::pair<std::string, Value>>& as_dict() const;
  const Undefined& as_undefined() const { return std::get<Undefined>(data_); }
  /// Null where the value is something else.
  Namespace* as_namespace() const { return get_or_null<Namespace*>(); }
  const Loop* as_loop() const { return get_or_null<const Loop*>(); }
  const Macro* as_macro() const { return get_or_null<const Macro*>(); }
  const Function* as_function() const { return std::get_if<Function>(&data_); }

  /// Lists and dicts: one more than their deepest element; others: 0.
  int depth() const;

 private:
  static Value make_list(std::vector<Value> items, bool is_tuple);

  template <typename T>
  T get_or_null() const {
    const T* found = std::get_if<T>(&data_);
    return found == nullptr ? nullptr : *found;
  }

  std::variant<Undefined, None, bool, std::int64_t, double, Text, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, Namespace*, const Loop*, const Macro*, Function>
      data_;
};

/// Deeper lists of lists are refused: printing and freeing them recurses.
inline constexpr int kMaxValueDepth = 64;

struct List {
  std::vector<Value> items;
  int depth = 0;
  bool is_tuple = false;
};
/// In the order of insertion; looked up one by one, which the budget pays for.
struct Dict {
  std::vector<std::pair<std::string, Value>> items;
  int depth = 0;
};
/// What `namespace()` gives: attributes that `set` may change, also from within a loop.
struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};
/// The variable `loop` of a for loop.
struct Loop {
  Value items;  // a list
  std::int64_t index0 = 0;
};

/// Python's name of the type, for messages.
std::string_view type_name(const Value& value);
bool is_true(const Value& value);
/// The element of a dict or namespace; null where it is not there.
const Value* find_item(const std::vector<std::pair<std::string, Value>>& items, std::string_view key, Budget& budget);
/// Python's str() and repr().
std::string to_text(const Value& value, Budget& budget);
std::string to_repr(const Value& value, Budget& budget);
/// Python's ==, and `needle in haystack`.
bool equal(const Value& a, const Value& b, Budget& budget);
bool contains(const Value& haystack, const Value& needle, Budget& budget);
/// Below zero, zero, above zero; throws Error for types that have no order.
int compare(const Value& a, const Value& b, Budget& budget);
/// What a for loop goes through: the elements of a list, the keys of a dict, the characters of a text, nothing of an
/// undefined value. Throws Error for others.
std::vector<Value> to_items(const Value& value, Budget& budget);
/// Python's json.dumps with ensure_ascii off; an indent below 0 keeps it on one line.
std::string to_json(const Value& value, std::int64_t indent, Budget& budget);
Value from_json(const nlohmann::ordered_json& json);

}  // namespace nibble::chat
