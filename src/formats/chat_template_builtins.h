// What chat templates call: Jinja's filters and tests, Python's methods of texts and dicts, and the global functions
// range, namespace, dict, raise_exception and strftime_now (the last two are transformers').
//
// Filters: abs capitalize count d default dictsort e escape first float indent int items join last length list lower
// map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim unique
// upper. Tests: boolean callable defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable
// le lessthan lower lt mapping ne none number odd sameas sequence string true undefined upper, and the comparison
// signs. Methods: of texts capitalize count endswith find isalpha isdigit isspace join lower lstrip replace rsplit
// rstrip split splitlines startswith strip title upper; of dicts get items keys values; of lists count index.
#pragma once

#include "formats/chat_template_value.h"

#include <ctime>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::chat {

/// The arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The argument at that position or of that name; null where it was not given.
  const Value* find(std::size_t position, std::string_view name) const;
  /// The same; throws Error, naming `what` was called, where it was not given.
  const Value& need(std::size_t position, std::string_view name, std::string_view what) const;
  /// Throws Error for more positional arguments than that.
  void at_most(std::size_t count, std::string_view what) const;
};

/// What one rendering shares among its calls.
struct Session {
  Budget budget;
  std::time_t now = 0;
  std::deque<Namespace> namespaces;  // owned here: values only point, so that no cycle keeps them alive
};

/// Each throws Error for a name that is not known and for arguments of the wrong types.
Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments, Session& session);
bool apply_test(std::string_view name, const Value& input, const Arguments& arguments, Session& session);
Value call_method(const Value& object, std::string_view name, const Arguments& arguments, Session& session);
Value call_function(Function function, const Arguments& arguments, Session& session);

/// object.name as templates read it: an element of a dict or namespace, an attribute of `loop`; undefined where it is
/// not there. Throws Error where the object itself is undefined.
Value get_attribute(const Value& object, std::string_view name, Session& session);
/// object[key]: the same for texts as keys; elements of lists and characters of texts by number.
Value get_item(const Value& object, const Value& key, Session& session);

}  // namespace nibble::chat
