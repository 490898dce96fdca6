#pragma once

#include "formats/checkpoint.h"

#include <cstdint>
#include <vector>

namespace nibble {

/// The tokens that end a sequence: eos_token_id (one or a list) of generation_config.json, else of config.json.
std::vector<std::int32_t> stop_tokens(const Checkpoint& checkpoint);

}  // namespace nibble
