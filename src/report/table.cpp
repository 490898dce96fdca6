#include "report/table.h"

#include "core/error.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

template <typename... F>
struct Overload : F... {
  using F::operator()...;
};

/// Text for one cell of a markdown table.
std::string markdown_text(const Cell& cell, int decimals) {
  std::string out;
  for (const char c : text_of(cell, decimals)) {
    if (c == '|') out += '\\';
    out += c == '\n' || c == '\r' ? ' ' : c;
  }
  return out;
}

bool is_number(const Cell& cell) {
  return std::holds_alternative<std::int64_t>(cell) || std::holds_alternative<double>(cell);
}

std::string csv_text(const Cell& cell, int decimals) {
  std::string text = text_of(cell, decimals);
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

bool varies(const Table& table, std::size_t column) {
  const Cell* first = nullptr;
  for (const auto& row : table.rows) {
    if (std::holds_alternative<std::monostate>(row[column])) continue;
    if (first != nullptr && *first != row[column]) return true;
    first = &row[column];
  }
  return false;
}

bool holds_something(const Table& table, std::size_t column) {
  return std::any_of(table.rows.begin(), table.rows.end(),
                     [&](const auto& row) { return !std::holds_alternative<std::monostate>(row[column]); });
}

}  // namespace

Table choose_columns(const Table& all, std::span<const ShownColumn> shown) {
  Table out;
  out.caption = all.caption;
  out.rows.resize(all.rows.size());
  for (const ShownColumn& wanted : shown) {
    const auto found =
        std::find_if(all.columns.begin(), all.columns.end(), [&](const Column& c) { return c.key == wanted.key; });
    if (found == all.columns.end()) continue;
    const auto c = static_cast<std::size_t>(found - all.columns.begin());
    if (wanted.always ? !holds_something(all, c) : !varies(all, c)) continue;
    out.columns.push_back(all.columns[c]);
    for (std::size_t r = 0; r < all.rows.size(); ++r) out.rows[r].push_back(all.rows[r][c]);
  }
  return out;
}

std::string text_of(const Cell& cell, int decimals) {
  return std::visit(Overload{[](std::monostate) { return std::string("None"); },
                             [](bool value) { return std::string(value ? "True" : "False"); },
                             [](std::int64_t value) { return std::to_string(value); },
                             [decimals](double value) {
                               return std::isfinite(value) ? fmt::format("{:.{}f}", value, decimals)
                                                           : std::string("None");
                             },
                             [](const std::string& value) { return value; }},
                    cell);
}

std::string to_markdown(const Table& table) {
  const std::size_t columns = table.columns.size();
  std::vector<std::vector<std::string>> texts;
  std::vector<std::size_t> width(columns);
  std::vector<bool> right(columns, !table.rows.empty());
  for (std::size_t c = 0; c < columns; ++c) width[c] = std::max<std::size_t>(3, table.columns[c].heading.size());
  for (const auto& row : table.rows) {
    auto& line = texts.emplace_back();
    for (std::size_t c = 0; c < columns; ++c) {
      line.push_back(markdown_text(row[c], table.columns[c].decimals));
      width[c] = std::max(width[c], line.back().size());
      // Numbers stand to the right; a column that also has text or holes does too, if it has a number at all.
      if (!is_number(row[c]) && !std::holds_alternative<std::monostate>(row[c])) right[c] = false;
    }
  }
  std::string out;
  if (!table.caption.empty()) out += table.caption + "\n\n";
  for (std::size_t c = 0; c < columns; ++c) out += fmt::format("| {:<{}} ", table.columns[c].heading, width[c]);
  out += "|\n";
  for (std::size_t c = 0; c < columns; ++c) {
    out += fmt::format("|{:-<{}}{}", "", width[c] + 1, right[c] ? ':' : '-');
  }
  out += "|\n";
  for (const auto& line : texts) {
    for (std::size_t c = 0; c < columns; ++c) {
      out += right[c] ? fmt::format("| {:>{}} ", line[c], width[c]) : fmt::format("| {:<{}} ", line[c], width[c]);
    }
    out += "|\n";
  }
  return out;
}

std::string csv_header(const std::vector<Column>& columns) {
  std::string out;
  for (const Column& column : columns) out += (out.empty() ? "" : ", ") + column.heading;
  return out;
}

std::string csv_row(const std::vector<Column>& columns, const std::vector<Cell>& row) {
  std::string out;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    if (c > 0) out += ',';
    out += csv_text(row[c], columns[c].decimals);
  }
  return out;
}

std::string to_csv(const Table& table) {
  std::string out = csv_header(table.columns) + "\n";
  for (const auto& row : table.rows) out += csv_row(table.columns, row) + "\n";
  return out;
}

std::string json_row(const std::vector<Column>& columns, const std::vector<Cell>& row) {
  nlohmann::ordered_json object = nlohmann::ordered_json::object();
  for (std::size_t c = 0; c < columns.size(); ++c) {
    auto& value = object[columns[c].key];
    std::visit(Overload{[](std::monostate) {},
                        [&value](double number) {
                          if (std::isfinite(number)) value = number;
                        },
                        [&value](const auto& other) { value = other; }},
               row[c]);
  }
  // Names of files may be bytes that are no UTF-8: they are replaced, not refused.
  return object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string to_json(const Table& table) {
  std::string out = "[";
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    out += (r == 0 ? "\n  " : ",\n  ") + json_row(table.columns, table.rows[r]);
  }
  return out + "\n]\n";
}

std::string to_jsonl(const Table& table) {
  std::string out;
  for (const auto& row : table.rows) out += json_row(table.columns, row) + "\n";
  return out;
}

TableFormat table_format_from_name(std::string_view name) {
  if (name == "markdown" || name == "md") return TableFormat::markdown;
  if (name == "csv") return TableFormat::csv;
  if (name == "json") return TableFormat::json;
  if (name == "jsonl") return TableFormat::jsonl;
  fail_usage("--format {}: expected markdown, csv, json or jsonl", name);
}

std::string render(const Table& table, TableFormat format) {
  switch (format) {
    case TableFormat::csv:
      return to_csv(table);
    case TableFormat::json:
      return to_json(table);
    case TableFormat::jsonl:
      return to_jsonl(table);
    case TableFormat::markdown:
      break;
  }
  return to_markdown(table);
}

}  // namespace nibble
