// nibble bench gptq (and benchmark_gptq): speed, memory, load time and accuracy of a model, for each way of running it.
#include "bench/child.h"
#include "bench/probe.h"
#include "cli/bench_gptq_options.h"
#include "cli/bench_manifest.h"
#include "cli/bench_rows.h"
#include "cli/command.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/thread_pool.h"
#include "ops/cuda_loader.h"
#include "report/row_file.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <optional>

namespace nibble {
namespace {

// Seconds for measuring the memory's read bandwidth: some passes over some GB.
constexpr double kMemorySeconds = 1.0;

/// Where rows go as they are measured. Files are opened before anything is measured, so that a refusal costs no time.
class RowFiles {
 public:
  RowFiles(const BenchGptqOptions& o, const BenchSweep& sweep) {
    if (o.classic) {
      const bool gptq = sweep.systems.front().gptq;
      const std::string& model = o.model.empty() ? o.gptq_model : o.model;
      if (o.measures_speed())
        classic_.emplace(classic_csv_name(model, gptq), csv_header(classic_csv_columns()), o.overwrite);
      if (o.ppl_given) {
        perplexity_.emplace(classic_perplexity_name(model, gptq), csv_header(classic_perplexity_columns()),
                            o.overwrite);
      }
    }
    if (!o.out_folder.empty()) {
      std::error_code error;
      std::filesystem::create_directories(o.out_folder, error);
      if (error) fail("cannot make the folder {}: {}", o.out_folder, error.message());
      const std::filesystem::path folder = o.out_folder;
      csv_.emplace(folder / "rows.csv", csv_header(bench_columns()), o.overwrite);
      jsonl_.emplace(folder / "rows.jsonl", "", o.overwrite);
    }
  }

  void add(const BenchRow& row) {
    const std::vector<Column> columns = bench_columns();
    // optimum's files have no place for a row without figures.
    if (classic_ && row.bench_case.speed && row.result.error.empty()) {
      classic_->append(csv_row(classic_csv_columns(), classic_csv_row(row)));
    }
    if (perplexity_ && !row.bench_case.speed && row.result.error.empty()) {
      perplexity_->append(csv_row(classic_perplexity_columns(), classic_perplexity_row(row)));
    }
    if (csv_) csv_->append(csv_row(columns, bench_row(row)));
    if (jsonl_) jsonl_->append(json_row(columns, bench_row(row)));
  }

 private:
  std::optional<RowFile> classic_, perplexity_, csv_, jsonl_;
};

class Bench {
 public:
  Bench(const BenchGptqOptions& options, BenchSweep sweep)
      : options_(options), sweep_(std::move(sweep)), files_(options_, sweep_), started_(utc_now()) {}

  int run() {
    const InterruptGuard guard;
    // optimum's table has no column for it.
    if (!options_.classic || !options_.out_folder.empty()) measure_device();
    if (!options_.out_folder.empty()) {
      const auto manifest = std::filesystem::path(options_.out_folder) / "manifest.json";
      write_text_file(manifest,
                      bench_manifest(sweep_, measured_, started_, caption(), before(manifest), manifest.string()));
    }
    const std::vector<SweepCase> texts = perplexity_cases_of(sweep_);
    const std::vector<SweepCase> speeds = options_.measures_speed() ? cases_of(sweep_) : std::vector<SweepCase>();
    Progress progress("benchmark", static_cast<std::int64_t>(texts.size() + speeds.size()) * kSteps);
    for (const SweepCase& one : texts) {
      const BenchResult result = measure(one, progress);
      if (InterruptGuard::signal() != 0) return finish(progress);
      perplexities_.push_back({one.system, result});
      if (!options_.measures_speed() || !result.error.empty()) keep(one, result);
    }
    for (const SweepCase& one : speeds) {
      BenchResult result = measure(one, progress);
      if (InterruptGuard::signal() != 0) return finish(progress);
      add_perplexity(one.system, result);
      keep(one, result);
    }
    return finish(progress);
  }

 private:
  static constexpr std::int64_t kSteps = 1000;  // of progress, a case

  void measure_device() {
    const DeviceChoice device = choose_device(sweep_.base.device);
    if (device.kind == DeviceKind::cpu) {
      measured_.memory = measure_read_bandwidth(memory_footprint(), kMemorySeconds);
      return;
    }
    const ProbeAnswer answer =
        probe_in_child(own_program().string(), {"bench", "probe"}, {device.name(), true, "", ""});
    measured_.ceilings = answer.ceilings;
    const std::string bus = cuda_device_bus(device.index);
    std::string why;
    if (const auto gpu = NvmlDevice::find(bus, &why)) {
      measured_.gpu = gpu->describe();
    } else {
      measured_.gpu.emplace();
      measured_.gpu->bus = bus;
      log_warn("the GPU's memory, clocks and power are not watched: " + why);
    }
    measured_.gpu->name = answer.name;
  }

  /// What earlier runs left in a file of results that this one adds to.
  std::string before(const std::filesystem::path& file) const {
    constexpr std::size_t kLargest = std::size_t{64} << 20;
    return options_.overwrite || !std::filesystem::exists(file) ? std::string() : read_text_file(file, kLargest);
  }

  BenchResult measure(const SweepCase& one, Progress& progress) {
    const BenchCase& c = one.bench_case;
    const std::string what = c.speed ? fmt::format("{}, batch {}, prompt {}, {} new", one.system.kernel, c.batch_size,
                                                   c.prompt_length, c.new_tokens)
                                     : one.system.kernel;
    std::vector<std::string> arguments = {"bench",     "case",
                                          "--threads", std::to_string(ThreadPool::instance().threads()),
                                          "--isa",     std::string(name_of(active_isa()))};
    // What is odd about a model is said once.
    if (std::find(warned_.begin(), warned_.end(), one.system) != warned_.end()) arguments.emplace_back("--quiet");
    warned_.push_back(one.system);
    bool interrupted = false;
    const std::int64_t before = done_++ * kSteps;
    return run_in_child(
        own_program().string(), arguments, c,
        [&](std::string_view stage, double share) {
          progress.update(before + static_cast<std::int64_t>(share * kSteps), fmt::format("{}: {}", what, stage));
        },
        interrupted);
  }

  void add_perplexity(const BenchSystem& system, BenchResult& result) const {
    for (const auto& [of, measured] : perplexities_) {
      if (!(of == system)) continue;
      result.perplexity = measured.perplexity;
      result.perplexity_running = measured.perplexity_running;
      result.perplexity_error = measured.perplexity_error;
      result.perplexity_tokens = measured.perplexity_tokens;
    }
  }

  void keep(const SweepCase& one, const BenchResult& result) {
    BenchRow row;
    row.system = one.system;
    row.bench_case = one.bench_case;
    row.result = result;
    row.started = started_;
    row.gemm = measured_.ceilings.gemm;
    if (row.on_gpu()) {
      row.memory_bandwidth = measured_.ceilings.memory.copy_bytes_per_second;
    } else {
      row.memory_bandwidth = measured_.memory.bytes_per_second;
      row.last_level_cache = last_level_cache_bytes();
    }
    if (result.perplexity) row.perplexity_procedure = one.bench_case.perplexity_procedure;
    if (!result.error.empty()) {
      failed_ = true;
      log_warn(fmt::format("{}, batch {}: {}", one.system.kernel, one.bench_case.batch_size, result.error));
    }
    files_.add(row);
    rows_.push_back(std::move(row));
  }

  std::string caption() const {
    std::string text = options_.caption();
    if (const ReadBandwidth& memory = measured_.memory; memory.bytes_per_second > 0) {
      text += fmt::format(" {}; {} threads, {}; reads memory at {:.1f} GB/s ({:.0f} MB at a time).", cpu_model(),
                          ThreadPool::instance().threads(), name_of(active_isa()), memory.bytes_per_second / 1e9,
                          static_cast<double>(memory.footprint) / 1e6);
    }
    if (measured_.gpu) {
      const auto& [memory, gemm] = measured_.ceilings;
      text += fmt::format(
          " {}; copies {:.0f} GB/s (read and written), reads {:.0f} GB/s, multiplies {:.0f} TFLOP/s in f16, {:.0f} in "
          "bf16, {:.1f} in f32.",
          measured_.gpu->name, memory.copy_bytes_per_second / 1e9, memory.read_bytes_per_second / 1e9, gemm.f16 / 1e12,
          gemm.bf16 / 1e12, gemm.f32 / 1e12);
    }
    return text;
  }

  int finish(Progress& progress) {
    progress.finish(fmt::format("{} rows", rows_.size()));
    const Table table = bench_table(rows_, caption());
    if (!options_.out_folder.empty()) {
      const auto file = std::filesystem::path(options_.out_folder) / "table.md";
      const std::string earlier = before(file);
      write_text_file(file, earlier + (earlier.empty() ? "" : "\n") + to_markdown(table));
    }
    print(table);
    const int signal = InterruptGuard::signal();
    if (signal != 0) {
      log_warn(fmt::format("interrupted; {} rows were measured and kept", rows_.size()));
      return 128 + signal;  // as a shell reports it: 130 for ^C
    }
    return failed_ ? 1 : 0;
  }

  void print(const Table& readable) const {
    const TableFormat format = table_format_from_name(options_.format);
    std::string text;
    if (format == TableFormat::markdown) {
      text = options_.classic && options_.measures_speed() ? classic_tables(rows_) : to_markdown(readable);
    } else {
      Table all;
      const bool speed = options_.measures_speed();
      all.columns = !options_.classic ? bench_columns() : speed ? classic_csv_columns() : classic_perplexity_columns();
      for (const BenchRow& row : rows_) {
        all.rows.push_back(!options_.classic ? bench_row(row)
                           : speed           ? classic_csv_row(row)
                                             : classic_perplexity_row(row));
      }
      text = render(all, format);
    }
    fmt::print("{}", text);
  }

  const BenchGptqOptions& options_;
  BenchSweep sweep_;
  RowFiles files_;
  std::string started_;
  MeasuredDevice measured_;
  std::vector<std::pair<BenchSystem, BenchResult>> perplexities_;
  std::vector<BenchSystem> warned_;
  std::vector<BenchRow> rows_;
  std::int64_t done_ = 0;
  bool failed_ = false;
};

const CommandRegistration kRegistration({"bench gptq",
                                         "speed, memory, load time and accuracy of a model, by kernel and batch size",
                                         [](CLI::App& app) {
                                           auto options = std::make_shared<BenchGptqOptions>();
                                           options->add_to(app);
                                           return [options] { return Bench(*options, options->to_sweep()).run(); };
                                         }});

}  // namespace
}  // namespace nibble
