#include "bench/gpu_watch.h"

#include "core/clock.h"
#include "core/error.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kMemoryPeriod{20};
constexpr milliseconds kRunPeriod{25};
// The clocks of a GPU that is left alone stay on one step of some 15 MHz in 2000.
constexpr double kSteadyClocks = 0.02;

/// Calls `sample` on a thread of its own, at once and then each period, and once more when it stops.
class Sampler {
 public:
  Sampler(milliseconds period, std::function<void()> sample) : sample_(std::move(sample)) {
    thread_ = std::thread([this, period] {
      std::unique_lock lock(mutex_);
      do {
        sample_();
      } while (!wake_.wait_for(lock, period, [this] { return stopping_; }));
      sample_();
    });
  }
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;
  ~Sampler() { stop(); }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::function<void()> sample_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

struct Named {
  ThrottleReason reason;
  std::string_view name;
};
constexpr std::array kReasons = {
    Named{ThrottleReason::power_cap, "power cap"},
    Named{ThrottleReason::hardware_slowdown, "hardware slowdown"},
    Named{ThrottleReason::sync_boost, "sync boost"},
    Named{ThrottleReason::software_thermal, "thermal slowdown (software)"},
    Named{ThrottleReason::hardware_thermal, "thermal slowdown (hardware)"},
    Named{ThrottleReason::power_brake, "power brake"},
    Named{ThrottleReason::display_clocks, "display clocks"},
};

}  // namespace

GpuMemory gpu_memory_now(const NvmlDevice& gpu, std::size_t used_before) {
  if (const auto own = gpu.used_by_this_process()) return {*own, "process"};
  if (const auto used = gpu.used_memory()) return {*used > used_before ? *used - used_before : 0, "device"};
  return {};
}

struct GpuMemoryWatch::State {
  NvmlDevice gpu;
  std::size_t used_before;
  GpuMemory peak;
  Sampler sampler;  // last: its thread writes the others

  State(NvmlDevice device, std::size_t before)
      : gpu(std::move(device)), used_before(before), sampler(kMemoryPeriod, [this] { sample(); }) {}

  void sample() {
    const GpuMemory now = gpu_memory_now(gpu, used_before);
    // The two sources count differently: once the driver has listed the process, only that counts.
    const bool better = now.source == "process" && peak.source != "process";
    const bool worse = now.source != "process" && peak.source == "process";
    if (better || (!worse && now.bytes >= peak.bytes)) peak = now;
  }
};

GpuMemoryWatch::GpuMemoryWatch(NvmlDevice gpu, std::size_t used_before)
    : state_(std::make_unique<State>(std::move(gpu), used_before)) {}
GpuMemoryWatch::~GpuMemoryWatch() = default;
void GpuMemoryWatch::stop() { state_->sampler.stop(); }
GpuMemory GpuMemoryWatch::peak() const { return state_->peak; }

struct GpuRunWatch::State {
  NvmlDevice gpu;
  GpuRun run;
  double power_sum = 0;
  std::int64_t power_samples = 0;
  std::optional<double> energy_before;
  std::optional<std::int64_t> ecc_before;
  Clock::time_point start;
  Sampler sampler;  // last: its thread writes the others

  explicit State(NvmlDevice device)
      : gpu(std::move(device)),
        energy_before(gpu.energy()),
        ecc_before(gpu.ecc_errors()),
        start(Clock::now()),
        sampler(kRunPeriod, [this] { sample(); }) {}

  void sample() {
    if (const auto clock = gpu.sm_clock()) {
      run.sm_clock_min = run.sm_clock_min == 0 ? *clock : std::min(run.sm_clock_min, *clock);
      run.sm_clock_max = std::max(run.sm_clock_max, *clock);
    }
    if (const auto power = gpu.power()) {
      power_sum += *power;
      ++power_samples;
    }
    run.temperature = std::max(run.temperature, gpu.temperature().value_or(0));
    run.throttle |= gpu.throttle_reasons().value_or(0);
    ++run.samples;
  }
};

GpuRunWatch::GpuRunWatch(NvmlDevice gpu) : state_(std::make_unique<State>(std::move(gpu))) {}
GpuRunWatch::~GpuRunWatch() = default;

GpuRun GpuRunWatch::finish() {
  State& s = *state_;
  const std::optional<double> energy = s.gpu.energy();
  const double seconds = seconds_since(s.start);
  s.sampler.stop();
  GpuRun out = s.run;
  out.seconds = seconds;
  if (s.power_samples > 0) out.power = s.power_sum / static_cast<double>(s.power_samples);
  if (const auto errors = s.gpu.ecc_errors(); errors && s.ecc_before) out.ecc_errors = *errors - *s.ecc_before;
  if (energy && s.energy_before && *energy > *s.energy_before) {
    out.joules = *energy - *s.energy_before;
    out.energy_source = "counter";
  } else if (out.power > 0) {
    out.joules = out.power * out.seconds;
    out.energy_source = "power";
  }
  return out;
}

std::string throttle_text(std::uint64_t reasons) {
  std::string out;
  for (const Named& one : kReasons) {
    if ((reasons & static_cast<std::uint64_t>(one.reason)) != 0)
      out += fmt::format("{}{}", out.empty() ? "" : ", ", one.name);
  }
  return out;
}

std::string remarks_on(const GpuRun& run) {
  std::string out;
  const auto add = [&out](const std::string& text) { out += (out.empty() ? "" : "; ") + text; };
  if (run.sm_clock_max > 0 && run.sm_clock_min < (1 - kSteadyClocks) * run.sm_clock_max)
    add(fmt::format("clocks moved: {} to {} MHz", run.sm_clock_min, run.sm_clock_max));
  if (const std::string reasons = throttle_text(run.throttle); !reasons.empty()) add("held back by: " + reasons);
  if (run.ecc_errors > 0) add(fmt::format("{} memory errors", run.ecc_errors));
  return out;
}

}  // namespace nibble
