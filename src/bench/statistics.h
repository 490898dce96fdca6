// What a handful of measurements say.
#pragma once

#include <cstddef>
#include <span>

namespace nibble {

struct Statistics {
  std::size_t count = 0;
  double mean = 0;
  double median = 0;
  double stddev = 0;  // of the sample: divided by count - 1; 0 for one measurement
  double p95 = 0;     // linear between the two closest ranks, as numpy.percentile has it by default
  double min = 0;
  double max = 0;
};

/// All zero where there are no samples.
Statistics statistics_of(std::span<const double> samples);

}  // namespace nibble
