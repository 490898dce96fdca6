// Small models for the quantiser's tests, made by synthesise(), and how well they predict.
#pragma once

#include "engine/engine.h"
#include "formats/checkpoint.h"
#include "quant/random.h"
#include "quant/synth.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <filesystem>
#include <memory>
#include <vector>

namespace nibble::test {

/// A config with grouped heads, sizes that differ from each other, and two blocks.
inline nlohmann::ordered_json small_config(const char* model_type = "llama", bool tied = false) {
  return {{"model_type", model_type},       {"hidden_size", 64},
          {"intermediate_size", 160},       {"num_hidden_layers", 2},
          {"num_attention_heads", 4},       {"num_key_value_heads", 2},
          {"max_position_embeddings", 256}, {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},          {"vocab_size", 128},
          {"tie_word_embeddings", tied},    {"hidden_act", "silu"}};
}

inline std::vector<std::vector<std::int32_t>> random_sequences(std::size_t count, std::size_t length,
                                                               std::uint64_t vocab, std::uint64_t seed) {
  std::vector<std::vector<std::int32_t>> out(count);
  for (std::size_t s = 0; s < count; ++s) {
    for (std::size_t i = 0; i < length; ++i)
      out[s].push_back(static_cast<std::int32_t>(random_bits(seed, s, i) % vocab));
  }
  return out;
}

/// Logits of every row of every sequence, one after the other.
inline std::vector<float> all_logits(const std::filesystem::path& folder,
                                     const std::vector<std::vector<std::int32_t>>& sequences) {
  EngineOptions options;
  options.kernel = "reference";
  options.compute = DType::f32;
  options.max_tokens = 256;
  options.prefill_chunk = 64;
  options.max_logit_rows = 64;
  Engine engine(std::make_shared<const Checkpoint>(folder), options);
  std::vector<float> out;
  for (const auto& sequence : sequences) {
    engine.score(sequence, 0, [&](std::int64_t, std::int64_t rows, const float* logits) {
      out.insert(out.end(), logits, logits + rows * engine.program().vocab);
    });
  }
  return out;
}

/// The mean Kullback-Leibler divergence of a model's predictions from those of the model that it was made from.
inline double divergence(const std::vector<float>& from, const std::vector<float>& to, std::size_t vocab) {
  double sum = 0;
  const std::size_t rows = from.size() / vocab;
  for (std::size_t r = 0; r < rows; ++r) {
    const float* p = from.data() + r * vocab;
    const float* q = to.data() + r * vocab;
    double zp = 0;
    double zq = 0;
    for (std::size_t i = 0; i < vocab; ++i) {
      zp += std::exp(static_cast<double>(p[i]));
      zq += std::exp(static_cast<double>(q[i]));
    }
    for (std::size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(p[i])) / zp * (p[i] - q[i]);
    sum += std::log(zq) - std::log(zp);
  }
  return sum / static_cast<double>(rows);
}

}  // namespace nibble::test
