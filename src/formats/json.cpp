#include "formats/json.h"

#include "core/error.h"
#include "core/file.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <unordered_set>

namespace nibble {
namespace {

/// Watches a parse and stops it at what the library itself would let pass.
class Watcher {
 public:
  Watcher(std::string_view where, int depth_limit) : where_(where), depth_limit_(depth_limit) {}

  template <typename Json>
  bool operator()(int depth, nlohmann::json::parse_event_t event, Json& value) {
    using Event = nlohmann::json::parse_event_t;
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (depth >= depth_limit_) fail("{}: JSON is nested deeper than {} levels", where_, depth_limit_);
        if (event == Event::object_start) keys_.emplace_back();
        break;
      case Event::key: {
        const std::string& key = value.template get_ref<const std::string&>();
        if (!keys_.back().insert(key).second)
          fail("{}: the key {} stands twice in one object", where_, Json(key).dump());
        break;
      }
      case Event::object_end:
        keys_.pop_back();
        break;
      default:
        break;
    }
    return true;
  }

 private:
  std::string_view where_;
  int depth_limit_;
  std::vector<std::unordered_set<std::string>> keys_;
};

template <typename Json>
Json parse(std::string_view text, std::string_view where, int depth_limit) {
  Watcher watcher(where, depth_limit);
  try {
    return Json::parse(text.begin(), text.end(),
                       [&watcher](int depth, typename Json::parse_event_t event, Json& value) {
                         return watcher(depth, static_cast<nlohmann::json::parse_event_t>(event), value);
                       });
  } catch (const nlohmann::json::exception& error) {
    // The library's sentence starts with its own name and number in brackets: "[json.exception.parse_error.101] ...".
    std::string_view reason = error.what();
    if (const auto bracket = reason.find("] "); bracket != std::string_view::npos) reason.remove_prefix(bracket + 2);
    fail("{} is not valid JSON: {}", where, reason);
  }
}

std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

std::optional<std::int64_t> as_integer(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const auto n = value.get<std::uint64_t>();
    if (n > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<std::int64_t>(n);
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  // Python writes integers such as a token count as 2048.0 now and then; 2^53 is where doubles stop being exact.
  if (value.is_number_float()) {
    const double n = value.get<double>();
    if (std::nearbyint(n) == n && std::fabs(n) <= 0x1p53) return static_cast<std::int64_t>(n);
  }
  return std::nullopt;
}

}  // namespace

nlohmann::json parse_json(std::string_view text, std::string_view where, int depth_limit) {
  return parse<nlohmann::json>(text, where, depth_limit);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view where, int depth_limit) {
  return parse<nlohmann::ordered_json>(text, where, depth_limit);
}

nlohmann::json read_json_file(const std::filesystem::path& path) {
  return parse_json(read_text_file(path, kJsonSizeLimit), path.string());
}

std::string json_excerpt(const nlohmann::json& value) {
  constexpr std::size_t kLimit = 60;
  // Big containers are named rather than written out and cut.
  if (value.is_array() && value.size() > 16) return fmt::format("a list of {} values", value.size());
  if (value.is_object() && value.size() > 4) return fmt::format("an object of {} keys", value.size());
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kLimit) text = text.substr(0, kLimit) + "...";
  return text;
}

JsonView::JsonView(const nlohmann::json& value, std::string where, std::string path)
    : value_(&value), where_(std::move(where)), path_(std::move(path)) {
  if (!value.is_object()) {
    fail("{}: {} should be an object, found {}", where_, path_.empty() ? "the file" : path_, json_excerpt(value));
  }
}

const nlohmann::json* JsonView::find(std::string_view key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json& JsonView::require(std::string_view key, std::string_view expected) const {
  const nlohmann::json* found = find(key);
  if (found == nullptr) fail("{}: {} is missing; it should be {}", where_, join_path(path_, key), expected);
  return *found;
}

void JsonView::refuse(std::string_view key, std::string_view expected) const {
  const nlohmann::json* found = find(key);
  fail("{}: {} should be {}, found {}", where_, join_path(path_, key), expected,
       found == nullptr ? "nothing" : json_excerpt(*found));
}

bool JsonView::has(std::string_view key) const { return find(key) != nullptr; }

std::optional<JsonView> JsonView::object(std::string_view key) const {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return std::nullopt;
  return JsonView(*found, where_, join_path(path_, key));
}

std::vector<JsonView> JsonView::objects(std::string_view key, std::size_t limit) const {
  const std::string expected = fmt::format("a list of at most {} objects", limit);
  const nlohmann::json& list = require(key, expected);
  if (!list.is_array() || list.size() > limit) refuse(key, expected);
  std::vector<JsonView> out;
  out.reserve(list.size());
  for (const nlohmann::json& item : list) {
    out.emplace_back(item, where_, fmt::format("{}[{}]", join_path(path_, key), out.size()));
  }
  return out;
}

std::int64_t JsonView::integer(std::string_view key) const {
  const auto n = as_integer(require(key, "an integer"));
  if (!n) refuse(key, "an integer");
  return *n;
}

std::int64_t JsonView::integer(std::string_view key, std::int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

std::int64_t JsonView::positive(std::string_view key) const {
  const auto n = as_integer(require(key, "a positive integer"));
  if (!n || *n <= 0) refuse(key, "a positive integer");
  return *n;
}

std::int64_t JsonView::positive(std::string_view key, std::int64_t fallback) const {
  return has(key) ? positive(key) : fallback;
}

double JsonView::number(std::string_view key) const {
  const nlohmann::json& value = require(key, "a number");
  if (!value.is_number()) refuse(key, "a number");
  const double n = value.get<double>();
  if (!std::isfinite(n)) refuse(key, "a finite number");
  return n;
}

double JsonView::number(std::string_view key, double fallback) const { return has(key) ? number(key) : fallback; }

bool JsonView::boolean(std::string_view key) const {
  const nlohmann::json& value = require(key, "true or false");
  if (!value.is_boolean()) refuse(key, "true or false");
  return value.get<bool>();
}

bool JsonView::boolean(std::string_view key, bool fallback) const { return has(key) ? boolean(key) : fallback; }

std::string JsonView::text(std::string_view key) const {
  const nlohmann::json& value = require(key, "a string");
  if (!value.is_string()) refuse(key, "a string");
  return value.get<std::string>();
}

std::string JsonView::text(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : std::string(fallback);
}

std::vector<std::int64_t> JsonView::integers(std::string_view key) const {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return {};
  if (!found->is_array()) {
    const auto one = as_integer(*found);
    if (!one) refuse(key, "an integer or a list of integers");
    return {*one};
  }
  std::vector<std::int64_t> out;
  for (const nlohmann::json& value : *found) {
    const auto n = as_integer(value);
    if (!n) refuse(key, "an integer or a list of integers");
    out.push_back(*n);
  }
  return out;
}

std::vector<double> JsonView::numbers(std::string_view key) const {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return {};
  if (!found->is_array()) refuse(key, "a list of numbers");
  std::vector<double> out;
  for (const nlohmann::json& value : *found) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) refuse(key, "a list of numbers");
    out.push_back(value.get<double>());
  }
  return out;
}

std::vector<std::string> JsonView::texts(std::string_view key) const {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return {};
  if (!found->is_array()) refuse(key, "a list of strings");
  std::vector<std::string> out;
  for (const nlohmann::json& value : *found) {
    if (!value.is_string()) refuse(key, "a list of strings");
    out.push_back(value.get<std::string>());
  }
  return out;
}

}  // namespace nibble
