// nibble bench machine: the limits that rows of other benchmarks are held against.
#include "bench/bandwidth.h"
#include "bench/ceilings.h"
#include "cli/command.h"
#include "core/cpu.h"
#include "core/thread_pool.h"
#include "engine/configuration.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <vector>

namespace nibble {
namespace {

constexpr double kGiga = 1e9;

void add_gemm(Table& table, const GemmRates& gemm) {
  for (const char* dtype : {"f32", "bf16", "f16"}) {
    if (const double rate = gemm.of(dtype); rate > 0) {
      table.rows.push_back({std::string("dense kernel"), std::string(dtype), rate / kGiga, std::string("GFLOP/s")});
    }
  }
}

std::string megabytes(std::size_t bytes) { return fmt::format("{:.0f} MB", static_cast<double>(bytes) / 1e6); }

void measure_cpu(Table& table, Device& device) {
  constexpr double kSeconds = 0.5;
  table.caption = fmt::format("{}, {} threads, {}; last level cache {:.0f} MB. The best of many passes.", cpu_model(),
                              ThreadPool::instance().threads(), name_of(active_isa()),
                              static_cast<double>(last_level_cache_bytes()) / 1e6);
  // From within a core's own cache to beyond all of them: small models are read from somewhere in between.
  std::vector<std::size_t> footprints;
  for (const std::size_t mib : {1, 8, 32, 128, 512}) footprints.push_back(mib << 20);
  footprints.push_back(memory_footprint());
  for (const std::size_t footprint : footprints) {
    const ReadBandwidth measured = measure_read_bandwidth(footprint, kSeconds);
    table.rows.push_back({std::string("reading"), megabytes(measured.footprint), measured.bytes_per_second / kGiga,
                          std::string("GB/s")});
  }
  add_gemm(table, measure_gemm_rates(device));
}

void measure_gpu(Table& table, Device& device) {
  const DeviceInfo& info = device.info();
  table.caption = fmt::format("{} ({}), {} multiprocessors, {}. The best of several passes.", info.name, info.bus,
                              info.threads, info.isa);
  const DeviceCeilings ceilings = measure_ceilings(device);
  const MemoryRate& memory = ceilings.memory;
  table.rows.push_back({std::string("copying, read and written"), megabytes(2 * memory.footprint),
                        memory.copy_bytes_per_second / kGiga, std::string("GB/s")});
  table.rows.push_back(
      {std::string("reading"), megabytes(memory.footprint), memory.read_bytes_per_second / kGiga, std::string("GB/s")});
  add_gemm(table, ceilings.gemm);
}

int run(const std::string& device_name, const std::string& format) {
  EngineOptions options;
  options.device = device_name;
  const std::unique_ptr<Backend> backend = make_backend(options);
  Device& device = backend->device();
  Table table;
  table.columns = {{"what", "what"}, {"size", "of"}, {"rate", "rate", 1}, {"unit", "unit"}};
  if (device.info().kind == DeviceKind::cpu) {
    measure_cpu(table, device);
  } else {
    measure_gpu(table, device);
  }
  fmt::print("{}", render(table, table_format_from_name(format)));
  return 0;
}

const CommandRegistration kRegistration(
    {"bench machine", "how fast this machine reads memory and multiplies", [](CLI::App& app) {
       auto device = std::make_shared<std::string>("auto");
       auto format = std::make_shared<std::string>("markdown");
       app.add_option("--device", *device, "auto (a GPU where there is one), cpu, cuda, cuda:N")->capture_default_str();
       app.add_option("--format", *format, "markdown, csv, json, jsonl")->capture_default_str();
       return [device, format] { return run(*device, *format); };
     }});

}  // namespace
}  // namespace nibble
