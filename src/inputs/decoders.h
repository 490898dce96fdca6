// The decoders behind decode_image(). Both libraries report errors by a jump out of the call: each decoder owns all
// that a jump must not leave behind, and jumps only over functions whose variables need no destructor.
#pragma once

#include "inputs/image.h"

#include <span>
#include <string_view>

namespace nibble {

Image decode_jpeg(std::span<const std::byte> file, std::string_view where);
Image decode_png(std::span<const std::byte> file, std::string_view where);

/// Takes the room for an image of this size; Error beyond the limits.
Image sized_image(std::int64_t width, std::int64_t height, std::string_view where);

/// a * b / 255 for values of 0 to 255, rounded.
inline std::uint8_t scaled(int a, int b) { return static_cast<std::uint8_t>((a * b + 127) / 255); }

}  // namespace nibble
