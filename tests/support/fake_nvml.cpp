// A management library for tests: one GPU at 0000:1b:00.0, whose figures come from environment variables, so that what
// the benchmark makes of them can be tested where there is no GPU. Functions are named and typed as NVIDIA's reference
// of NVML documents them.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidArgument = 2;
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;
constexpr int kInsufficientSize = 7;

unsigned long long figure(const char* name, unsigned long long otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

int gpu = 0;
unsigned calls_for_clock = 0;
unsigned long long lists_given = 0;

struct Memory {
  unsigned long long total, free, used;
};
struct Process {
  unsigned int pid;
  unsigned long long used;
  unsigned int gpu_instance, compute_instance;
};

}  // namespace

extern "C" {

// The library's own names.
// NOLINTBEGIN(readability-identifier-naming)
int nvmlInit_v2() { return std::getenv("FAKE_NVML_BROKEN") != nullptr ? kNotSupported : kSuccess; }
int nvmlShutdown() { return kSuccess; }
const char* nvmlErrorString(int result) { return result == kNotFound ? "Not Found" : "Some Error"; }

int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  std::snprintf(text, length, "580.95.05");
  return kSuccess;
}

int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 12080;
  return kSuccess;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** handle) {
  if (std::strcmp(bus, "0000:1b:00.0") != 0) return kNotFound;
  *handle = &gpu;
  return kSuccess;
}

int nvmlDeviceGetName(void* handle, char* text, unsigned length) {
  if (handle != &gpu) return kInvalidArgument;
  std::snprintf(text, length, "Fake GPU");
  return kSuccess;
}

int nvmlDeviceGetMemoryInfo(void*, Memory* memory) {
  memory->total = 80'000'000'000;
  memory->used = figure("FAKE_NVML_USED", 1'000'000'000);
  memory->free = memory->total - memory->used;
  return kSuccess;
}

// Twenty processes of others, and this one at the end where FAKE_NVML_OWN says what it holds, but for the first
// FAKE_NVML_OWN_AFTER times.
int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, Process* processes) {
  const bool own = std::getenv("FAKE_NVML_OWN") != nullptr && lists_given >= figure("FAKE_NVML_OWN_AFTER", 0);
  const unsigned wanted = 20 + (own ? 1 : 0);
  if (*count < wanted) {
    *count = wanted;
    return kInsufficientSize;
  }
  ++lists_given;
  *count = wanted;
  for (unsigned i = 0; i < 20; ++i) processes[i] = {1, 123, 0, 0};
  if (own) processes[20] = {static_cast<unsigned>(getpid()), figure("FAKE_NVML_OWN", 0), 0, 0};
  return kSuccess;
}

// The two clocks that FAKE_NVML_CLOCK and FAKE_NVML_CLOCK_2 name, in turn.
int nvmlDeviceGetClockInfo(void*, int, unsigned* mhz) {
  const unsigned long long first = figure("FAKE_NVML_CLOCK", 1980);
  *mhz = static_cast<unsigned>(calls_for_clock++ % 2 == 0 ? first : figure("FAKE_NVML_CLOCK_2", first));
  return kSuccess;
}

int nvmlDeviceGetMaxClockInfo(void*, int type, unsigned* mhz) {
  *mhz = type == 1 ? 1980 : 2619;
  return kSuccess;
}

int nvmlDeviceGetPowerUsage(void*, unsigned* milliwatts) {
  *milliwatts = 350'000;
  return kSuccess;
}

int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned* milliwatts) {
  *milliwatts = 700'000;
  return kSuccess;
}

int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  *celsius = 55;
  return kSuccess;
}

// 12 J each time it is asked, unless FAKE_NVML_NO_COUNTER is set.
int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* millijoules) {
  static unsigned long long total = 0;
  if (std::getenv("FAKE_NVML_NO_COUNTER") != nullptr) return kNotSupported;
  *millijoules = total += 12'000;
  return kSuccess;
}

int nvmlDeviceGetTotalEccErrors(void*, int, int, unsigned long long* errors) {
  *errors = 0;
  return kSuccess;
}

int nvmlDeviceGetCurrentClocksEventReasons(void*, unsigned long long* reasons) {
  *reasons = figure("FAKE_NVML_REASONS", 0);
  return kSuccess;
}
// NOLINTEND(readability-identifier-naming)

}  // extern "C"
