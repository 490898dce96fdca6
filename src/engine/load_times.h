#pragma once

namespace nibble {

/// Seconds that each part of loading took.
struct LoadTimes {
  double open = 0;   // config, headers, plan
  double read = 0;   // reading tensors and decoding the format
  double pack = 0;   // into the kernels' layouts
  double tune = 0;   // measuring for --kernel auto, once a machine and build
  double total = 0;  // from opening to ready, without tune
};

}  // namespace nibble
