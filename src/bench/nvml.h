// A GPU as the driver's management library (NVML) sees it: what is in use of its memory, and by whom, its clocks, power
// and temperature, and why it runs slower than it could. The library comes with the driver and is loaded at run time,
// so that nothing of CUDA is needed to build this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace nibble {

/// What does not change while a benchmark runs; text is empty and numbers are 0 where the driver does not say.
struct GpuDescription {
  std::string name;
  std::string bus;           // PCI address
  std::string driver;        // version of the driver: "580.95.05"
  std::string cuda;          // the newest CUDA version that the driver runs: "13.0"
  int sm_clock_max = 0;      // MHz
  int memory_clock_max = 0;  // MHz
  double power_limit = 0;    // W, as enforced now
  std::size_t memory = 0;    // bytes
};

/// Every query is answered with nothing where the GPU or its driver does not know.
class NvmlDevice {
 public:
  /// The GPU at this PCI address ("0000:1b:00.0"). Nothing where there is no NVML or no such GPU; `why` then says so in
  /// words. The environment variable NIBBLE_NVML_LIBRARY names another file than the driver's.
  static std::optional<NvmlDevice> find(const std::string& bus, std::string* why = nullptr);

  GpuDescription describe() const;

  /// Bytes in use on the GPU, by everybody and the driver itself.
  std::optional<std::size_t> used_memory() const;
  /// Bytes that this process holds, its context included. Nothing where the driver does not list it: before it has a
  /// context, and in containers and virtual machines whose processes have other numbers than the driver sees.
  std::optional<std::size_t> used_by_this_process() const;

  std::optional<int> sm_clock() const;             // MHz
  std::optional<double> power() const;             // W
  std::optional<int> temperature() const;          // degrees Celsius
  std::optional<double> energy() const;            // J since the driver was loaded
  std::optional<std::int64_t> ecc_errors() const;  // corrected and not, since the driver was loaded
  /// Bits of ThrottleReason.
  std::optional<std::uint64_t> throttle_reasons() const;

 private:
  struct Library;
  NvmlDevice(std::shared_ptr<const Library> library, void* handle, std::string bus)
      : library_(std::move(library)), handle_(handle), bus_(std::move(bus)) {}

  std::shared_ptr<const Library> library_;
  void* handle_;
  std::string bus_;
};

/// Why a GPU's clocks are not at their highest, as NVML numbers the reasons.
enum class ThrottleReason : std::uint64_t {
  idle = 0x1,
  application_clocks = 0x2,  // a user has set the clocks
  power_cap = 0x4,           // the power limit
  hardware_slowdown = 0x8,   // the board slows down: heat, power brake
  sync_boost = 0x10,         // in step with other GPUs
  software_thermal = 0x20,   // the driver slows it down: heat
  hardware_thermal = 0x40,   // the board slows it down: heat
  power_brake = 0x80,        // the server's power supply asks for it
  display_clocks = 0x100,
};

}  // namespace nibble
