// Attention's reference inner loops, in float, one score at a time; any head_dim.
#pragma once

#include "ops/cpu/op_table.h"

namespace nibble::cpu::scalar {

void prepare_q(const float* q, std::int64_t stride, int rows, std::int64_t head_dim, float factor, void* out);
void attend_f32(const AttendArgs& args);
void attend_f16(const AttendArgs& args);
void attend_bf16(const AttendArgs& args);

}  // namespace nibble::cpu::scalar
