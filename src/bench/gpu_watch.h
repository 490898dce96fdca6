// What a GPU does while a case runs: how much of its memory the process takes, and, while it is timed, whether the
// clocks stand still. A benchmark whose clocks move measures the cooling.
#pragma once

#include "bench/nvml.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace nibble {

/// The most of the GPU's memory that this process took.
struct GpuMemory {
  std::size_t bytes = 0;
  /// "process": what the driver lists for this process. "device": what was in use on the whole GPU less what was before
  /// the process opened it, where the driver does not list the process. Empty: not known.
  std::string source;
};

/// Watches from a thread of its own, every 20 ms; to be stopped before anything is timed.
class GpuMemoryWatch {
 public:
  /// `used_before`: bytes in use on the whole GPU before this process opened it.
  GpuMemoryWatch(NvmlDevice gpu, std::size_t used_before);
  ~GpuMemoryWatch();
  GpuMemoryWatch(const GpuMemoryWatch&) = delete;
  GpuMemoryWatch& operator=(const GpuMemoryWatch&) = delete;

  /// Takes a last sample and ends the sampling; may be called again.
  void stop();
  /// The peak of all samples so far. To be called after stop().
  GpuMemory peak() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// One look.
GpuMemory gpu_memory_now(const NvmlDevice& gpu, std::size_t used_before);

/// What the GPU did while it was timed. Zeros and empty where the driver does not say.
struct GpuRun {
  std::int64_t samples = 0;
  int sm_clock_min = 0;  // MHz
  int sm_clock_max = 0;
  double power = 0;             // W, the mean of the samples
  int temperature = 0;          // degrees Celsius, the highest
  std::uint64_t throttle = 0;   // bits of ThrottleReason: any that was seen
  std::int64_t ecc_errors = 0;  // that came
  double seconds = 0;           // from the first to the last look
  double joules = 0;            // over these seconds
  std::string energy_source;    // "counter": the GPU's own; "power": mean power times time; empty: none
};

/// Watches clocks, power, temperature and throttle reasons from a thread of its own, every 25 ms, which costs it some
/// microseconds of another core than the one that enqueues work.
class GpuRunWatch {
 public:
  explicit GpuRunWatch(NvmlDevice gpu);
  ~GpuRunWatch();
  GpuRunWatch(const GpuRunWatch&) = delete;
  GpuRunWatch& operator=(const GpuRunWatch&) = delete;

  /// Ends the sampling and says what was seen since construction. To be called once.
  GpuRun finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// "power cap, thermal slowdown (software)"; empty for none. Being idle and clocks that a user has set are no reasons
/// worth a word.
std::string throttle_text(std::uint64_t reasons);

/// What makes a row's times doubtful, as text: clocks that moved by more than 2%, the reasons why the GPU ran slower
/// than it could (the power cap among them), memory errors. Empty where there is nothing to say.
std::string remarks_on(const GpuRun& run);

}  // namespace nibble
