#pragma once

#include "engine/encoder.h"
#include "inputs/image_processor.h"

#include <span>
#include <string>
#include <vector>

namespace nibble {

/// Reads image files, JPEG or PNG, as one batch for a model of so many channels; `pixels` holds its values. Error
/// naming the file that cannot be read, or that does not become as large as those before it.
ImageBatch read_image_batch(std::span<const std::string> files, const ImageProcessor& processor, std::int64_t channels,
                            std::vector<float>& pixels);

}  // namespace nibble
