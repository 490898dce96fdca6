// The two kernels behind tile_gemm.h.
#pragma once

#include "kernels/cuda/tile_gemm.h"
#include "kernels/cuda/tile_parts.cuh"

namespace nibble::tile {

constexpr int kLeastWideColumns = 192;
constexpr int kWideLeastSteps = 8;  // of k

/// Tiles of x and of w as the copy engine knows them.
struct TileMaps {
  CUtensorMap x;
  CUtensorMap w;
};

/// Boxes of kDepth elements of k and so many rows of x and of w.
TileMaps maps_of(const TileGemm& gemm, int x_rows, int w_rows);
Output output_of(const TileGemm& gemm);

void enqueue_wide(const TileGemm& gemm, const TilePlan& plan, int multiprocessors, CudaStream& stream);
void enqueue_few(const TileGemm& gemm, const TilePlan& plan, int multiprocessors, CudaStream& stream);

}  // namespace nibble::tile
