// Resizing with antialiasing, bit for bit as Pillow 13 does it to 8-bit images.
#pragma once

#include "inputs/image.h"

namespace nibble {

/// The numbers are Pillow's, which preprocessor_config.json uses.
enum class Resample { bilinear = 2, bicubic = 3 };

/// The image in another size. Each side is a convolution whose filter widens with the ratio where the image shrinks,
/// rounded to 8 bits. Rows come first; where the height loses more than twice as many pixels as the width, columns do
/// (the order moves few values, by 1). Error where the result, or what lies between the two steps, has more than
/// kMaxImagePixels.
Image resize(const Image& image, std::int64_t width, std::int64_t height, Resample resample);

}  // namespace nibble
