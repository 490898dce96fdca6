#pragma once

namespace nibble {

/// Seconds that each part of loading took.
struct LoadTimes {
  double open = 0;    // config, headers, plan
  double read = 0;    // reading tensors and decoding the format
  double pack = 0;    // into the kernels' layouts; on a GPU with the upload, where that is not measured by itself
  double upload = 0;  // copying to the GPU, where it is measured by itself
  double tune = 0;    // measuring for --kernel auto, once a machine and build
  double total = 0;   // from opening to ready, without tune
};

}  // namespace nibble
