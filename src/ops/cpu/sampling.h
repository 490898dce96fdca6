// The choice of the next token. Every result is a function of the row's logits and parameters alone: neither the number
// of threads nor the rest of the batch changes it.
#pragma once

#include "ops/backend.h"
#include "ops/cpu/op_table.h"

namespace nibble::cpu {

/// Scratch bytes for `rows` rows.
std::size_t sample_workspace(std::int64_t rows);

/// Runs on every thread of a parallel region.
void sample_task(const SampleArgs& args, const OpTable& ops, int thread, int threads);

}  // namespace nibble::cpu
