// How labels are printed.
#pragma once

#include "engine/text_heads.h"

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <span>
#include <string>

namespace nibble {

/// What a classifier's logits say of one text or image: its `top_k` best labels, all where that is 0; as_json: added to
/// `json` as "labels", on one line, else below `name`.
std::string label_lines(nlohmann::ordered_json json, const std::string& name, std::span<const float> logits,
                        const Labels& labels, std::size_t top_k, bool as_json);

}  // namespace nibble
