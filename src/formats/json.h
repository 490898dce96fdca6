// JSON from files that nobody has checked: parsed with limits, read by getters whose errors name the file and the key.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Nesting that no file of a model reaches; deeper text is refused before it costs anything.
inline constexpr int kJsonDepthLimit = 64;
/// A tokenizer.json of a 256k vocabulary has about 35 MB.
inline constexpr std::size_t kJsonSizeLimit = std::size_t{256} << 20;

/// Parses UTF-8 JSON text. `where` names it in errors ("config.json"). Throws Error (with line and column) on text that
/// is not JSON, on an object that has one key twice, and where nesting is deeper than `depth_limit`.
nlohmann::json parse_json(std::string_view text, std::string_view where, int depth_limit = kJsonDepthLimit);

/// The same, with the keys of each object in the order of the text.
nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view where,
                                          int depth_limit = kJsonDepthLimit);

/// Reads and parses a file of at most kJsonSizeLimit bytes.
nlohmann::json read_json_file(const std::filesystem::path& path);

/// A short form of a value for an error message: at most 60 characters of its text.
std::string json_excerpt(const nlohmann::json& value);

/// One JSON object and where it stands. Getters throw Error such as
/// `config.json: hidden_size should be a positive integer, found "abc"`. A key whose value is null counts as absent.
/// The JSON value must outlive the view.
class JsonView {
 public:
  /// `where` is the file; `path` the key under which the object stands in it ("" for the whole file). Throws Error if
  /// `value` is not an object.
  JsonView(const nlohmann::json& value, std::string where, std::string path = "");

  const nlohmann::json& value() const { return *value_; }
  const std::string& where() const { return where_; }
  /// The file and the key, as errors name them: "tokenizer.json: model".
  std::string place() const { return path_.empty() ? where_ : where_ + ": " + path_; }

  bool has(std::string_view key) const;
  /// The object under `key`, or nothing where the key is absent.
  std::optional<JsonView> object(std::string_view key) const;
  /// The elements of a list of objects, at most `limit` of them; throws where the key is absent or something else.
  std::vector<JsonView> objects(std::string_view key, std::size_t limit) const;

  std::int64_t integer(std::string_view key) const;
  std::int64_t integer(std::string_view key, std::int64_t fallback) const;
  /// An integer of at least 1.
  std::int64_t positive(std::string_view key) const;
  std::int64_t positive(std::string_view key, std::int64_t fallback) const;
  /// A finite number.
  double number(std::string_view key) const;
  double number(std::string_view key, double fallback) const;
  bool boolean(std::string_view key) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key) const;
  std::string text(std::string_view key, std::string_view fallback) const;
  /// A list of integers; one integer counts as a list of one, an absent key as an empty list.
  std::vector<std::int64_t> integers(std::string_view key) const;
  /// A list of finite numbers; an absent key counts as an empty list.
  std::vector<double> numbers(std::string_view key) const;
  /// A list of strings; an absent key counts as an empty list.
  std::vector<std::string> texts(std::string_view key) const;

  /// Throws the Error of a value that is not what it should be: "FILE: PATH should be EXPECTED, found VALUE".
  [[noreturn]] void refuse(std::string_view key, std::string_view expected) const;

 private:
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& require(std::string_view key, std::string_view expected) const;

  const nlohmann::json* value_;
  std::string where_;
  std::string path_;
};

}  // namespace nibble
