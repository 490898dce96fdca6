#include "cli/encoder_rows.h"

#include "bench/statistics.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>
#include <utility>

namespace nibble {
namespace {

struct Field {
  Column column;
  Cell value;
};

Cell if_measured(bool measured, double value) { return measured ? Cell(value) : Cell(); }

double megabytes(std::size_t bytes) { return static_cast<double>(bytes) / 1e6; }

// optimum's columns, headings included.
std::vector<Field> classic_fields(const EncoderRow& row) {
  const Statistics eager = statistics_of(row.result.eager.seconds);
  const Statistics fast = statistics_of(row.result.fast.seconds);
  const bool both = eager.count > 0 && fast.count > 0;
  const double eager_memory = megabytes(row.result.eager.peak_memory);
  const double fast_memory = megabytes(row.result.fast.peak_memory);
  return {
      {{"num_batches", "num_batches"}, static_cast<std::int64_t>(fast.count)},
      {{"batch_size", "batch_size"}, row.cell.batch},
      {{"seq_len", "seq_len"}, row.cell.steps > 0 ? row.cell.steps : row.cell.length},
      {{"is_cuda", "is cuda"}, row.device != "cpu"},
      {{"is_half", "is half"}, row.dtype != "f32"},
      {{"use_mask", "use mask"}, row.mask},
      {{"pad_percentage", "pad percentage", 3}, row.cell.padding},
      {{"latency_eager_ms", "Latency eager (ms)", 3}, if_measured(eager.count > 0, eager.mean * 1e3)},
      {{"latency_bt_ms", "Latency BT (ms)", 3}, if_measured(fast.count > 0, fast.mean * 1e3)},
      {{"speedup_percent", "Speedup (%)", 3}, if_measured(both, (eager.mean / fast.mean - 1) * 100)},
      {{"mem_eager_mb", "Mem eager (MB)", 3}, if_measured(eager.count > 0, eager_memory)},
      {{"mem_bt_mb", "Mem BT (MB)", 3}, if_measured(fast.count > 0, fast_memory)},
      {{"mem_saved_percent", "Mem saved (%)", 3}, if_measured(both, (eager_memory / fast_memory - 1) * 100)},
  };
}

std::vector<Field> classic_image_fields(const EncoderRow& row) {
  const Statistics eager = statistics_of(row.result.eager.seconds);
  const Statistics fast = statistics_of(row.result.fast.seconds);
  const bool both = eager.count > 0 && fast.count > 0;
  return {{{"num_batches", "num_batches"}, static_cast<std::int64_t>(fast.count)},
          {{"batch_size", "batch_size"}, row.cell.batch},
          {{"is_cuda", "is_cuda"}, row.device != "cpu"},
          {{"is_half", "is_half"}, row.dtype != "f32"},
          {{"hf_time", "HF_time", 6}, if_measured(eager.count > 0, eager.mean)},
          {{"bt_time", "BT_time", 6}, if_measured(fast.count > 0, fast.mean)},
          {{"speedup", "Speedup", 4}, if_measured(both, eager.mean / fast.mean)}};
}

// What a GPU did while the row was timed; empty on the CPU.
std::vector<Field> gpu_fields(const GpuRun& run) {
  const bool seen = run.samples > 0;
  const auto whole = [&](int value) { return seen && value > 0 ? Cell(std::int64_t{value}) : Cell(); };
  const auto text = [&](const std::string& value) { return seen && !value.empty() ? Cell(value) : Cell(); };
  return {{{"sm_clock_min_mhz", "SM clock min (MHz)"}, whole(run.sm_clock_min)},
          {{"sm_clock_max_mhz", "SM clock max (MHz)"}, whole(run.sm_clock_max)},
          {{"power_w", "Power (W)", 1}, if_measured(seen && run.power > 0, run.power)},
          {{"temperature_c", "Temperature (C)"}, whole(run.temperature)},
          {{"throttle", "Held back by"}, text(throttle_text(run.throttle))},
          {{"ecc_errors", "Memory errors"}, seen ? Cell(run.ecc_errors) : Cell()},
          {{"notes", "Notes"}, text(remarks_on(run))}};
}

std::vector<Field> fields(const EncoderRow& row) {
  const Statistics eager = statistics_of(row.result.eager.seconds);
  const Statistics fast = statistics_of(row.result.fast.seconds);
  const bool timed = fast.count > 0;
  const double tokens = static_cast<double>(row.cell.tokens());
  std::vector<Field> out = classic_fields(row);
  out.insert(
      out.end(),
      {
          {{"status", "Status"}, row.result.error.empty() ? std::string("ok") : row.result.error},
          {{"model", "Model"}, row.model},
          {{"dtype", "dtype"}, row.dtype},
          {{"device", "Device"}, row.device},
          {{"device_name", "Device name"}, row.device_name},
          {{"threads", "Threads"}, static_cast<std::int64_t>(row.threads)},
          {{"isa", "ISA"}, row.isa},
          {{"lengths", "Lengths"}, row.distribution},
          {{"tokens", "Tokens"}, row.cell.tokens()},
          {{"padding_percent", "Padding (%)", 1}, row.cell.padded_share() * 100},
          {{"eager_median_ms", "Eager median (ms)", 3}, if_measured(eager.count > 0, eager.median * 1e3)},
          {{"eager_p95_ms", "Eager P95 (ms)", 3}, if_measured(eager.count > 0, eager.p95 * 1e3)},
          {{"eager_stddev_ms", "Eager stddev (ms)", 3}, if_measured(eager.count > 1, eager.stddev * 1e3)},
          {{"fast_median_ms", "Fast median (ms)", 3}, if_measured(timed, fast.median * 1e3)},
          {{"fast_p95_ms", "Fast P95 (ms)", 3}, if_measured(timed, fast.p95 * 1e3)},
          {{"fast_stddev_ms", "Fast stddev (ms)", 3}, if_measured(fast.count > 1, fast.stddev * 1e3)},
          {{"speedup", "Eager / fast"}, if_measured(timed && eager.count > 0, eager.median / fast.median)},
          {{"eager_tok_s", "Eager (tok/s)", 0}, if_measured(eager.count > 0, tokens / eager.median)},
          {{"fast_tok_s", "Fast (tok/s)", 0}, if_measured(timed, tokens / fast.median)},
          {{"fast_gflop_s", "Fast (GFLOP/s)", 1}, if_measured(timed, row.result.cost.flops / fast.median / 1e9)},
          {{"gemm_gflop_s", "GEMM rate (GFLOP/s)", 1}, if_measured(row.gemm_rate > 0, row.gemm_rate / 1e9)},
          {{"gemm_share_percent", "Share of GEMM rate (%)", 1},
           if_measured(timed && row.gemm_rate > 0, 100 * row.result.cost.flops / fast.median / row.gemm_rate)},
          {{"eager_planned_mb", "Eager planned (MB)", 1},
           if_measured(eager.count > 0, megabytes(row.result.eager.planned_memory))},
          {{"fast_planned_mb", "Fast planned (MB)", 1}, if_measured(timed, megabytes(row.result.fast.planned_memory))},
          {{"difference", "Difference of paths", 7}, if_measured(eager.count > 0, row.result.difference)},
          {{"copy_ms", "Copy of inputs (ms)", 3},
           if_measured(row.result.copy.has_value(), row.result.copy.value_or(0) * 1e3)},
          {{"started", "Started"}, row.started},
      });
  std::vector<Field> gpu = gpu_fields(row.result.gpu);
  std::move(gpu.begin(), gpu.end(), std::back_inserter(out));
  return out;
}

std::vector<Cell> cells_of(std::vector<Field> all) {
  std::vector<Cell> out;
  out.reserve(all.size());
  for (Field& field : all) out.push_back(std::move(field.value));
  return out;
}

std::vector<Column> columns_of(std::vector<Field> all) {
  std::vector<Column> out;
  out.reserve(all.size());
  for (Field& field : all) out.push_back(std::move(field.column));
  return out;
}

// In the order of the printed table.
constexpr std::array<ShownColumn, 16> kShown = {{{"batch_size", true},
                                                 {"seq_len", true},
                                                 {"padding_percent", true},
                                                 {"dtype", false},
                                                 {"tokens", true},
                                                 {"eager_median_ms", true},
                                                 {"fast_median_ms", true},
                                                 {"speedup", true},
                                                 {"fast_tok_s", true},
                                                 {"fast_gflop_s", true},
                                                 {"gemm_share_percent", true},
                                                 {"copy_ms", true},
                                                 {"mem_eager_mb", true},
                                                 {"mem_bt_mb", true},
                                                 {"status", false},
                                                 {"notes", false}}};

}  // namespace

std::vector<Column> classic_encoder_columns() { return columns_of(classic_fields(EncoderRow{})); }
std::vector<Cell> classic_encoder_row(const EncoderRow& row) { return cells_of(classic_fields(row)); }

std::vector<Column> classic_image_columns() { return columns_of(classic_image_fields(EncoderRow{})); }
std::vector<Cell> classic_image_row(const EncoderRow& row) { return cells_of(classic_image_fields(row)); }

std::string classic_encoder_csv_name(std::string_view model) {
  std::string name(model);
  std::replace(name.begin(), name.end(), '/', '-');
  return "log_" + name + ".csv";
}

std::vector<Column> encoder_columns() { return columns_of(fields(EncoderRow{})); }
std::vector<Cell> encoder_row(const EncoderRow& row) { return cells_of(fields(row)); }

Table encoder_table(const std::vector<EncoderRow>& rows, const std::string& caption) {
  Table all;
  all.caption = caption;
  all.columns = encoder_columns();
  for (const EncoderRow& row : rows) all.rows.push_back(encoder_row(row));
  return choose_columns(all, kShown);
}

}  // namespace nibble
