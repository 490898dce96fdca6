// Attention by itself, without a cache: whole matrices of scores against tiles.
#pragma once

#include "ops/backend.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class AttentionMask {
  none,
  causal,
  padding,  // lengths spread evenly from 1 to `length`: the fused way leaves out what is padding
};
std::string_view name_of(AttentionMask mask);
/// "none", "causal" or "padding"; UsageError for other names.
AttentionMask attention_mask_named(std::string_view name);

struct AttentionCase {
  std::int64_t batch = 1;
  std::int64_t length = 128;
  std::int64_t heads = 12;
  std::int64_t head_dim = 64;
  AttentionMask mask = AttentionMask::none;
  DType compute = DType::f32;
};

struct AttentionWay {
  std::vector<double> seconds;
  std::size_t workspace = 0;  // bytes of scratch, matrices of scores among them
};

struct AttentionResult {
  std::string error;  // why there are no figures; empty where there are
  AttentionWay math, fused;
  double difference = 0;  // of both ways' outputs, rows of padding left out: the largest, of the largest value
  double flops = 0;       // of the pairs of rows that see each other
};

/// Runs both ways on random q, k and v, compares what comes out, and times them in turns for about `seconds`, after one
/// call each that is not counted. A case whose ways disagree is not timed.
AttentionResult time_attention(const AttentionCase& attention, Backend& backend, double seconds);

}  // namespace nibble
