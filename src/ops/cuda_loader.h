// The CUDA back end is a shared library of its own, so that one `nibble` runs on machines with and without a GPU. It is
// looked for as NIBBLE_CUDA_LIBRARY says, then beside the program, then where `make install` puts it.
#pragma once

#include "ops/backend.h"

#include <memory>
#include <string>

namespace nibble {

/// GPUs that can be used (CUDA_VISIBLE_DEVICES is obeyed). Where there is none, 0, and `why` says what is missing: the
/// library, a driver, a GPU.
int cuda_device_count(std::string* why = nullptr);

/// The PCI address of GPU `index`, without making a context on it: what it holds before can still be asked for. Throws
/// Error that says what is missing.
std::string cuda_device_bus(int index);

/// The back end for GPU `index`; its kernels are in the registry from then on. Throws Error that says what is missing.
std::unique_ptr<Backend> make_cuda_backend(int index);

}  // namespace nibble
