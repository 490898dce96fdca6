// q, k and v of short sequences, and their attention, in one kernel on Hopper's tensor cores.
#pragma once

#include "core/cuda/cuda_device.h"
#include "core/dtype.h"
#include "kernels/linear_kernel.h"

#include <cstdint>

namespace nibble {

/// y[rows, heads * head_dim] = softmax(scale * q k^T) v of the rows of each sequence to one another, where q, k and v,
/// rounded to `type` (f16 or bf16), are x[rows, k] times the three [heads * head_dim, k] parts of w, plus bias.
struct TileAttention {
  std::int64_t rows = 0;
  std::int64_t k = 0;
  std::int64_t head_dim = 64;
  DType type = DType::f16;
  const void* x = nullptr;
  std::int64_t x_stride = 0;   // elements
  const void* w = nullptr;     // the parts one below the other, [3 * heads * head_dim, k]
  const void* bias = nullptr;  // [3 * heads * head_dim] or null
  void* y = nullptr;
  std::int64_t y_stride = 0;
  SiteAttention attention;
};

/// Whether the kernel has heads of this size, of a site of so many inputs and so many heads.
bool attends_in_tiles(std::int64_t inputs, std::int64_t heads, std::int64_t head_dim);

/// The most tiles for which it is faster than q, k and v and attention by themselves, on a GPU of so many
/// multiprocessors; `width` is that of q.
std::int64_t most_attended_tiles(std::int64_t inputs, std::int64_t width, int multiprocessors);

/// Enqueues it; neither allocates nor waits. Error where addresses or rows are not at multiples of 16 bytes.
void attend_in_tiles(const TileAttention& args, CudaStream& stream);

}  // namespace nibble
