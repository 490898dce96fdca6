#include "report/table.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

Table sample() {
  Table table;
  table.columns = {
      {"gptq", "gptq", 2}, {"bits", "bits", 2}, {"kernel", "kernel", 2}, {"load_time_s", "Load time (s)", 1}};
  table.rows = {{false, Cell(), Cell(), 26.04}, {true, std::int64_t{4}, std::string("packed"), 3.0}};
  return table;
}

TEST(Table, MarkdownAlignsNumbersAndPrintsPythonsWords) {
  EXPECT_EQ(to_markdown(sample()),
            "| gptq  | bits | kernel | Load time (s) |\n"
            "|-------|-----:|--------|--------------:|\n"
            "| False | None | None   |          26.0 |\n"
            "| True  |    4 | packed |           3.0 |\n");
}

TEST(Table, ColumnsForPeopleHoldSomethingOrTellRowsApart) {
  Table all = sample();
  all.caption = "Said above.";
  all.columns.push_back({"note", "Note", 2});
  all.columns.push_back({"device", "Device", 2});
  for (auto& row : all.rows) row.insert(row.end(), {Cell(), std::string("cpu")});
  const std::vector<ShownColumn> shown = {{"load_time_s", true}, {"gptq", false}, {"device", false},
                                          {"note", true},        {"other", true}, {"bits", true}};
  const Table out = choose_columns(all, shown);
  std::string keys;
  for (const Column& column : out.columns) keys += column.key + " ";
  EXPECT_EQ(keys, "load_time_s gptq bits ");
  EXPECT_EQ(out.caption, "Said above.");
  EXPECT_EQ(out.rows[1], (std::vector<Cell>{3.0, true, std::int64_t{4}}));
  EXPECT_TRUE(choose_columns(Table{}, shown).columns.empty());
}

TEST(Table, MarkdownKeepsARowOnOneLine) {
  Table table;
  table.caption = "Said above.";
  table.columns = {{"status", "status", 2}};
  table.rows = {{std::string("a|b\nc")}};
  EXPECT_EQ(to_markdown(table), "Said above.\n\n| status |\n|--------|\n| a\\|b c |\n");
}

TEST(Table, CsvJoinsAsOptimumDoes) {
  EXPECT_EQ(to_csv(sample()),
            "gptq, bits, kernel, Load time (s)\n"
            "False,None,None,26.0\n"
            "True,4,packed,3.0\n");
}

TEST(Table, CsvQuotesWhatWouldBreakARow) {
  const std::vector<Column> columns = {{"a", "a", 2}, {"b", "b", 2}};
  EXPECT_EQ(csv_row(columns, {std::string("x, \"y\""), 1.005}), "\"x, \"\"y\"\"\",1.00");
}

TEST(Table, JsonKeepsTypesOrderAndDigits) {
  EXPECT_EQ(to_jsonl(sample()),
            "{\"gptq\":false,\"bits\":null,\"kernel\":null,\"load_time_s\":26.04}\n"
            "{\"gptq\":true,\"bits\":4,\"kernel\":\"packed\",\"load_time_s\":3.0}\n");
  EXPECT_EQ(to_json(sample()),
            "[\n  {\"gptq\":false,\"bits\":null,\"kernel\":null,\"load_time_s\":26.04},\n"
            "  {\"gptq\":true,\"bits\":4,\"kernel\":\"packed\",\"load_time_s\":3.0}\n]\n");
}

TEST(Table, WhatIsNotANumberIsAHole) {
  EXPECT_EQ(text_of(std::nan("")), "None");
  EXPECT_EQ(json_row({{"x", "x", 2}}, {INFINITY}), "{\"x\":null}");
}

TEST(Table, JsonSurvivesBytesThatAreNoText) {
  EXPECT_EQ(json_row({{"x", "x", 2}}, {std::string("a\xff\"\n")}), "{\"x\":\"a\xEF\xBF\xBD\\\"\\n\"}");
}

TEST(Table, FormatsByName) {
  EXPECT_EQ(table_format_from_name("md"), TableFormat::markdown);
  EXPECT_EQ(render(sample(), table_format_from_name("csv")), to_csv(sample()));
  EXPECT_EQ(render(sample(), table_format_from_name("jsonl")), to_jsonl(sample()));
  EXPECT_EQ(render(sample(), table_format_from_name("json")), to_json(sample()));
  test::expect_error("--format xml: expected markdown, csv, json or jsonl", [] { table_format_from_name("xml"); });
}

}  // namespace
}  // namespace nibble
