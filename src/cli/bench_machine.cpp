// nibble bench machine: the limits that rows of other benchmarks are held against.
#include "bench/bandwidth.h"
#include "cli/command.h"
#include "core/clock.h"
#include "core/cpu.h"
#include "core/cpu_device.h"
#include "core/thread_pool.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <memory>

namespace nibble {
namespace {

/// Operations a second of the dense kernel on a product of 1024 rows by 2048 x 2048: large enough to be bound by
/// arithmetic.
double dense_rate(DType compute) {
  constexpr std::int64_t kRows = 1024;
  constexpr std::int64_t kWidth = 2048;
  constexpr int kPasses = 5;
  const LinearKernel& kernel = kernel_named("dense", DeviceKind::cpu);
  RandomSiteOptions options;
  options.in_features = kWidth;
  options.out_features = {kWidth};
  options.compute = compute;
  options.weights = compute;
  const RandomSite random(options);
  const LinearSite& site = random.site();
  if (!kernel.fit(site, cpu_device().info(), kRows).ok) return 0;
  const std::unique_ptr<Stream> stream = cpu_device().make_stream();
  const std::unique_ptr<PackedLinear> packed = kernel.pack(site, random.tensors(), cpu_device(), *stream);
  const auto matrix = cpu_device().allocate(2 * kRows * kWidth * sizeof(float), "the measurement of the dense kernel");
  const auto workspace =
      cpu_device().allocate(std::max<std::size_t>(1, kernel.workspace(site, kRows)), "scratch of the dense kernel");
  auto* x = reinterpret_cast<float*>(matrix->data());
  std::fill(x, x + kRows * kWidth, 0.5f);
  const MatrixRef y{x + kRows * kWidth, DType::f32, kRows, kWidth, kWidth};
  LinearArgs args;
  args.rows = kRows;
  args.x = {x, DType::f32, kRows, kWidth, kWidth};
  args.y = {&y, 1};
  args.workspace = workspace->data();
  double best = 0;
  for (int pass = 0; pass <= kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    kernel.enqueue(*packed, args, *stream);
    stream->synchronize();
    const double taken = seconds_since(start);
    if (pass > 0) best = std::max(best, kernel.cost(site, kRows).flops / taken);
  }
  return best;
}

int run(const std::string& format) {
  constexpr double kSeconds = 0.5;
  Table table;
  table.caption = fmt::format("{}, {} threads, {}; last level cache {:.0f} MB. The best of many passes.", cpu_model(),
                              ThreadPool::instance().threads(), name_of(active_isa()),
                              static_cast<double>(last_level_cache_bytes()) / 1e6);
  table.columns = {{"what", "what"}, {"size", "of"}, {"rate", "rate", 1}, {"unit", "unit"}};
  // From within a core's own cache to beyond all of them: small models are read from somewhere in between.
  std::vector<std::size_t> footprints;
  for (const std::size_t mib : {1, 8, 32, 128, 512}) footprints.push_back(mib << 20);
  footprints.push_back(memory_footprint());
  for (const std::size_t footprint : footprints) {
    const ReadBandwidth measured = measure_read_bandwidth(footprint, kSeconds);
    table.rows.push_back({std::string("reading"),
                          fmt::format("{:.0f} MB", static_cast<double>(measured.footprint) / 1e6),
                          measured.bytes_per_second / 1e9, std::string("GB/s")});
  }
  for (const DType compute : {DType::f32, DType::bf16}) {
    const double rate = dense_rate(compute);
    if (rate > 0)
      table.rows.push_back(
          {std::string("dense kernel"), std::string(name_of(compute)), rate / 1e9, std::string("GFLOP/s")});
  }
  fmt::print("{}", render(table, table_format_from_name(format)));
  return 0;
}

const CommandRegistration kRegistration(
    {"bench machine", "how fast this machine reads memory and multiplies", [](CLI::App& app) {
       auto format = std::make_shared<std::string>("markdown");
       app.add_option("--format", *format, "markdown, csv, json, jsonl")->capture_default_str();
       return [format] { return run(*format); };
     }});

}  // namespace
}  // namespace nibble
