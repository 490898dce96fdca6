// What a device could do at best, measured: rows are held against it.
#pragma once

#include "core/device.h"
#include "kernels/linear_kernel.h"

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

/// Rates of the kernel `dense` on a product that is large enough to be bound by arithmetic, in operations a second (a
/// multiply-add is two). 0: the device does not multiply in that type.
struct GemmRates {
  double f32 = 0;
  double bf16 = 0;
  double f16 = 0;

  /// By the type's name; 0 for others.
  double of(std::string_view dtype) const;
};

struct DeviceCeilings {
  MemoryRate memory;  // zeros on the CPU, which measure_read_bandwidth() measures
  GemmRates gemm;
};

/// Multiplies 1024 rows by 2048 x 2048 on the CPU, 8192 by 8192 x 8192 on a GPU; the best of several tries. Lets a GPU
/// rest after it.
GemmRates measure_gemm_rates(Device& device);

/// Takes a second or two on a GPU.
DeviceCeilings measure_ceilings(Device& device);

/// The least time that a pass can take, and what sets it.
struct Floor {
  double seconds = 0;  // 0: a rate is not known
  std::string bound;   // "memory" where moving the bytes takes longer, "compute" where the arithmetic does
};
Floor floor_of(const Cost& cost, double bytes_per_second, double flops_per_second);

}  // namespace nibble
