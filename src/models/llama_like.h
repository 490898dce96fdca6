// What Llama's relatives share in their config.json.
#pragma once

#include "formats/json.h"
#include "models/decoder.h"

namespace nibble {

/// Values that a family uses where its config.json says nothing.
struct LlamaDefaults {
  std::int64_t max_positions = 2048;
  double rope_theta = 10000;
  double norm_eps = 1e-6;
  std::int64_t kv_heads = 0;  // 0: as many as heads
  std::int64_t head_dim = 0;  // 0: hidden_size / heads
  bool tied = false;
};

/// Reads the fields that all of them have; windows are set to none.
DecoderSpec read_llama_like(const JsonView& config, const LlamaDefaults& defaults);

/// Qwen's rule: with use_sliding_window, layers from max_window_layers (default 28) on see only sliding_window keys.
void apply_late_window(const JsonView& config, DecoderSpec& spec);

}  // namespace nibble
