// The kernels that self_attention() is put together from.
#pragma once

#include "core/cuda/cuda_device.h"
#include "ops/backend.h"

#include <cstddef>

namespace nibble::cuda {

/// Tiles of rows of a sequence on tensor cores; q, k, v and y all f16 or all bf16, heads of up to 256.
void self_attend_tiles(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream);

/// The same on Hopper's tensor cores, for what takes_wgmma(): compute capability 9.0, heads of 64, no bias, addresses
/// and rows at multiples of 16 bytes.
bool takes_wgmma(const SelfAttentionArgs& args, const CudaDevice& device);
void self_attend_wgmma(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream);
struct AttentionOfRows;
constexpr int kTeamRows = 128;  // that self_attend_teams() takes at a time
/// What self_attend_wgmma() becomes with many rows.
void self_attend_teams(const SelfAttentionArgs& args, const AttentionOfRows& p, int multiprocessors,
                       CudaStream& stream);

/// The same in float arithmetic on q, k, v and y of f32.
void self_attend_f32(const SelfAttentionArgs& args, const CudaDevice& device, CudaStream& stream);

/// Whole matrices of scores between products of cuBLASLt; sequences of SelfAttentionArgs::length rows each.
void self_attend_whole(const SelfAttentionArgs& args, CudaStream& stream);
std::size_t self_attend_whole_workspace(const SelfAttentionShape& shape);

}  // namespace nibble::cuda
