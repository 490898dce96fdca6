#pragma once

#include "cli/encoder_options.h"

#include <cstddef>
#include <string>
#include <vector>

namespace nibble {

/// Prints the best labels (0: all) of image files, JPEG or PNG, in their order, as text or a line of JSON each. Error
/// naming the file that cannot be read, and for a model without a classifier of images.
int classify_images(const EncoderModelOptions& model, const std::vector<std::string>& files, std::size_t top_k,
                    bool as_json);

}  // namespace nibble
