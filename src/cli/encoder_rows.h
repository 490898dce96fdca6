// The encoder benchmark's results as rows: optimum's columns exactly, and nibble's own.
#pragma once

#include "bench/encoder_bench.h"
#include "report/table.h"

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct EncoderRow {
  std::string model;  // as the user named it
  EncoderCell cell;
  EncoderCellResult result;
  std::string device;  // "cpu", "cuda:0"
  std::string device_name;
  std::string isa;
  int threads = 0;
  std::string dtype;
  bool mask = true;          // the model is told about padding
  std::string distribution;  // where the lengths come from: "normal", or a file
  double gemm_rate = 0;      // operations a second of `dense` in the row's type; 0: not measured
  std::string started;       // of the run
};

/// The CSV file of optimum's benchmark_bettertransformer.py.
std::vector<Column> classic_encoder_columns();
std::vector<Cell> classic_encoder_row(const EncoderRow& row);
/// "log_{model with / as -}.csv"
std::string classic_encoder_csv_name(std::string_view model);

/// The CSV file of optimum's benchmark_bettertransformer_vit.py. Times are seconds a batch; the speed-up is a ratio.
std::vector<Column> classic_image_columns();
std::vector<Cell> classic_image_row(const EncoderRow& row);

/// All that nibble knows of a row: optimum's columns first. docs/benchmark.md defines each.
std::vector<Column> encoder_columns();
std::vector<Cell> encoder_row(const EncoderRow& row);

/// What a person looks at first: without columns that hold nothing, or the same for every row.
Table encoder_table(const std::vector<EncoderRow>& rows, const std::string& caption);

}  // namespace nibble
