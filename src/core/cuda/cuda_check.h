// Every CUDA call's result is looked at: an error becomes a sentence.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

namespace nibble {

/// Throws Error "CUDA: <what>: <the runtime's words>" where `status` is not success.
void check_cuda(cudaError_t status, std::string_view what);

}  // namespace nibble
