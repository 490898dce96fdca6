#pragma once

namespace nibble {

/// Seconds that each part of loading took.
struct LoadTimes {
  double open = 0;    // config, headers, plan
  double read = 0;    // waiting for tensors to be read and decoded; on a GPU that is done ahead on other threads
  double pack = 0;    // into the kernels' layouts; on a GPU allocating, and what packing is not done while it uploads
  double upload = 0;  // waiting for copies to the GPU: reading mapped files, and packing that uses the same memory
  double tune = 0;    // measuring for --kernel auto, once a machine and build
  double total = 0;   // from opening to ready, without tune
};

}  // namespace nibble
