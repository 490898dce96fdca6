// How tests ask for an encoder on the GPU.
#pragma once

#include "engine/encoder.h"

namespace nibble::test {

/// The other options as they are by default: set what a test is about.
inline EncoderOptions on_gpu(EncoderPath path, DType compute) {
  EncoderOptions options;
  options.device = "cuda";
  options.path = path;
  options.compute = compute;
  return options;
}

}  // namespace nibble::test
