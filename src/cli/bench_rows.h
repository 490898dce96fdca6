// The benchmark's results as rows: optimum's columns exactly, and nibble's own.
#pragma once

#include "bench/ceilings.h"
#include "bench/sweep.h"
#include "report/table.h"

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// A case, what came of it, and what only the run as a whole knows.
struct BenchRow {
  BenchSystem system;
  BenchCase bench_case;
  BenchResult result;
  // Bytes a second: of reading beyond the caches on the CPU, of copying on a GPU; 0: not measured.
  double memory_bandwidth = 0;
  std::size_t last_level_cache = 0;  // bytes; 0 on a GPU
  std::string perplexity_procedure;  // empty: no perplexity
  std::string started;               // of the run: "2026-01-31T12:00:00Z"
  GemmRates gemm;                    // of a GPU; zeros: not measured

  bool on_gpu() const { return bench_case.device != "cpu"; }
};

/// The CSV file of optimum's benchmark (version of August 2023).
std::vector<Column> classic_csv_columns();
std::vector<Cell> classic_csv_row(const BenchRow& row);

/// The tables of optimum's benchmark page: one a batch size, and under one heading each.
std::string classic_tables(const std::vector<BenchRow>& rows);

/// optimum's perplexity file: quantization, act_order, bits, group_size, kernel, perplexity.
std::vector<Column> classic_perplexity_columns();
std::vector<Cell> classic_perplexity_row(const BenchRow& row);

/// "log_{model with / as -}_{gptq|nogptq}.csv", or with "_perplexity" before the end.
std::string classic_csv_name(std::string_view model, bool gptq);
std::string classic_perplexity_name(std::string_view model, bool gptq);

/// All that nibble knows of a row: optimum's columns first. docs/benchmark.md defines each.
std::vector<Column> bench_columns();
std::vector<Cell> bench_row(const BenchRow& row);

/// What a person looks at first, of bench_columns(): without columns that hold nothing, or the same for every row.
Table bench_table(const std::vector<BenchRow>& rows, const std::string& caption);

}  // namespace nibble
