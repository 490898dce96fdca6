// A device opened as the benchmark does it: what it costs to have it at all is measured.
#pragma once

#include "bench/nvml.h"
#include "engine/engine.h"

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

namespace nibble {

struct OpenedDevice {
  std::unique_ptr<Backend> backend;
  double seconds = 0;  // until it could be used; on a GPU: loading nibble's CUDA library, making the context
  std::optional<NvmlDevice> nvml;  // of a GPU, where there is NVML
  std::string nvml_missing;        // why there is none; empty on the CPU
  std::size_t used_before = 0;     // bytes in use on the whole GPU before
  std::size_t context = 0;         // bytes that the context took: no plan can do without them. 0: not known
};

/// Opens EngineOptions::device. The context of a GPU is measured by the first call of a process only.
OpenedDevice open_device(const EngineOptions& options);

}  // namespace nibble
