// Attention's division into tasks and their order; the inner loops are the op table's.
//
// A sequence with one row (decode) is divided by (sequence, kv head) and, along the keys, into chunks of a fixed length
// whose partial results are merged in their order: so results depend neither on the number of threads nor on the rest
// of the batch. A sequence with more rows (prefill) is divided by (head, tile of query rows).
#pragma once

#include "ops/backend.h"
#include "ops/cpu/op_table.h"

namespace nibble::cpu {

/// Scratch bytes for sequences of one row, shared by up to `parts` threads.
std::size_t attention_workspace(std::int64_t rows, std::int64_t heads, const KvView& cache, int parts);

/// Runs on every thread of a parallel region. parts: as given to attention_workspace, or fewer.
void attention_task(const AttentionArgs& args, const OpTable& ops, int parts, int thread, int threads);

}  // namespace nibble::cpu
