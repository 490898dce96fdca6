// How fast this machine reads memory: the limit that a decode step, which reads every weight once, is measured against.
#pragma once

#include <cstddef>

namespace nibble {

struct ReadBandwidth {
  double bytes_per_second = 0;  // the best pass
  std::size_t footprint = 0;    // bytes read a pass
  int threads = 0;
  int passes = 0;
};

/// Reads `footprint` bytes again and again with all threads of the pool, each its own contiguous part, for about
/// `seconds` (and at least 3 passes after one that is not counted). Memory is in huge pages where the system has them,
/// as the weights of kernels are. The best pass counts: others were disturbed. Throws Error when there is not so much
/// memory.
ReadBandwidth measure_read_bandwidth(std::size_t footprint, double seconds);

/// A footprint beyond the caches: 8 times the last level, at least 256 MiB and at most 1 GiB, nor more than a quarter
/// of the memory that is free now. (A virtual machine may name a last level of which it has but a share.)
std::size_t memory_footprint();

}  // namespace nibble
