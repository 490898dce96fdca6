// Results as rows of typed cells, and the texts that they become: markdown, CSV, JSON, JSON lines.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace nibble {

/// An empty cell prints as "None" where people and CSV readers see it (as optimum's benchmark does) and is null in
/// JSON.
using Cell = std::variant<std::monostate, bool, std::int64_t, double, std::string>;

struct Column {
  std::string key;      // in JSON: "per_token_latency_ms"
  std::string heading;  // in tables and CSV: "Per-token latency (ms)"
  int decimals = 2;     // of a double in tables and CSV; JSON keeps all digits
};

struct Table {
  std::string caption;  // a paragraph above a markdown table; empty: none
  std::vector<Column> columns;
  std::vector<std::vector<Cell>> rows;  // each as long as columns
};

/// A column of a table for people, by its key.
struct ShownColumn {
  std::string_view key;
  bool always;  // where it holds anything; the others only where they tell rows apart
};
/// Those columns of `all` that are worth showing, in the order of `shown`; keys that `all` does not have are left out.
Table choose_columns(const Table& all, std::span<const ShownColumn> shown);

/// "None", "True", "False", "12", "3.14", text. A double that is not finite is "None".
std::string text_of(const Cell& cell, int decimals = 2);

/// The caption, a header and the rows, cells padded to equal width; `|` in text is escaped, line ends become spaces.
std::string to_markdown(const Table& table);

/// Headings joined by ", ", as optimum's benchmark writes them; no line end.
std::string csv_header(const std::vector<Column>& columns);
/// Values joined by ","; a text with a comma, a quote or a line end is quoted as RFC 4180 says. No line end.
std::string csv_row(const std::vector<Column>& columns, const std::vector<Cell>& row);
/// Header and rows, each line ended.
std::string to_csv(const Table& table);

/// One object {key: value} on one line, in the columns' order; no line end.
std::string json_row(const std::vector<Column>& columns, const std::vector<Cell>& row);
/// An array of such objects, one a line.
std::string to_json(const Table& table);
/// Such objects, each on its line.
std::string to_jsonl(const Table& table);

enum class TableFormat { markdown, csv, json, jsonl };
/// UsageError that lists the formats for any other name.
TableFormat table_format_from_name(std::string_view name);
std::string render(const Table& table, TableFormat format);

}  // namespace nibble
