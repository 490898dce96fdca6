// Attention over a bf16 cache with AMX tiles.
#pragma once

#include "ops/cpu/op_table.h"

namespace nibble::cpu {

/// Whether the shape suits: head_dim a multiple of 32, and enough rows.
bool amx_takes(const AttendArgs& args);
/// As AttentionKernel::attend_tile, with q as floats; acc has room for kMaxQueryRows rows, of which it may write all.
void attend_amx(const AttendArgs& args);

}  // namespace nibble::cpu
