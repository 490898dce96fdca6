// Attention without a cache as op-by-op programs have it: all scores of a pass as matrices in memory, between two
// batched products of a library.
#pragma once

#include "core/cpu_device.h"
#include "ops/backend.h"
#include "ops/cpu/op_table.h"

#include <cstddef>

namespace nibble::cpu {

/// As self_attention_workspace() and self_attention(), which call these.
std::size_t materialised_workspace(const SelfAttentionShape& shape, int parts);
void materialised_attention(const SelfAttentionArgs& args, const OpTable& ops, int parts, CpuStream& stream);

}  // namespace nibble::cpu
