// Which way up a camera held its picture.
#pragma once

#include "inputs/image.h"

#include <cstddef>
#include <span>

namespace nibble {

/// The orientation that an APP1 segment of a JPEG file (what follows its length) says by Exif: 1 (as it is) to 8. 1 for
/// segments that are something else, damaged or silent.
int exif_orientation(std::span<const std::byte> segment);

/// The image as it is to be seen where a camera says `orientation`; 1 leaves it as it is.
Image turned(Image image, int orientation);

}  // namespace nibble
