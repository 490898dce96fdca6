#include "bench/open_device.h"

#include "bench/gpu_watch.h"
#include "core/clock.h"
#include "engine/configuration.h"
#include "ops/cuda_loader.h"

#include <chrono>

namespace nibble {

OpenedDevice open_device(const EngineOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  OpenedDevice out;
  const DeviceChoice choice = choose_device(options.device);
  double watching = 0;
  if (choice.kind == DeviceKind::cuda) {
    const std::string bus = cuda_device_bus(choice.index);
    const auto looking = std::chrono::steady_clock::now();
    out.nvml = NvmlDevice::find(bus, &out.nvml_missing);
    if (out.nvml) out.used_before = out.nvml->used_memory().value_or(0);
    watching = seconds_since(looking);
  }
  out.backend = make_backend(options);
  out.seconds = seconds_since(start) - watching;
  if (out.nvml) out.context = gpu_memory_now(*out.nvml, out.used_before).bytes;
  return out;
}

}  // namespace nibble
