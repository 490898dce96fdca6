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

/// A number in [0, 1): the upper 53 bits of mix(mix(position) ^ seed), where mix is splitmix64's output function:
/// z += 0x9e3779b97f4a7c15; z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9; z = (z ^ z >> 27) * 0x94d049bb133111eb; z ^ z
/// >> 31.
double sample_uniform(std::uint64_t seed, std::int64_t position);

}  // namespace nibble::cpu
