#include "kernels/autotune.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/float_convert.h"
#include "core/log.h"
#include "formats/json.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>

namespace nibble {
namespace {

// Beyond so many rows a product's time is proportional to them.
constexpr std::int64_t kMostRows = 256;
// Calls go over copies of the site, so that weights do not come from a first- or second-level cache, as in a model they
// do not: 16 MiB are several times the second level of two cores, 128 MiB more than twice that of a GPU. More copies
// than 32 would take longer to pack than to time.
constexpr std::size_t kCopiesBytes = std::size_t{16} << 20;
constexpr std::size_t kCopiesBytesGpu = std::size_t{128} << 20;
constexpr std::size_t kMostCopies = 32;
// Starting a round and waiting for it takes a GPU some 10 us, as long as one call with few rows.
constexpr std::size_t kLeastCallsGpu = 64;
// Rounds over all candidates: the best of 7 is steady to a few percent, and a slow site need not have more than 3 in
// 0.5 s.
constexpr int kRounds = 7;
constexpr int kLeastRounds = 3;
constexpr double kRoundsSeconds = 0.5;
constexpr double kTie = 1.05;
// A cache of a few hundred lines; what is longer was not written here.
constexpr std::size_t kFileLimit = std::size_t{4} << 20;

std::string stamp_of(const std::filesystem::path& file) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  const auto time = std::filesystem::last_write_time(file, error).time_since_epoch().count();
  return error ? "unknown" : fmt::format("{}-{}", size, time);
}

// Changes with each link of the program, and of the library that holds a GPU's kernels.
std::string build_stamp(const DeviceInfo& device) {
  std::error_code error;
  const std::string program = stamp_of(std::filesystem::read_symlink("/proc/self/exe", error));
  return device.library.empty() ? program : program + "-" + stamp_of(device.library);
}

std::string describe(const LinearSite& site) {
  std::string text = fmt::format("K{}", site.in_features());
  for (const LinearDesc& part : site.parts) {
    text += fmt::format(" N{}{}", part.out_features, part.bias ? "+bias" : "");
    if (part.gptq) {
      text += fmt::format(":{}bit-g{}{}{}", part.gptq->bits, part.gptq->group_size, part.gptq->act_order ? "-act" : "",
                          part.gptq->symmetric ? "" : "-asym");
    }
  }
  return text + fmt::format(" prologue{} epilogue{}.{} {} {}-{}", static_cast<int>(site.prologue.kind),
                            static_cast<int>(site.epilogue.kind), static_cast<int>(site.epilogue.activation),
                            name_of(site.compute), name_of(site.x_dtype), name_of(site.y_dtype));
}

RandomSite random_like(const LinearSite& site) {
  RandomSiteOptions options{.in_features = site.in_features(),
                            .out_features = {},
                            .bias = site.parts.front().bias,
                            .gptq = site.parts.front().gptq,
                            .weights = DType::bf16,
                            .compute = site.compute,
                            .x_dtype = site.x_dtype,
                            .y_dtype = site.y_dtype,
                            .prologue = site.prologue,
                            .epilogue = site.epilogue,
                            .keep_weights = false};
  for (const LinearDesc& part : site.parts) options.out_features.push_back(part.out_features);
  return RandomSite(options);
}

// One kernel with its packed copies and a call for a number of rows.
class Candidate {
 public:
  Candidate(const LinearKernel& kernel, const RandomSite& random, std::int64_t most_rows, Device& device)
      : kernel_(kernel), stream_(device.make_stream()), gpu_(device.info().kind == DeviceKind::cuda) {
    site_ = fused_site(random.site(), kernel.fit(random.site(), device.info(), most_rows));
    // What is left to ops leaves a GPU's activations in the compute type.
    if (gpu_ && site_.prologue.kind != random.site().prologue.kind) site_.x_dtype = site_.compute;
    if (gpu_ && site_.epilogue.kind != random.site().epilogue.kind) site_.y_dtype = site_.compute;
    const std::size_t bytes = std::max<std::size_t>(kernel.packed_bytes(site_), 1);
    const std::size_t copies = std::clamp<std::size_t>((gpu_ ? kCopiesBytesGpu : kCopiesBytes) / bytes, 2, kMostCopies);
    for (std::size_t i = 0; i < copies; ++i) packed_.push_back(kernel.pack(site_, random.tensors(), device, *stream_));
    const auto allocate = [&](std::int64_t rows, std::int64_t columns, DType dtype) {
      memory_.push_back(
          device.allocate(static_cast<std::size_t>(rows * columns) * bytes_of(dtype), "measuring kernels"));
      return MatrixRef{memory_.back()->data(), dtype, rows, columns, columns};
    };
    x_ = allocate(most_rows, site_.in_features(), site_.x_dtype);
    norm_ = allocate(1, site_.in_features(), DType::f32);
    for (const LinearDesc& part : site_.parts) y_.push_back(allocate(most_rows, part.out_features, site_.y_dtype));
    residual_ = allocate(most_rows, site_.parts.front().out_features, site_.y_dtype);
    workspace_ = device.allocate(kernel.workspace(site_, most_rows), "measuring kernels");
    Random numbers(1);
    for (const MatrixRef& input : {x_, norm_, residual_}) fill(input, numbers);
  }

  const LinearKernel& kernel() const { return kernel_; }

  void prepare(std::int64_t rows) {
    // On a CPU some 32 rows take longer to compute than to load: two copies do.
    calls_ =
        gpu_ ? std::max(packed_.size(), rows > 32 ? std::size_t{1} : kLeastCallsGpu) : (rows > 32 ? 2 : packed_.size());
    LinearArgs args;
    args.rows = rows;
    args.x = x_;
    args.norm_weight = static_cast<const float*>(norm_.data);
    args.y = std::span(y_).first(site_.epilogue.kind == EpilogueKind::gated ? 1 : y_.size());
    args.residual = residual_;
    args.workspace = workspace_->data();
    stream_->begin_capture();
    for (std::size_t i = 0; i < calls_; ++i) kernel_.enqueue(*packed_[i % packed_.size()], args, *stream_);
    graph_ = stream_->end_capture();
    best_ = std::numeric_limits<double>::infinity();
  }

  double run() {
    const auto start = std::chrono::steady_clock::now();
    stream_->launch(*graph_);
    stream_->synchronize();
    const double seconds = seconds_since(start);
    best_ = std::min(best_, seconds / static_cast<double>(calls_));
    return seconds;
  }

  void finish() { log_time_ += std::log(best_); }
  double log_time() const { return log_time_; }
  std::size_t bytes() const { return packed_.front()->bytes(); }

 private:
  void fill(const MatrixRef& to, Random& numbers) {
    std::vector<float> values(static_cast<std::size_t>(to.rows * to.columns));
    for (float& v : values) v = numbers.normal();
    if (to.dtype == DType::f32) {
      stream_->copy_to_device(to.data, values.data(), values.size() * sizeof(float));
    } else {
      std::vector<std::uint16_t> halves(values.size());
      std::transform(values.begin(), values.end(), halves.begin(),
                     [&](float v) { return to.dtype == DType::bf16 ? float_to_bf16(v) : float_to_half(v); });
      stream_->copy_to_device(to.data, halves.data(), halves.size() * sizeof(std::uint16_t));
    }
    // The values go with this call.
    stream_->synchronize();
  }

  const LinearKernel& kernel_;
  LinearSite site_;
  std::unique_ptr<Stream> stream_;
  bool gpu_ = false;
  std::vector<std::unique_ptr<PackedLinear>> packed_;
  std::vector<std::unique_ptr<Buffer>> memory_;
  std::unique_ptr<Buffer> workspace_;
  MatrixRef x_;
  MatrixRef norm_;
  MatrixRef residual_;
  std::vector<MatrixRef> y_;
  std::unique_ptr<Graph> graph_;
  std::size_t calls_ = 1;
  double best_ = 0;
  double log_time_ = 0;
};

const LinearKernel& measure(const LinearSite& site, const std::set<std::int64_t>& rows,
                            std::span<const LinearKernel* const> kernels, Device& device) {
  const RandomSite random = random_like(site);
  std::vector<Candidate> candidates;
  candidates.reserve(kernels.size());
  for (const LinearKernel* kernel : kernels) candidates.emplace_back(*kernel, random, *rows.rbegin(), device);
  for (const std::int64_t m : rows) {
    for (Candidate& one : candidates) {
      one.prepare(m);
      one.run();  // not counted: pages, caches and clocks settle
      one.prepare(m);
    }
    double spent = 0;
    for (int round = 0; round < kRounds && (round < kLeastRounds || spent < kRoundsSeconds); ++round) {
      for (Candidate& one : candidates) spent += one.run();
    }
    for (Candidate& one : candidates) one.finish();
  }
  double least = std::numeric_limits<double>::infinity();
  for (const Candidate& one : candidates) least = std::min(least, one.log_time());
  const double limit = least + std::log(kTie) * static_cast<double>(rows.size());
  const Candidate* chosen = nullptr;
  for (const Candidate& one : candidates) {
    if (one.log_time() <= limit && (chosen == nullptr || one.bytes() < chosen->bytes())) chosen = &one;
    const double ms = 1e3 * std::exp(one.log_time() / static_cast<double>(rows.size()));
    log_debug(
        fmt::format("{}: {} takes {:.3f} ms (geometric mean over rows)", describe(site), one.kernel().name(), ms));
  }
  return chosen->kernel();
}

}  // namespace

std::filesystem::path default_autotune_file() {
  const auto folder = [](const char* variable) {
    const char* value = std::getenv(variable);
    return value == nullptr ? std::filesystem::path() : std::filesystem::path(value);
  };
  // The specification of XDG_CACHE_HOME says that a relative path is to be ignored.
  if (const std::filesystem::path cache = folder("XDG_CACHE_HOME"); cache.is_absolute())
    return cache / "nibble" / "autotune.json";
  if (const std::filesystem::path home = folder("HOME"); home.is_absolute())
    return home / ".cache" / "nibble" / "autotune.json";
  return {};
}

Autotuner::Autotuner(Device& device, std::filesystem::path file) : device_(device), file_(std::move(file)) {
  const DeviceInfo& info = device.info();
  machine_ = fmt::format("{}, {}, {} threads, build {}", info.name, info.isa, info.threads, build_stamp(info));
  std::error_code none;
  if (file_.empty() || !std::filesystem::exists(file_, none)) return;
  try {
    const nlohmann::json json = parse_json(read_text_file(file_, kFileLimit), file_.string());
    if (json.at("machine").get<std::string>() == machine_)
      choices_ = json.at("kernels").get<std::map<std::string, std::string>>();
  } catch (const std::exception& error) {
    log_debug(fmt::format("{} is not used: {}", file_.string(), error.what()));
  }
}

void Autotuner::save() const {
  if (file_.empty()) return;
  try {
    std::filesystem::create_directories(file_.parent_path());
    write_text_file(file_, nlohmann::json{{"machine", machine_}, {"kernels", choices_}}.dump(1) + "\n");
  } catch (const std::exception& error) {
    // Without it the next run measures again; that is no reason to fail this one.
    log_debug(fmt::format("measured choices are not kept: {}", error.what()));
  }
}

const LinearKernel& Autotuner::choose(const LinearSite& site, std::span<const std::int64_t> rows) {
  std::vector<const LinearKernel*> candidates;
  for (const LinearKernel* kernel : kernels_for(device_.info().kind)) {
    const KernelTraits traits = kernel->traits();
    if (traits.in_all && traits.in_auto && traits.exact_activations) candidates.push_back(kernel);
  }
  return choose(site, rows, candidates);
}

const LinearKernel& Autotuner::choose(const LinearSite& site, std::span<const std::int64_t> rows,
                                      std::span<const LinearKernel* const> candidates) {
  std::vector<const LinearKernel*> fitting;
  std::string names;
  std::string reasons;
  const std::int64_t most = *std::max_element(rows.begin(), rows.end());
  for (const LinearKernel* kernel : candidates) {
    const Fit fit = kernel->fit(site, device_.info(), most);
    if (fit.ok) {
      fitting.push_back(kernel);
      names += fmt::format(" {}", kernel->name());
    } else {
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", kernel->name(), fit.reason);
    }
  }
  if (fitting.empty()) fail("no kernel can run {}: {}", site.parts.front().name, reasons);
  if (fitting.size() == 1) return *fitting.front();

  std::set<std::int64_t> measured;
  for (const std::int64_t m : rows) measured.insert(std::min(m, kMostRows));
  std::string key = describe(site) + " rows";
  for (const std::int64_t m : measured) key += fmt::format(" {}", m);
  key += " of" + names;
  if (const auto known = choices_.find(key); known != choices_.end()) {
    for (const LinearKernel* kernel : fitting) {
      if (kernel->name() == known->second) return *kernel;
    }
  }
  const LinearKernel& chosen = measure(site, measured, fitting, device_);
  choices_[key] = chosen.name();
  save();
  return chosen;
}

}  // namespace nibble
