// What wav2vec 2.0's relatives share in their config.json and their tensor names.
#pragma once

#include "formats/json.h"
#include "models/encoder.h"

#include <string_view>

namespace nibble {

/// Reads the fields that they share, and fills in names as they have them below `prefix` ("wav2vec2."): convolutions
/// over samples ("group" norm: one over time behind the first; "layer" norm: one a frame behind each), the projection
/// of features, the positional convolution, blocks in post-norm, or pre-norm with do_stable_layer_norm. Heads are left
/// out: the result is the hidden state. Throws Error for adapters, which are not read.
EncoderSpec read_wav2vec2_like(const JsonView& config, std::string_view prefix);

}  // namespace nibble
