// The kernel `dense` with a choice that tests and micro benchmarks make.
#pragma once

#include "kernels/linear_kernel.h"

#include <memory>

namespace nibble {

/// Where `dense` leaves products of many rows to oneDNN: nowhere, where that was measured to be faster, or wherever it
/// can.
enum class LibraryUse { never, where_faster, wherever_possible };

std::unique_ptr<LinearKernel> make_dense(LibraryUse use);

/// Rows that one call of the library takes; what is left of a call's rows is multiplied here.
inline constexpr std::int64_t kLibraryRows = 256;

}  // namespace nibble
