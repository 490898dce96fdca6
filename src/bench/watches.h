// What watches a case's process.
#pragma once

#include "bench/gpu_watch.h"
#include "bench/memory.h"
#include "bench/nvml.h"

#include <optional>

namespace nibble {

/// The memory of the process, and of its GPU where there is one, until the warm-up is over.
struct Watches {
  MemoryWatch host;
  std::optional<NvmlDevice> gpu;
  std::optional<GpuMemoryWatch> gpu_memory;

  void stop() {
    host.stop();
    if (gpu_memory) gpu_memory->stop();
  }
};

}  // namespace nibble
