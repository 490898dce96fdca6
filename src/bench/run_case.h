// Makes one measurement in this process.
#pragma once

#include "bench/bench_case.h"

#include <functional>
#include <string_view>

namespace nibble {

/// What is being done, and how much of the case is done, 0 to 1.
using CaseProgress = std::function<void(std::string_view what, double share)>;

/// Opens the model, verifies the kernels on its weights, loads it, and measures as optimum's benchmark does: prompts of
/// random ids in [1, vocab - 2], greedy, exactly new_tokens (no token ends a sequence), one generation that is not
/// counted, then num_batches that are. Then, if asked for, the perplexity. Peak memory is that of this process, so a
/// process should run one case. Throws Error with what went wrong.
BenchResult run_case(const BenchCase& bench_case, const CaseProgress& progress);

}  // namespace nibble
