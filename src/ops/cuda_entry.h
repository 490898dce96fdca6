// What nibble's CUDA library hands to the program that loads it: `extern "C" const CudaEntry* nibble_cuda_entry()`.
#pragma once

#include "ops/backend.h"

#include <memory>
#include <string>

namespace nibble {

struct CudaEntry {
  const char* version = nullptr;  // NIBBLE_VERSION of the build: both must be of one
  /// GPUs that can be used; where none, `why` says why.
  int (*count)(std::string& why) = nullptr;
  std::unique_ptr<Backend> (*open)(int index) = nullptr;
  /// The GPU's PCI address, found without making a context on it.
  std::string (*bus)(int index) = nullptr;
};

}  // namespace nibble
