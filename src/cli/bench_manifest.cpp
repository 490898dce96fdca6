#include "cli/bench_manifest.h"

#include "core/cpu.h"
#include "core/error.h"
#include "core/file.h"
#include "core/thread_pool.h"
#include "formats/checkpoint.h"
#include "formats/json.h"
#include "formats/quant_config.h"

#include <sys/utsname.h>
#include <nlohmann/json.hpp>

#include <ctime>
#include <set>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

/// The words of the command line, as the system has them.
std::vector<std::string> command_line() {
  constexpr std::size_t kLongest = std::size_t{4} << 20;
  const std::string text = read_text_file("/proc/self/cmdline", kLongest);
  std::vector<std::string> out;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\0', begin), text.size());
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

Json machine() {
  utsname system{};
  uname(&system);
  std::vector<std::string> sets;
  for (const Isa isa : supported_isas()) sets.emplace_back(name_of(isa));
  return {{"cpu", cpu_model()},
          {"cpus", usable_cpus()},
          {"threads", ThreadPool::instance().threads()},
          {"isa", name_of(active_isa())},
          {"supported_isas", sets},
          {"last_level_cache_bytes", last_level_cache_bytes()},
          {"memory_bytes", usable_memory_bytes()},
          {"system", std::string(system.sysname) + " " + system.release}};
}

/// Zeros and empty texts are what the driver does not say.
Json gpu_of(const GpuDescription& gpu, const DeviceCeilings& ceilings) {
  return {{"name", gpu.name},
          {"bus", gpu.bus},
          {"driver", gpu.driver},
          {"cuda_of_driver", gpu.cuda},
          {"memory_bytes", gpu.memory},
          {"sm_clock_max_mhz", gpu.sm_clock_max},
          {"memory_clock_max_mhz", gpu.memory_clock_max},
          {"power_limit_w", gpu.power_limit},
          {"copy_bytes_per_second", ceilings.memory.copy_bytes_per_second},
          {"read_bytes_per_second", ceilings.memory.read_bytes_per_second},
          {"footprint_bytes", ceilings.memory.footprint},
          {"gemm_flops_per_second",
           {{"f32", ceilings.gemm.f32}, {"bf16", ceilings.gemm.bf16}, {"f16", ceilings.gemm.f16}}}};
}

/// The toolkit and the architectures that this build's CUDA library is of; null where it has none.
Json cuda_build() {
  const std::string architectures = NIBBLE_CUDA_BUILD_ARCHITECTURES;
  if (architectures.empty()) return nullptr;
  return {{"toolkit", NIBBLE_CUDA_BUILD_TOOLKIT}, {"architectures", architectures}};
}

Json model_of(const BenchSystem& system) {
  const Checkpoint checkpoint(system.folder);
  Json out = {{"model", system.model},
              {"folder", system.folder},
              {"hash", checkpoint.hash()},
              {"tensor_bytes", checkpoint.total_bytes()}};
  if (const auto quant = find_quant_config(system.folder)) out["quantization"] = quant->to_json();
  return out;
}

}  // namespace

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::string bench_manifest(const BenchSweep& sweep, const MeasuredDevice& measured, const std::string& started,
                           const std::string& protocol, const std::string& before, const std::string& where) {
  Json runs = Json::array();
  if (!before.empty()) runs = parse_ordered_json(before, where);
  if (!runs.is_array())
    fail_usage("{} is not a list of runs; name another folder, or give --overwrite to replace it", where);
  Json out;
  out["started"] = started;
  out["command"] = command_line();
  out["protocol"] = protocol;
  out["machine"] = machine();
  if (measured.gpu) {
    out["machine"]["gpu"] = gpu_of(*measured.gpu, measured.ceilings);
  } else {
    const ReadBandwidth& memory = measured.memory;
    out["machine"]["memory_bandwidth"] = {{"bytes_per_second", memory.bytes_per_second},
                                          {"footprint_bytes", memory.footprint},
                                          {"threads", memory.threads},
                                          {"passes", memory.passes}};
  }
  out["build"] = {{"version", NIBBLE_VERSION},       {"compiler", NIBBLE_COMPILER}, {"flags", NIBBLE_FLAGS},
                  {"build_type", NIBBLE_BUILD_TYPE}, {"commit", NIBBLE_COMMIT},     {"cuda", cuda_build()}};
  out["models"] = Json::array();
  std::set<std::string> seen;
  for (const BenchSystem& system : sweep.systems) {
    if (seen.insert(system.folder).second) out["models"].push_back(model_of(system));
  }
  out["seed"] = sweep.base.seed;
  runs.push_back(std::move(out));
  return runs.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
