// Attention of a sequence's rows to one another on the CPU (SelfAttentionArgs).
#pragma once

#include "core/cpu_device.h"
#include "ops/backend.h"
#include "ops/cpu/op_table.h"

#include <cstddef>

namespace nibble::cpu {

/// Scratch bytes for `parts` threads.
std::size_t self_attention_workspace(const SelfAttentionShape& shape, int parts);

/// `parts` as the workspace was asked for; shapes of the matrices are right.
void self_attention(const SelfAttentionArgs& args, const OpTable& ops, int parts, CpuStream& stream);

}  // namespace nibble::cpu
