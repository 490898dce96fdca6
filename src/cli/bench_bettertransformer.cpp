// nibble bench bettertransformer (and benchmark_bettertransformer): an encoder run op by op over its padding, and
// packed and fused.
#include "bench/ceilings.h"
#include "bench/child.h"
#include "bench/encoder_bench.h"
#include "cli/bench_manifest.h"
#include "cli/command.h"
#include "cli/encoder_rows.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/thread_pool.h"
#include "engine/configuration.h"
#include "formats/hub_cache.h"
#include "models/family.h"
#include "report/row_file.h"

#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

namespace nibble {
namespace {

// What optimum's page measured, and what the last version of its script does with --sweep.
const std::vector<std::int64_t> kPageBatches = {8, 16, 64};
const std::vector<std::int64_t> kPageLengths = {64, 128, 256};
const std::vector<std::int64_t> kScriptBatches = {1, 2, 4};
const std::vector<std::int64_t> kScriptLengths = {64, 128};
const std::vector<std::int64_t> kScriptImages = {2, 4, 8, 16, 32};
// Of audio: 2, 5 and 10 seconds of 16 kHz.
const std::vector<std::int64_t> kAudioBatches = {1, 4, 16};
const std::vector<std::int64_t> kAudioLengths = {32000, 80000, 160000};
const std::vector<double> kPaddings = {0, 0.1, 0.2, 0.5, 0.75};
// --short: a cell's time settles within some rounds, and 45 cells of a small model fit in some minutes on two cores.
constexpr double kShortSeconds = 1.5;

struct Options {
  // optimum's
  std::int64_t num_batches = 50;
  std::vector<std::int64_t> batch_size = {64};
  std::vector<std::int64_t> length = {256};
  std::string model;
  std::string revision = "main";
  double stddev = 10;
  bool use_cuda = false;
  bool use_half = false;
  bool use_mask = false;
  bool is_decoder = false;
  bool sweep = false;
  std::int64_t ignored = 0;

  // nibble's
  std::vector<double> padding = kPaddings;
  std::string lengths_file;
  std::vector<std::string> dtype;
  std::vector<std::string> paths = {"eager", "fast"};
  std::string device = "auto";
  std::int64_t pass_rows = 0;
  double seconds = 0;
  bool shortened = false;
  bool profile = false;
  bool classic = false;
  std::uint64_t seed = 1;
  std::string format = "markdown";
  std::string out_folder;
  bool overwrite = false;
  bool batch_given = false;
  bool length_given = false;
  bool seconds_given = false;

  void add_to(CLI::App& app);
  void check() const;
  DeviceChoice chosen() const { return choose_device(use_cuda && device == "auto" ? "cuda" : device); }
  std::string caption(std::string_view inputs) const;
};

void Options::add_to(CLI::App& app) {
  const auto list = [&app](const std::string& name, auto& value, const std::string& help) {
    return app.add_option(name, value, help)->delimiter(',')->take_all();
  };
  app.add_option("--num-batches", num_batches, "timed forward passes of each path (50)")->check(CLI::PositiveNumber);
  list("--batch-size", batch_size, "sequences, images, or recordings, at a time, a list (64; of audio 16)")
      ->check(CLI::PositiveNumber)
      ->each([this](const std::string&) { batch_given = true; });
  list("--seqlen,--max-seqlen", length,
       "tokens that the longest sequence has room for, a list (256); of audio samples (160000)")
      ->check(CLI::PositiveNumber)
      ->each([this](const std::string&) { length_given = true; });
  app.add_option("--model,--model-name", model, "folder or hub id of an encoder")->required();
  app.add_option("--revision", revision, "branch, tag or commit of a hub id");
  list("--padding", padding, "shares of padding, a list (0,0.1,0.2,0.5,0.75)")->check(CLI::Range(0.0, 0.99));
  app.add_option("--seqlen-stdev", stddev,
                 "standard deviation of the lengths where there is padding (10); of audio in rows of the model")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--lengths-file", lengths_file,
                 "lengths of real texts, one a line, in place of --padding; or batches: a line "
                 "batch_size,seqlen,padding,lengths and one each");
  app.add_flag("--sweep", sweep,
               "batch sizes 8,16,64 and lengths 64,128,256 (benchmark_bettertransformer: 1,2,4 and "
               "64,128); of images batch sizes 2,4,8,16,32; of audio 1,4,16 and lengths 32000,80000,160000");
  app.add_flag("--use-cuda", use_cuda, "run on a GPU");
  app.add_flag("--use-half", use_half, "compute in f16 on a GPU, in bf16 on the CPU");
  app.add_flag("--use-mask", use_mask, "say where padding is even for a single sequence (always done here)");
  app.add_flag("--is_decoder", is_decoder, "decoders are measured by bench gptq");
  app.add_option("--avg-seqlen,--max_token", ignored, "taken and not used, as by optimum's script for encoders");
  list("--dtype", dtype, "what is computed in, a list: f32, bf16, on a GPU f16 (by the model)");
  list("--path", paths, "eager, fast (both)")->check(CLI::IsMember({"eager", "fast"}));
  app.add_option("--device", device, "auto (a GPU where there is one), cpu, cuda, cuda:N");
  app.add_option("--pass-rows", pass_rows, "rows a pass of the fast path (0: by the device)")
      ->check(CLI::NonNegativeNumber);
  app.add_option_function<double>(
         "--seconds", [this](double v) { seconds = v, seconds_given = true; },
         "end a cell after this time, and three rounds (0: never)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--short", shortened, "a shortened protocol, which the table's caption states");
  app.add_flag("--profile", profile, "print the time of each kind of step of the fast path, too");
  app.add_flag("--classic", classic, "print and write what optimum's benchmark_bettertransformer.py does");
  app.add_option("--seed", seed, "of the random tokens and lengths (1)");
  app.add_option("--format", format, "of the table: markdown, csv, json, jsonl (markdown)");
  app.add_option("--out", out_folder, "folder for rows.csv, rows.jsonl and table.md");
  app.add_flag("--overwrite", overwrite, "replace result files that have other columns");
}

void Options::check() const {
  table_format_from_name(format);
  if (is_decoder)
    fail_usage("--is_decoder: decoders are measured by nibble bench gptq, which takes full-precision models, too");
  if (use_cuda && device != "auto" && choose_device(device).kind != DeviceKind::cuda)
    fail_usage("--use-cuda and --device {} were both given: leave one out", device);
  for (const std::string& name : dtype) {
    if (name != "f32" && name != "bf16" && name != "f16") fail_usage("--dtype {}: expected f32, bf16 or f16", name);
    if (name == "f16" && chosen().kind == DeviceKind::cpu)
      fail_usage("--dtype f16: the CPU has no products of f16; expected f32 or bf16");
  }
  if (std::find(paths.begin(), paths.end(), "fast") == paths.end())
    fail_usage("--path: the eager path is measured beside the fast one: give fast, or both");
}

std::string Options::caption(std::string_view inputs) const {
  const std::string_view what = inputs == "text"     ? "Random tokens; a forward pass from ids"
                                : inputs == "images" ? "Random images; a forward pass from pixels"
                                                     : "Random sound; a forward pass from samples or spectrograms";
  const bool gpu = chosen().kind == DeviceKind::cuda;
  std::string text = fmt::format(
      "{} in {}memory to hidden states in {}memory, both paths in turns, one pass each to warm up, then {} timed{}; "
      "medians.",
      what, gpu ? "the host's " : "", gpu ? "the GPU's " : "", num_batches,
      seconds > 0 ? fmt::format(" (fewer where {} s are over)", seconds) : std::string());
  if (shortened) text += " This is a shortened protocol; the full one times 50.";
  return text;
}

class Bench {
 public:
  explicit Bench(Options options) : o_(std::move(options)), started_(utc_now()) {
    o_.check();
    if (o_.shortened && !o_.seconds_given) o_.seconds = kShortSeconds;
    if (o_.use_half && o_.dtype.empty()) o_.dtype = {o_.chosen().kind == DeviceKind::cuda ? "f16" : "bf16"};
    checkpoint_ = std::make_shared<const Checkpoint>(resolve_model(o_.model, o_.revision));
    const Program program = program_from_checkpoint(*checkpoint_);
    inputs_ = input_kind_of(program);
    images_ = program.image.has_value();
    if (images_ && !o_.lengths_file.empty()) fail_usage("--lengths-file: {} is a model of images", o_.model);
    if (program.audio) {
      choose_audio(*program.audio);
    } else if (o_.sweep || (images_ && o_.classic && !o_.batch_given)) {
      // The script for images has no other way.
      o_.batch_size = images_ ? kScriptImages : o_.classic ? kScriptBatches : kPageBatches;
      o_.length = o_.classic ? kScriptLengths : kPageLengths;
    }
    open_files();
  }

  int run() {
    const InterruptGuard guard;
    std::vector<std::unique_ptr<EncoderBench>> benches;
    for (const std::optional<DType> type : types()) {
      EncoderBenchOptions options;
      options.device = o_.chosen().name();
      options.compute = type;
      options.eager = std::find(o_.paths.begin(), o_.paths.end(), "eager") != o_.paths.end();
      options.pass_rows = o_.pass_rows;
      options.num_batches = o_.num_batches;
      options.seconds = o_.seconds;
      options.seed = o_.seed;
      benches.push_back(std::make_unique<EncoderBench>(checkpoint_, options));
    }
    rates_ = measure_gemm_rates(benches.front()->fast().device());
    std::vector<EncoderCell> all;
    if (images_) {
      for (const std::int64_t batch : o_.batch_size) all.push_back(image_cell(benches.front()->fast(), batch));
    } else {
      all = cells(benches.front()->fast());
    }
    Progress progress("benchmark", static_cast<std::int64_t>(all.size() * benches.size()) * kSteps);
    std::int64_t done = 0;
    for (const EncoderCell& cell : all) {
      // All types of a cell one after another, so that slow changes of the machine hit all alike.
      for (const auto& bench : benches) {
        const std::string what = fmt::format("{}, batch {}, length {}, padding {}", name_of(bench->fast().compute()),
                                             cell.batch, cell.steps > 0 ? cell.steps : cell.length, cell.padding);
        const EncoderCellResult result = bench->run(
            cell, [&](double share) { progress.update(done + static_cast<std::int64_t>(share * kSteps), what); });
        if (InterruptGuard::signal() != 0) return finish(progress);
        done += kSteps;
        keep(cell, *bench, result);
        if (o_.profile && result.error.empty()) {
          // Beside the table, for people.
          fmt::print(stderr, "{}:\n{}", what, profile_text(bench->profile(cell)));
        }
      }
    }
    return finish(progress);
  }

 private:
  static constexpr std::int64_t kSteps = 100;  // of progress, a cell

  // A model that looks at all steps of each recording has one length, and no padding.
  void choose_audio(const AudioShape& shape) {
    if (o_.sweep) {
      o_.batch_size = kAudioBatches;
      o_.length = kAudioLengths;
    } else {
      if (!o_.batch_given) o_.batch_size = {kAudioBatches.back()};
      if (!o_.length_given) o_.length = {kAudioLengths.back()};
    }
    if (shape.length == 0) return;
    if (!o_.lengths_file.empty()) fail_usage("--lengths-file: recordings of {} have one length", o_.model);
    o_.length = {shape.length};
    o_.padding = {0};
  }

  void open_files() {
    if (o_.classic) classic_.emplace(classic_encoder_csv_name(o_.model), csv_header(classic_columns()), o_.overwrite);
    if (o_.out_folder.empty()) return;
    std::error_code error;
    std::filesystem::create_directories(o_.out_folder, error);
    if (error) fail("cannot make the folder {}: {}", o_.out_folder, error.message());
    const std::filesystem::path folder = o_.out_folder;
    csv_.emplace(folder / "rows.csv", csv_header(encoder_columns()), o_.overwrite);
    jsonl_.emplace(folder / "rows.jsonl", "", o_.overwrite);
  }

  std::vector<Column> classic_columns() const { return images_ ? classic_image_columns() : classic_encoder_columns(); }
  std::vector<Cell> classic_row(const EncoderRow& row) const {
    return images_ ? classic_image_row(row) : classic_encoder_row(row);
  }

  std::vector<std::optional<DType>> types() const {
    if (o_.dtype.empty()) return {std::nullopt};
    std::vector<std::optional<DType>> out;
    out.reserve(o_.dtype.size());
    for (const std::string& name : o_.dtype) out.push_back(dtype_from_name(name));
    return out;
  }

  std::vector<EncoderCell> cells(const EncoderEngine& engine) const {
    const std::optional<AudioShape>& audio = engine.program().audio;
    std::vector<EncoderCell> out;
    if (audio) {
      // Steps from a row to the next, of which the deviation counts as many.
      double apart = 1;
      for (const AudioShape::Stage& stage : audio->stages) apart *= static_cast<double>(stage.stride);
      for (const EncoderCell& steps : drawn_cells(o_.stddev * apart)) out.push_back(audio_cell(engine, steps));
      return out;
    }
    for (const std::int64_t length : o_.length) {
      if (length > engine.max_length())
        fail_usage("--seqlen {}: {} takes at most {} tokens", length, o_.model, engine.max_length());
    }
    return drawn_cells(o_.stddev);
  }

  std::vector<EncoderCell> drawn_cells(double stddev) const {
    std::vector<EncoderCell> out;
    std::optional<LengthsFile> file;
    if (!o_.lengths_file.empty()) file.emplace(o_.lengths_file);
    for (const std::int64_t batch : o_.batch_size) {
      for (const std::int64_t length : o_.length) {
        if (file && file->cells().empty()) {
          EncoderCell cell{batch, length, 0, file->draw(batch, length, o_.seed)};
          cell.padding = cell.padded_share();
          out.push_back(std::move(cell));
          continue;
        }
        for (const double padding : o_.padding) {
          if (file) {
            const auto given = std::find_if(file->cells().begin(), file->cells().end(), [&](const EncoderCell& c) {
              return c.batch == batch && c.length == length && c.padding == padding;
            });
            if (given == file->cells().end()) {
              fail("{} has no batch of {} sequences of {} tokens with padding {}", o_.lengths_file, batch, length,
                   padding);
            }
            out.push_back(*given);
          } else {
            out.push_back({batch, length, padding, draw_lengths(batch, length, padding, stddev, o_.seed)});
          }
        }
      }
    }
    return out;
  }

  void keep(const EncoderCell& cell, EncoderBench& bench, const EncoderCellResult& result) {
    EncoderRow row;
    row.model = o_.model;
    row.cell = cell;
    row.result = result;
    const DeviceInfo& info = bench.fast().device().info();
    row.device = o_.chosen().name();
    row.device_name = info.name;
    row.isa = info.isa;
    row.threads = ThreadPool::instance().threads();
    row.dtype = std::string(name_of(bench.fast().compute()));
    row.distribution = images_                   ? "images"
                       : o_.lengths_file.empty() ? fmt::format("normal, stddev {}", o_.stddev)
                                                 : o_.lengths_file;
    row.gemm_rate = rates_.of(row.dtype);
    row.started = started_;
    if (!result.error.empty()) {
      failed_ = true;
      log_warn(fmt::format("batch {}, length {}, padding {}: {}", cell.batch, cell.steps > 0 ? cell.steps : cell.length,
                           cell.padding, result.error));
    }
    // optimum's file has no place for a row without figures.
    if (classic_ && result.error.empty()) classic_->append(csv_row(classic_columns(), classic_row(row)));
    if (csv_) csv_->append(csv_row(encoder_columns(), encoder_row(row)));
    if (jsonl_) jsonl_->append(json_row(encoder_columns(), encoder_row(row)));
    rows_.push_back(std::move(row));
  }

  std::string caption() const {
    std::string text = o_.caption(inputs_);
    if (o_.chosen().kind == DeviceKind::cuda) {
      const std::string name = rows_.empty() ? "GPU" : rows_.front().device_name;
      return text + fmt::format(" {}; multiplies {:.0f} GFLOP/s in f32, {:.0f} in bf16, {:.0f} in f16.", name,
                                rates_.f32 / 1e9, rates_.bf16 / 1e9, rates_.f16 / 1e9);
    }
    text += fmt::format(" {}; {} threads, {}; multiplies {:.0f} GFLOP/s in f32, {:.0f} in bf16.", cpu_model(),
                        ThreadPool::instance().threads(), name_of(active_isa()), rates_.f32 / 1e9, rates_.bf16 / 1e9);
    return text;
  }

  int finish(Progress& progress) {
    progress.finish(fmt::format("{} rows", rows_.size()));
    const Table readable = encoder_table(rows_, caption());
    if (!o_.out_folder.empty())
      write_text_file(std::filesystem::path(o_.out_folder) / "table.md", to_markdown(readable));
    const TableFormat format = table_format_from_name(o_.format);
    Table all;
    all.columns = o_.classic ? classic_columns() : encoder_columns();
    for (const EncoderRow& row : rows_) all.rows.push_back(o_.classic ? classic_row(row) : encoder_row(row));
    fmt::print("{}", format == TableFormat::markdown && !o_.classic ? to_markdown(readable) : render(all, format));
    const int signal = InterruptGuard::signal();
    if (signal != 0) {
      log_warn(fmt::format("interrupted; {} rows were measured and kept", rows_.size()));
      return 128 + signal;  // as a shell reports it: 130 for ^C
    }
    return failed_ ? 1 : 0;
  }

  Options o_;
  std::string started_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::string inputs_;  // as input_kind_of() says
  bool images_ = false;
  std::optional<RowFile> classic_, csv_, jsonl_;
  GemmRates rates_;
  std::vector<EncoderRow> rows_;
  bool failed_ = false;
};

const CommandRegistration kRegistration({"bench bettertransformer",
                                         "an encoder op by op over its padding, and packed and fused: speed, memory",
                                         [](CLI::App& app) {
                                           auto options = std::make_shared<Options>();
                                           options->add_to(app);
                                           return [options] { return Bench(*options).run(); };
                                         }});

}  // namespace
}  // namespace nibble
