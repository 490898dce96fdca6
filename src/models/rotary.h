// Rotary positions as Hugging Face configs describe them.
#pragma once

#include "formats/json.h"
#include "models/program.h"

namespace nibble {

/// Reads rope_theta and rope_scaling (transformers 4), or rope_parameters (transformers 5): types default, linear,
/// dynamic, yarn and llama3, with the formulas of transformers' modeling_rope_utils. Throws Error for any other type.
/// `head_dim`: of the model; `max_positions`: max_position_embeddings; `default_theta`: the family's.
RotarySpec read_rotary(const JsonView& config, std::int64_t head_dim, std::int64_t max_positions, double default_theta);

}  // namespace nibble
