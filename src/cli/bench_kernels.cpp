// nibble bench kernels: linear kernels by themselves, over shapes and numbers of rows.
#include "bench/kernel_bench.h"
#include "cli/command.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "engine/configuration.h"
#include "kernels/registry.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>
#include <memory>
#include <utility>

namespace nibble {
namespace {

struct Options {
  std::string device = "auto";
  // The linear layers of Llama-2-13B: attention's four, the gate and up projections, the down projection.
  std::vector<std::string> shapes = {"5120x5120", "5120x13824", "13824x5120"};
  std::vector<std::int64_t> rows = {1, 2, 4, 8, 16};
  std::vector<std::string> kernels = {"all"};
  int bits = 4;
  std::int64_t group_size = 128;
  bool act_order = false;
  bool asym = false;
  std::string dtype;
  std::string format = "markdown";
};

std::pair<std::int64_t, std::int64_t> parse_shape(const std::string& text) {
  const std::size_t cross = text.find('x');
  std::int64_t k = 0;
  std::int64_t n = 0;
  const char* end = text.data() + text.size();
  if (cross != std::string::npos) {
    const auto first = std::from_chars(text.data(), text.data() + cross, k);
    const auto second = std::from_chars(text.data() + cross + 1, end, n);
    // A matrix of 2^31 elements is more than any layer has.
    constexpr std::int64_t kMost = std::int64_t{1} << 20;
    if (first.ptr == text.data() + cross && second.ptr == end && k > 0 && n > 0 && k <= kMost && n <= kMost &&
        k * n <= std::int64_t{1} << 31) {
      return {k, n};
    }
  }
  fail_usage("--shape {}: expected INPUTSxOUTPUTS, such as 5120x13824", text);
}

std::vector<const LinearKernel*> chosen_kernels(const Options& o, DeviceKind kind) {
  std::vector<const LinearKernel*> out;
  for (const std::string& name : o.kernels) {
    if (name != "all") {
      out.push_back(&kernel_named(name, kind));
      continue;
    }
    for (const LinearKernel* kernel : kernels_for(kind)) {
      if (kernel->traits().in_all) out.push_back(kernel);
    }
  }
  // Full precision first: the others are held against it.
  std::stable_partition(out.begin(), out.end(), [](const LinearKernel* k) { return k->name() == "dense"; });
  return out;
}

int run(const Options& o) {
  EngineOptions engine_options;
  engine_options.device = o.device;
  const std::unique_ptr<Backend> backend = make_backend(engine_options);
  Device& device = backend->device();
  const DeviceInfo& info = device.info();
  const bool gpu = info.kind == DeviceKind::cuda;
  const std::optional<DType> named = o.dtype.empty() ? std::nullopt : dtype_from_name(o.dtype);
  if (!o.dtype.empty() && !named) fail_usage("--dtype {}: expected f32, bf16 or f16", o.dtype);
  const DType compute = named.value_or(gpu ? DType::f16 : DType::bf16);
  // More than 4 times the largest level-2 cache of a GPU (60 MB); on a CPU, than what it reports of its last level.
  const std::size_t cold =
      gpu ? std::size_t{256} << 20 : std::min(2 * last_level_cache_bytes(), std::size_t{512} << 20);

  Table table;
  table.caption =
      fmt::format("{} ({}), {}, weights beyond the caches. Times are medians of 30 rounds of replayed graphs.",
                  info.name, info.isa, name_of(compute));
  table.columns = {{"kernel", "kernel"},
                   {"inputs", "K"},
                   {"outputs", "N"},
                   {"rows", "M"},
                   {"us", "time (us)"},
                   {"least_us", "best (us)"},
                   {"gb_s", "GB/s", 0},
                   {"tflop_s", "TFLOP/s", 1},
                   {"speedup", "dense / this"},
                   {"verified", "error of bound"},
                   {"status", "status"}};
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes;
  shapes.reserve(o.shapes.size());
  for (const std::string& shape : o.shapes) shapes.push_back(parse_shape(shape));
  const std::vector<const LinearKernel*> kernels = chosen_kernels(o, info.kind);
  Progress progress("timing kernels", static_cast<std::int64_t>(shapes.size() * kernels.size()));
  std::int64_t done = 0;
  for (const auto& [inputs, outputs] : shapes) {
    RandomSiteOptions options;
    options.in_features = inputs;
    options.out_features = {outputs};
    options.compute = compute;
    options.weights = compute;
    options.x_dtype = options.y_dtype = backend->traits().compute_activations ? compute : DType::f32;
    const RandomSite dense(options);
    options.gptq = GptqFormat{o.bits, o.group_size, o.act_order, !o.asym};
    options.keep_weights = false;
    const RandomSite quantised(options);
    std::vector<double> baseline(o.rows.size(), 0);
    for (const LinearKernel* kernel : kernels) {
      progress.update(done++, fmt::format("{} {}x{}", kernel->name(), inputs, outputs));
      const bool full = kernel->fit(dense.site(), info, 1).ok;
      const std::vector<KernelTiming> timings = time_kernel(*kernel, full ? dense : quantised, o.rows, cold, device);
      for (std::size_t i = 0; i < timings.size(); ++i) {
        const KernelTiming& t = timings[i];
        std::vector<Cell> row = {std::string(kernel->name()), inputs, outputs, t.rows};
        if (t.error.empty()) {
          if (full && baseline[i] == 0) baseline[i] = t.seconds;
          row.insert(row.end(),
                     {t.seconds * 1e6, t.least * 1e6, t.cost.bytes / t.seconds / 1e9, t.cost.flops / t.seconds / 1e12,
                      baseline[i] > 0 ? Cell(baseline[i] / t.seconds) : Cell(), t.verified, std::string("ok")});
        } else {
          row.insert(row.end(), {Cell(), Cell(), Cell(), Cell(), Cell(), Cell(), t.error});
        }
        table.rows.push_back(std::move(row));
      }
    }
  }
  progress.update(done);
  fmt::print("{}", render(table, table_format_from_name(o.format)));
  return 0;
}

const CommandRegistration kRegistration(
    {"bench kernels", "linear kernels by themselves, over shapes and numbers of rows", [](CLI::App& app) {
       auto o = std::make_shared<Options>();
       app.add_option("--device", o->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
       app.add_option("--shape", o->shapes, "INPUTSxOUTPUTS, a list")->delimiter(',')->capture_default_str();
       app.add_option("--rows", o->rows, "numbers of rows, a list")
           ->delimiter(',')
           ->check(CLI::Range(std::int64_t{1}, std::int64_t{65536}))
           ->capture_default_str();
       app.add_option("--kernel", o->kernels, "kernels by name, a list, or all")->delimiter(',')->capture_default_str();
       app.add_option("--bits", o->bits, "of quantised weights")
           ->check(CLI::IsMember({2, 3, 4, 8}))
           ->capture_default_str();
       app.add_option("--group-size", o->group_size, "inputs a scale, -1: all")->capture_default_str();
       app.add_flag("--act-order", o->act_order, "groups in random order");
       app.add_flag("--asym", o->asym, "with zero points");
       app.add_option("--dtype", o->dtype, "compute type: f32, bf16, f16 (default: f16 on a GPU, bf16 on a CPU)");
       app.add_option("--format", o->format, "markdown, csv, json, jsonl")->capture_default_str();
       return [o] { return run(*o); };
     }});

}  // namespace
}  // namespace nibble
