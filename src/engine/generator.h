// Text generation over an engine: many sequences, stop tokens, streaming.
#pragma once

#include "engine/engine.h"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace nibble {

struct GenerateOptions {
  std::int64_t max_new_tokens = 256;
  std::vector<std::int32_t> stop_tokens;  // a sequence ends when it chooses one of these
  bool ignore_stop = false;               // exactly max_new_tokens, as the benchmark does
  SampleParams sampling;
  /// Called as tokens are chosen: sequence, token. May throw to end the run.
  std::function<void(std::int64_t sequence, std::int32_t token)> on_token;
};

struct Generation {
  std::vector<std::vector<std::int32_t>> tokens;  // new ones, one list a prompt; a stop token is its last one
  double prefill_seconds = 0;                     // until the first token of every sequence is chosen
  std::vector<double> step_seconds;               // each further step
  double total_seconds = 0;
};

/// Runs all prompts together, ragged, without padding.
Generation generate(Engine& engine, std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options);

}  // namespace nibble
