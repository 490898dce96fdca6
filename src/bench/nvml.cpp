#include "bench/nvml.h"

#include "core/error.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <vector>

namespace nibble {
namespace {

// The part of NVML that is used, as NVIDIA's reference of the library documents it. Results are 0 for success.
constexpr int kSuccess = 0;
constexpr int kInsufficientSize = 7;
constexpr int kClockSm = 1;
constexpr int kClockMemory = 2;
constexpr int kTemperatureGpu = 0;
constexpr int kEccCorrected = 0;
constexpr int kEccUncorrected = 1;
constexpr int kEccVolatile = 0;
// The memory of a process, where the driver does not know it.
constexpr unsigned long long kNotAvailable = ~0ull;

struct Memory {
  unsigned long long total, free, used;
};

struct Process {
  unsigned int pid;
  unsigned long long used;
  unsigned int gpu_instance, compute_instance;
};

}  // namespace

struct NvmlDevice::Library {
  void* file = nullptr;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*driver_version)(char*, unsigned) = nullptr;
  int (*cuda_version)(int*) = nullptr;
  int (*handle_by_bus)(const char*, void**) = nullptr;
  int (*name)(void*, char*, unsigned) = nullptr;
  int (*memory_info)(void*, Memory*) = nullptr;
  int (*processes)(void*, unsigned*, Process*) = nullptr;
  int (*clock)(void*, int, unsigned*) = nullptr;
  int (*clock_max)(void*, int, unsigned*) = nullptr;
  int (*power_usage)(void*, unsigned*) = nullptr;
  int (*power_limit)(void*, unsigned*) = nullptr;
  int (*temperature)(void*, int, unsigned*) = nullptr;
  int (*energy)(void*, unsigned long long*) = nullptr;
  int (*ecc_errors)(void*, int, int, unsigned long long*) = nullptr;
  int (*throttle_reasons)(void*, unsigned long long*) = nullptr;
  bool initialised = false;

  Library() = default;
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (initialised) shutdown();
    if (file != nullptr) dlclose(file);
  }

  /// The first of these names that the library has; queries whose function is missing are answered with nothing.
  template <typename Function>
  void take(Function& function, std::initializer_list<const char*> names) {
    for (const char* name_in_file : names) {
      if (function == nullptr) function = reinterpret_cast<Function>(dlsym(file, name_in_file));
    }
  }

  /// Why it cannot be used; empty where it can.
  std::string load() {
    const char* named = std::getenv("NIBBLE_NVML_LIBRARY");
    const std::string path = named != nullptr && *named != '\0' ? named : "libnvidia-ml.so.1";
    file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (file == nullptr) return fmt::format("NVML cannot be loaded: {}", dlerror());
    take(init, {"nvmlInit_v2"});
    take(shutdown, {"nvmlShutdown"});
    take(error_string, {"nvmlErrorString"});
    take(driver_version, {"nvmlSystemGetDriverVersion"});
    take(cuda_version, {"nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"});
    take(handle_by_bus, {"nvmlDeviceGetHandleByPciBusId_v2"});
    take(name, {"nvmlDeviceGetName"});
    take(memory_info, {"nvmlDeviceGetMemoryInfo"});
    take(processes, {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"});
    take(clock, {"nvmlDeviceGetClockInfo"});
    take(clock_max, {"nvmlDeviceGetMaxClockInfo"});
    take(power_usage, {"nvmlDeviceGetPowerUsage"});
    take(power_limit, {"nvmlDeviceGetEnforcedPowerLimit"});
    take(temperature, {"nvmlDeviceGetTemperature"});
    take(energy, {"nvmlDeviceGetTotalEnergyConsumption"});
    take(ecc_errors, {"nvmlDeviceGetTotalEccErrors"});
    take(throttle_reasons, {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"});
    if (init == nullptr || shutdown == nullptr || handle_by_bus == nullptr)
      return fmt::format("{} lacks functions that NVML has: the driver is too old", path);
    const int result = init();
    if (result != kSuccess) return fmt::format("NVML cannot start: {}", words(result));
    initialised = true;
    return {};
  }

  std::string words(int result) const {
    const char* text = error_string != nullptr ? error_string(result) : nullptr;
    return text != nullptr ? text : fmt::format("error {}", result);
  }
};

namespace {

/// What one call of NVML says.
template <typename Value, typename... Parameters, typename... Args>
std::optional<Value> ask(int (*function)(Parameters...), Args... args) {
  Value value{};
  if (function == nullptr || function(args..., &value) != kSuccess) return std::nullopt;
  return value;
}

std::string ask_text(int (*function)(void*, char*, unsigned), void* handle) {
  std::array<char, 96> text{};
  if (function == nullptr || function(handle, text.data(), static_cast<unsigned>(text.size() - 1)) != kSuccess)
    return {};
  return text.data();
}

}  // namespace

std::optional<NvmlDevice> NvmlDevice::find(const std::string& bus, std::string* why) {
  const auto none = [&](std::string text) -> std::optional<NvmlDevice> {
    if (why != nullptr) *why = std::move(text);
    return std::nullopt;
  };
  auto library = std::make_shared<Library>();
  if (std::string failure = library->load(); !failure.empty()) return none(std::move(failure));
  void* handle = nullptr;
  if (const int result = library->handle_by_bus(bus.c_str(), &handle); result != kSuccess)
    return none(fmt::format("NVML does not know the GPU at {}: {}", bus, library->words(result)));
  return NvmlDevice(std::move(library), handle, bus);
}

GpuDescription NvmlDevice::describe() const {
  const Library& n = *library_;
  GpuDescription out;
  out.name = ask_text(n.name, handle_);
  out.bus = bus_;
  std::array<char, 96> text{};
  if (n.driver_version != nullptr && n.driver_version(text.data(), static_cast<unsigned>(text.size() - 1)) == kSuccess)
    out.driver = text.data();
  if (const auto version = ask<int>(n.cuda_version)) {
    // 13000 is 13.0, 12080 is 12.8.
    out.cuda = fmt::format("{}.{}", *version / 1000, *version % 1000 / 10);
  }
  out.sm_clock_max = static_cast<int>(ask<unsigned>(n.clock_max, handle_, kClockSm).value_or(0));
  out.memory_clock_max = static_cast<int>(ask<unsigned>(n.clock_max, handle_, kClockMemory).value_or(0));
  out.power_limit = ask<unsigned>(n.power_limit, handle_).value_or(0) * 1e-3;
  if (const auto memory = ask<Memory>(n.memory_info, handle_)) out.memory = memory->total;
  return out;
}

std::optional<std::size_t> NvmlDevice::used_memory() const {
  const auto memory = ask<Memory>(library_->memory_info, handle_);
  return memory ? std::optional<std::size_t>(memory->used) : std::nullopt;
}

std::optional<std::size_t> NvmlDevice::used_by_this_process() const {
  const Library& n = *library_;
  if (n.processes == nullptr) return std::nullopt;
  std::vector<Process> listed(16);
  unsigned count = 0;
  int result = kInsufficientSize;
  // Processes may come while the list grows.
  for (int attempt = 0; attempt < 3 && result == kInsufficientSize; ++attempt) {
    if (count > listed.size()) listed.resize(2 * count);
    count = static_cast<unsigned>(listed.size());
    result = n.processes(handle_, &count, listed.data());
  }
  if (result != kSuccess) return std::nullopt;
  const auto own = static_cast<unsigned>(::getpid());
  for (unsigned i = 0; i < count; ++i) {
    if (listed[i].pid == own && listed[i].used != kNotAvailable) return listed[i].used;
  }
  return std::nullopt;
}

std::optional<int> NvmlDevice::sm_clock() const {
  const auto value = ask<unsigned>(library_->clock, handle_, kClockSm);
  return value ? std::optional(static_cast<int>(*value)) : std::nullopt;
}

std::optional<double> NvmlDevice::power() const {
  const auto milliwatts = ask<unsigned>(library_->power_usage, handle_);
  return milliwatts ? std::optional(*milliwatts * 1e-3) : std::nullopt;
}

std::optional<int> NvmlDevice::temperature() const {
  const auto value = ask<unsigned>(library_->temperature, handle_, kTemperatureGpu);
  return value ? std::optional(static_cast<int>(*value)) : std::nullopt;
}

std::optional<double> NvmlDevice::energy() const {
  const auto millijoules = ask<unsigned long long>(library_->energy, handle_);
  return millijoules ? std::optional(static_cast<double>(*millijoules) * 1e-3) : std::nullopt;
}

std::optional<std::int64_t> NvmlDevice::ecc_errors() const {
  const auto corrected = ask<unsigned long long>(library_->ecc_errors, handle_, kEccCorrected, kEccVolatile);
  const auto uncorrected = ask<unsigned long long>(library_->ecc_errors, handle_, kEccUncorrected, kEccVolatile);
  if (!corrected || !uncorrected) return std::nullopt;
  return static_cast<std::int64_t>(*corrected + *uncorrected);
}

std::optional<std::uint64_t> NvmlDevice::throttle_reasons() const {
  const auto value = ask<unsigned long long>(library_->throttle_reasons, handle_);
  return value ? std::optional<std::uint64_t>(*value) : std::nullopt;
}

}  // namespace nibble
