// Matrices as the tensor memory accelerator (tma.cuh) knows them.
#pragma once

#include "core/dtype.h"

#include <cuda.h>

#include <cstdint>

namespace nibble {

constexpr int kMapColumns = 64;  // of a tile: 128 bytes, the width of the swizzle

/// A row-major matrix of f16 or bf16 (`stride` in elements; address and rows at multiples of 16 bytes) in tiles of
/// `tile_rows` rows and kMapColumns columns, which come with 128-byte swizzle.
CUtensorMap matrix_map(const void* data, DType type, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                       int tile_rows);

}  // namespace nibble
