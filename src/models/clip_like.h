// CLIP's two encoders: the fields and tensor names that they have alone and in a checkpoint of both.
#pragma once

#include "formats/json.h"
#include "models/encoder.h"

#include <optional>

namespace nibble {

/// The encoder of text; a text is the row of its last token, projected to `projection` columns where that is given.
EncoderSpec read_clip_text(const JsonView& config, std::optional<std::int64_t> projection);

/// The encoder of images; an image is its class token behind a norm, projected to `projection` columns where that is
/// given. The hidden state is without that norm.
EncoderSpec read_clip_vision(const JsonView& config, std::optional<std::int64_t> projection);

/// The columns of a model that is published alone: projection_dim where its architecture is the one with a projection.
std::optional<std::int64_t> clip_projection(const JsonView& config);

}  // namespace nibble
