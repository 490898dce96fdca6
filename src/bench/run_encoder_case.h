// One measurement of an encoder for `bench gptq`: forward passes of whole sequences, in place of generation.
#pragma once

#include "bench/bench_case.h"
#include "bench/run_case.h"
#include "formats/checkpoint.h"

#include <memory>
#include <string_view>
#include <vector>

namespace nibble {

/// The tasks of encoders that optimum's --task names; text-generation is that of decoders.
const std::vector<std::string_view>& encoder_tasks();

/// As run_case(): verified, one pass to warm up, then num_batches timed ones over batch_size sequences of prompt_length
/// random tokens, by the fast path. A pass is counted as the one token that it is asked for. UsageError for a
/// perplexity.
BenchResult run_encoder_case(const BenchCase& bench_case, const std::shared_ptr<const Checkpoint>& checkpoint,
                             const CaseProgress& progress);

}  // namespace nibble
