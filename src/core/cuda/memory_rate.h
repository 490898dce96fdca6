// How fast a GPU's memory is, measured on the GPU itself.
#pragma once

#include "core/cuda/cuda_device.h"

#include <cstddef>

namespace nibble {

/// As Device::measure_memory_rate.
MemoryRate cuda_memory_rate(CudaDevice& device, std::size_t footprint);

}  // namespace nibble
