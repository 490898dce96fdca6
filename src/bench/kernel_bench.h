// A linear kernel timed by itself, beyond the caches.
#pragma once

#include "kernels/linear_kernel.h"
#include "kernels/random_site.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nibble {

struct KernelTiming {
  std::int64_t rows = 0;
  std::string error;    // why there is no time; empty where there is
  double seconds = 0;   // a call, the median of the rounds
  double least = 0;     // the best round
  double verified = 0;  // error as a share of the kernel's bound
  Cost cost;
};

/// Verifies `kernel` on the site (kernels/verify.h) and times it for each number of rows. Calls run from a captured
/// graph over as many copies of the weights as exceed `cold_bytes`, so that none comes from a cache; at least 30
/// rounds of some milliseconds.
std::vector<KernelTiming> time_kernel(const LinearKernel& kernel, const RandomSite& random,
                                      std::span<const std::int64_t> rows, std::size_t cold_bytes, Device& device);

}  // namespace nibble
