#include "cli/bench_rows.h"

#include "bench/statistics.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

namespace nibble {
namespace {

constexpr double kMs = 1e3;
constexpr double kMb = 1e-6;  // as optimum's benchmark counts: 10^6 bytes
constexpr double kGb = 1e-9;

Cell number_or_none(double value) { return value > 0 ? Cell(value) : Cell(); }
Cell megabytes(double bytes) { return number_or_none(bytes * kMb); }
Cell megabytes(std::size_t bytes) { return megabytes(static_cast<double>(bytes)); }
Cell whole_or_none(int value) { return value > 0 ? Cell(std::int64_t{value}) : Cell(); }
Cell text_or_none(const std::string& text) { return text.empty() ? Cell() : Cell(text); }
Cell optional_number(const std::optional<double>& value) { return value ? Cell(*value) : Cell(); }

/// What follows from the times of a row, all in seconds and 1/s.
struct Derived {
  Statistics token;    // seconds of a whole generation divided by its new tokens, as optimum defines the latency
  Statistics prefill;  // seconds until the first token: TTFT
  Statistics step;     // seconds of a decode step: TPOT
  double throughput = 0;
  double prompt_rate = 0;
  double decode_rate = 0;
  double step_bytes_rate = 0;
  double prefill_flops_rate = 0;

  explicit Derived(const BenchRow& row) {
    const BenchCase& c = row.bench_case;
    const BenchResult& r = row.result;
    std::vector<double> each;
    each.reserve(r.total_seconds.size());
    for (const double total : r.total_seconds) each.push_back(total / static_cast<double>(c.new_tokens));
    token = statistics_of(each);
    prefill = statistics_of(r.prefill_seconds);
    step = statistics_of(r.step_seconds);
    const double batch = static_cast<double>(c.batch_size);
    if (token.mean > 0) throughput = batch / token.mean;
    if (prefill.mean > 0) prompt_rate = batch * static_cast<double>(c.prompt_length) / prefill.mean;
    if (step.mean > 0) decode_rate = batch / step.mean;
    if (step.median > 0) step_bytes_rate = r.step_cost.bytes / step.median;
    if (prefill.median > 0) prefill_flops_rate = r.prefill_cost.flops / prefill.median;
  }
};

/// A cell about the quantisation: None in full precision.
template <typename T>
Cell quantised(const BenchRow& row, const T& value) {
  return row.result.quantisation.gptq ? Cell(value) : Cell();
}

/// None for full precision; for --kernel auto the kernel that most sites got ("packed x120, dense x1"). Kernels that
/// optimum's script has are spelled as it does.
Cell classic_kernel(const BenchRow& row) {
  if (!row.system.gptq) return {};
  const std::string& ran = row.result.kernels;
  std::string name = row.system.kernel == "auto" && !ran.empty() ? ran.substr(0, ran.find(' ')) : row.system.kernel;
  if (name == "cuda-old") return std::string("autogptq-cuda-old");
  if (name == "cuda") return std::string("autotogptq-cuda");
  return name;
}

/// What optimum's script measures: on a GPU its memory, on the CPU that of the process.
std::size_t peak_memory(const BenchRow& row) {
  return row.on_gpu() ? row.result.gpu.peak.bytes : row.result.memory.peak_resident;
}

std::vector<Cell> classic_table_row(const BenchRow& row) {
  const QuantisationFacts& quant = row.result.quantisation;
  const Derived d(row);
  return {row.system.gptq,
          quantised(row, quant.act_order),
          quantised(row, quant.bits),
          quantised(row, quant.group_size),
          classic_kernel(row),
          row.result.load.total,
          number_or_none(d.token.mean * kMs),
          number_or_none(d.throughput),
          megabytes(peak_memory(row))};
}

std::string classic_name(std::string_view model, bool gptq, std::string_view end) {
  std::string name(model);
  std::replace(name.begin(), name.end(), '/', '-');
  return fmt::format("log_{}_{}{}", name, gptq ? "gptq" : "nogptq", end);
}

struct Field {
  Column column;
  Cell cell;
};

Cell share(double rate, double limit) { return rate > 0 && limit > 0 ? Cell(100 * rate / limit) : Cell(); }

/// The limit that a decode step's bytes are held against: memory, or the cache where all that it reads fits into that.
std::string bound_of(const BenchRow& row) {
  if (row.result.step_seconds.empty()) return {};
  return row.result.step_cost.bytes < static_cast<double>(row.last_level_cache) ? "cache" : "memory";
}

/// What a GPU's row is held against, and what it took of the GPU; empty on the CPU.
struct GpuCells {
  Cell memory, source, context, residual;
  Cell step_floor, step_share, step_bound, prefill_floor, prefill_share, prefill_bound, gemm;
  Cell clock_min, clock_max, power, temperature, throttle, ecc, joules, energy_source;

  GpuCells(const BenchRow& row, const Derived& d) {
    if (!row.on_gpu() || !row.result.error.empty()) return;
    const BenchResult& r = row.result;
    const GpuFacts& gpu = r.gpu;
    memory = megabytes(gpu.peak.bytes);
    source = text_or_none(gpu.peak.source);
    context = megabytes(gpu.context);
    if (gpu.peak.bytes > 0 && gpu.context > 0) {
      residual = (static_cast<double>(gpu.peak.bytes) - static_cast<double>(r.planned_bytes + gpu.context)) * kMb;
    }
    const double rate = row.gemm.of(r.dtype);
    gemm = number_or_none(rate * kGb);
    const auto hold = [&](const Cost& cost, const Statistics& measured, Cell& floor, Cell& of_floor, Cell& bound) {
      const Floor least = floor_of(cost, row.memory_bandwidth, rate);
      if (measured.count == 0 || least.seconds <= 0) return;
      floor = least.seconds * kMs;
      of_floor = share(least.seconds, measured.median);
      bound = least.bound;
    };
    hold(r.step_cost, d.step, step_floor, step_share, step_bound);
    hold(r.prefill_cost, d.prefill, prefill_floor, prefill_share, prefill_bound);
    if (gpu.run.samples == 0) return;
    clock_min = whole_or_none(gpu.run.sm_clock_min);
    clock_max = whole_or_none(gpu.run.sm_clock_max);
    power = number_or_none(gpu.run.power);
    temperature = whole_or_none(gpu.run.temperature);
    throttle = text_or_none(throttle_text(gpu.run.throttle));
    ecc = gpu.run.ecc_errors;
    const BenchCase& c = row.bench_case;
    const double tokens = static_cast<double>(c.num_batches * c.batch_size * c.new_tokens);
    joules = number_or_none(gpu.run.joules / tokens);
    energy_source = text_or_none(gpu.run.energy_source);
  }
};

// One list makes both the columns and the cells, so that they cannot come apart.
std::vector<Field> fields(const BenchRow& row) {
  const BenchCase& c = row.bench_case;
  const BenchResult& r = row.result;
  const Derived d(row);
  const GpuCells gpu(row, d);
  const std::string bound = bound_of(row);
  const double limit = bound == "cache" ? r.own_bandwidth.bytes_per_second : row.memory_bandwidth;
  const auto ms = [](double seconds) { return number_or_none(seconds * kMs); };
  return {
      {{"gptq", "gptq"}, row.system.gptq},
      {{"act_order", "act_order"}, quantised(row, r.quantisation.act_order)},
      {{"bits", "bits"}, quantised(row, r.quantisation.bits)},
      {{"group_size", "group_size"}, quantised(row, r.quantisation.group_size)},
      {{"kernel", "kernel"}, row.system.kernel},
      {{"num_batches", "num_batches"}, c.num_batches},
      {{"batch_size", "batch_size"}, c.batch_size},
      {{"prompt_length", "prompt_length"}, c.prompt_length},
      {{"new_tokens", "new_tokens"}, c.new_tokens},
      {{"load_time_s", "Load time (s)"}, number_or_none(r.load.total)},
      {{"per_token_latency_ms", "Per-token latency (ms)"}, ms(d.token.mean)},
      {{"throughput_tok_s", "Throughput (tok/s)"}, number_or_none(d.throughput)},
      {{"peak_memory_mb", "Max memory (MB)"}, megabytes(peak_memory(row))},
      {{"status", "Status"}, r.error.empty() ? std::string("ok") : r.error},
      {{"notes", "Notes"}, text_or_none(r.gpu.remarks)},
      {{"model", "Model"}, row.system.model},
      {{"dtype", "dtype"}, text_or_none(r.dtype)},
      {{"kv_dtype", "KV dtype"}, text_or_none(r.kv_dtype)},
      {{"kernels", "Kernels that ran"}, text_or_none(r.kernels)},
      {{"layers", "Kernels of layers"}, text_or_none(r.layers)},
      {{"device", "Device"}, c.device},
      {{"device_name", "Device name"}, text_or_none(r.device)},
      {{"threads", "Threads"}, r.threads > 0 ? Cell(std::int64_t{r.threads}) : Cell()},
      {{"isa", "ISA"}, text_or_none(r.isa)},
      {{"latency_median_ms", "Median latency (ms)"}, ms(d.token.median)},
      {{"latency_stddev_ms", "Stddev latency (ms)", 3}, d.token.count > 1 ? Cell(d.token.stddev * kMs) : Cell()},
      {{"latency_p95_ms", "P95 latency (ms)"}, ms(d.token.p95)},
      {{"ttft_ms", "TTFT (ms)"}, ms(d.prefill.mean)},
      {{"ttft_p95_ms", "P95 TTFT (ms)"}, ms(d.prefill.p95)},
      {{"prompt_tok_s", "Prompt (tok/s)", 1}, number_or_none(d.prompt_rate)},
      {{"tpot_ms", "TPOT (ms)"}, ms(d.step.mean)},
      {{"tpot_median_ms", "Median TPOT (ms)"}, ms(d.step.median)},
      {{"tpot_p95_ms", "P95 TPOT (ms)"}, ms(d.step.p95)},
      {{"decode_tok_s", "Decode (tok/s)", 1}, number_or_none(d.decode_rate)},
      {{"step_mb", "Bytes a step (MB)", 1}, r.step_seconds.empty() ? Cell() : megabytes(r.step_cost.bytes)},
      {{"step_gb_s", "Read in decode (GB/s)"}, number_or_none(d.step_bytes_rate * kGb)},
      {{"bandwidth_share_percent", "Share of bandwidth (%)", 1}, share(d.step_bytes_rate, limit)},
      {{"bound", "Bandwidth of"}, text_or_none(bound)},
      {{"own_footprint_gb_s", "Bandwidth own footprint (GB/s)"},
       number_or_none(r.own_bandwidth.bytes_per_second * kGb)},
      {{"own_footprint_share_percent", "Share of it (%)", 1},
       share(d.step_bytes_rate, r.own_bandwidth.bytes_per_second)},
      {{"memory_gb_s", "Bandwidth memory (GB/s)"}, number_or_none(row.memory_bandwidth * kGb)},
      {{"memory_share_percent", "Share of memory's (%)", 1}, share(d.step_bytes_rate, row.memory_bandwidth)},
      {{"prefill_gflop_s", "Prefill (GFLOP/s)", 1}, number_or_none(d.prefill_flops_rate * kGb)},
      {{"step_floor_ms", "Floor of TPOT (ms)", 3}, gpu.step_floor},
      {{"step_floor_share_percent", "TPOT share of floor (%)", 1}, gpu.step_share},
      {{"step_floor_bound", "TPOT bound by"}, gpu.step_bound},
      {{"prefill_floor_ms", "Floor of TTFT (ms)", 3}, gpu.prefill_floor},
      {{"prefill_floor_share_percent", "TTFT share of floor (%)", 1}, gpu.prefill_share},
      {{"prefill_floor_bound", "TTFT bound by"}, gpu.prefill_bound},
      {{"gemm_gflop_s", "GEMM rate (GFLOP/s)", 0}, gpu.gemm},
      {{"gpu_memory_mb", "GPU memory (MB)"}, gpu.memory},
      {{"memory_source", "Memory source"}, gpu.source},
      {{"context_mb", "Context (MB)"}, gpu.context},
      {{"residual_mb", "Not planned (MB)"}, gpu.residual},
      {{"host_peak_mb", "Host peak (MB)"}, megabytes(r.memory.peak_resident)},
      {{"anonymous_mb", "Anonymous (MB)"}, megabytes(r.memory.anonymous)},
      {{"file_mb", "File-backed (MB)"}, megabytes(r.memory.file)},
      {{"planned_mb", "Planned (MB)"}, megabytes(r.planned_bytes)},
      {{"planned_weights_mb", "Planned weights (MB)"}, megabytes(r.planned_weights)},
      {{"planned_kv_cache_mb", "Planned KV cache (MB)"}, megabytes(r.planned_kv_cache)},
      {{"planned_activations_mb", "Planned activations (MB)"}, megabytes(r.planned_arena)},
      {{"planned_scratch_mb", "Planned scratch (MB)"}, megabytes(r.planned_workspace)},
      {{"load_read_s", "Load: read (s)", 3}, number_or_none(r.load.read)},
      {{"load_pack_s", "Load: pack (s)", 3}, number_or_none(r.load.pack)},
      {{"load_upload_s", "Load: upload (s)", 3}, number_or_none(r.load.upload)},
      {{"load_tune_s", "Load: tune (s)", 3}, number_or_none(r.load.tune)},
      {{"context_s", "Context (s)", 3}, number_or_none(r.gpu.open_seconds)},
      {{"cached_percent", "Files cached before (%)", 0}, r.cached_share ? Cell(100 * *r.cached_share) : Cell()},
      {{"sm_clock_min_mhz", "SM clock min (MHz)"}, gpu.clock_min},
      {{"sm_clock_max_mhz", "SM clock max (MHz)"}, gpu.clock_max},
      {{"power_w", "Power (W)", 1}, gpu.power},
      {{"temperature_c", "Temperature (C)"}, gpu.temperature},
      {{"throttle", "Held back by"}, gpu.throttle},
      {{"ecc_errors", "Memory errors"}, gpu.ecc},
      {{"joules_per_token", "Energy (J/token)", 3}, gpu.joules},
      {{"energy_source", "Energy source"}, gpu.energy_source},
      {{"verified_sites", "Verified shapes"}, r.verified_sites > 0 ? Cell(r.verified_sites) : Cell()},
      {{"verified_error", "Error of bound", 3}, r.verified_sites > 0 ? Cell(r.verified_error) : Cell()},
      {{"perplexity", "Perplexity", 3}, optional_number(r.perplexity)},
      {{"perplexity_running", "Perplexity mean of running", 3}, optional_number(r.perplexity_running)},
      {{"perplexity_error", "Perplexity +-", 3}, optional_number(r.perplexity_error)},
      {{"perplexity_procedure", "Procedure"}, text_or_none(row.perplexity_procedure)},
      {{"started", "Started"}, text_or_none(row.started)},
  };
}

std::vector<Cell> cells_of(std::vector<Field> all) {
  std::vector<Cell> out;
  out.reserve(all.size());
  for (Field& field : all) out.push_back(std::move(field.cell));
  return out;
}

constexpr std::array kShown = {
    ShownColumn{"model", false},
    ShownColumn{"kernel", true},
    ShownColumn{"bits", true},
    ShownColumn{"group_size", true},
    ShownColumn{"act_order", false},
    ShownColumn{"dtype", true},
    ShownColumn{"batch_size", true},
    ShownColumn{"prompt_length", false},
    ShownColumn{"new_tokens", false},
    ShownColumn{"load_time_s", true},
    ShownColumn{"load_read_s", true},
    ShownColumn{"load_upload_s", true},
    ShownColumn{"load_pack_s", true},
    ShownColumn{"load_tune_s", true},
    ShownColumn{"cached_percent", true},
    ShownColumn{"ttft_ms", true},
    ShownColumn{"tpot_ms", true},
    ShownColumn{"per_token_latency_ms", true},
    ShownColumn{"latency_stddev_ms", true},
    ShownColumn{"throughput_tok_s", true},
    ShownColumn{"step_gb_s", true},
    ShownColumn{"bandwidth_share_percent", true},
    ShownColumn{"bound", false},
    ShownColumn{"step_floor_share_percent", true},
    ShownColumn{"prefill_floor_share_percent", true},
    ShownColumn{"joules_per_token", true},
    ShownColumn{"gpu_memory_mb", true},
    ShownColumn{"anonymous_mb", true},
    ShownColumn{"file_mb", true},
    ShownColumn{"planned_mb", true},
    ShownColumn{"residual_mb", true},
    ShownColumn{"perplexity", true},
    ShownColumn{"layers", false},
    ShownColumn{"status", false},
    ShownColumn{"notes", true},
};

/// Two rows say something different; a row that says nothing does not count.
}  // namespace

std::vector<Column> classic_csv_columns() {
  return {{"gptq", "gptq"},
          {"act_order", "act_order"},
          {"bits", "bits"},
          {"group_size", "group_size"},
          {"kernel", "kernel"},
          {"num_batches", "num_batches"},
          {"batch_size", "batch_size"},
          {"prompt_length", "prompt_length"},
          {"new_tokens", "new_tokens"},
          {"load_time_s", "Load time (s)"},
          {"per_token_latency_ms", "Per-token latency (ms)"},
          {"throughput_tok_s", "Throughput (tok/s)"},
          {"peak_memory_mb", "Max memory (MB)"}};
}

std::vector<Cell> classic_csv_row(const BenchRow& row) {
  std::vector<Cell> out = cells_of(fields(row));
  out.resize(classic_csv_columns().size());
  // Full precision has no kernel there.
  out[4] = classic_kernel(row);
  return out;
}

std::string classic_tables(const std::vector<BenchRow>& rows) {
  std::vector<std::int64_t> sizes;
  for (const BenchRow& row : rows) {
    if (std::find(sizes.begin(), sizes.end(), row.bench_case.batch_size) == sizes.end())
      sizes.push_back(row.bench_case.batch_size);
  }
  std::string out;
  for (const std::int64_t size : sizes) {
    Table table;
    table.caption = fmt::format("### Batch size = {}", size);
    table.columns = {{"gptq", "gptq"},
                     {"act_order", "act_order"},
                     {"bits", "bits"},
                     {"group_size", "group_size"},
                     {"kernel", "kernel"},
                     {"load_time_s", "Load time (s)", 1},
                     {"per_token_latency_ms", "Per-token latency (ms)"},
                     {"throughput_tok_s", "Throughput (tok/s)"},
                     {"peak_memory_mb", "Peak memory (MB)"}};
    for (const BenchRow& row : rows) {
      if (row.bench_case.batch_size == size) table.rows.push_back(classic_table_row(row));
    }
    if (!out.empty()) out += "\n";
    out += to_markdown(table);
  }
  return out;
}

std::vector<Column> classic_perplexity_columns() {
  return {{"quantization", "quantization"}, {"act_order", "act_order"}, {"bits", "bits"},
          {"group_size", "group_size"},     {"kernel", "kernel"},       {"perplexity", "perplexity"}};
}

std::vector<Cell> classic_perplexity_row(const BenchRow& row) {
  const QuantisationFacts& quant = row.result.quantisation;
  return {row.system.gptq ? Cell(std::string("gptq")) : Cell(),
          quantised(row, quant.act_order),
          quantised(row, quant.bits),
          quantised(row, quant.group_size),
          classic_kernel(row),
          optional_number(row.result.perplexity_running)};
}

std::string classic_csv_name(std::string_view model, bool gptq) { return classic_name(model, gptq, ".csv"); }
std::string classic_perplexity_name(std::string_view model, bool gptq) {
  return classic_name(model, gptq, "_perplexity.csv");
}

std::vector<Column> bench_columns() {
  std::vector<Column> out;
  for (Field& field : fields(BenchRow{})) out.push_back(std::move(field.column));
  return out;
}

std::vector<Cell> bench_row(const BenchRow& row) { return cells_of(fields(row)); }

Table bench_table(const std::vector<BenchRow>& rows, const std::string& caption) {
  Table all;
  all.caption = caption;
  all.columns = bench_columns();
  for (const BenchRow& row : rows) all.rows.push_back(bench_row(row));
  return choose_columns(all, kShown);
}

}  // namespace nibble
