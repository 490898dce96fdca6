// What the vision transformers share in their config.json and their tensor names.
#pragma once

#include "formats/json.h"
#include "models/encoder.h"

#include <string_view>
#include <vector>

namespace nibble {

/// Reads the fields that they share, and fills in names as ViT has them below `prefix` ("vit."): patches, blocks, the
/// final norm, and the pooler where the architecture is the bare model. `leading` are the tokens before the patches, by
/// the ends of their names. Classification heads are left to the family.
EncoderSpec read_vit_like(const JsonView& config, std::string_view prefix,
                          const std::vector<std::string_view>& leading);

/// image_size, patch_size and num_channels: integers, of which the first two mean squares.
ImageShape read_image_shape(const JsonView& config, std::int64_t size, std::int64_t patch);

}  // namespace nibble
