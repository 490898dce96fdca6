// Images out of files that nobody has checked: JPEG and PNG, always as 8-bit RGB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

/// What the largest cameras give; as RGB it takes 300 MB.
inline constexpr std::int64_t kMaxImagePixels = 100'000'000;
inline constexpr std::int64_t kMaxImageSide = 65'535;
inline constexpr std::size_t kMaxImageFile = std::size_t{256} << 20;

struct Image {
  std::int64_t width = 0;         // pixels
  std::int64_t height = 0;        // pixels
  std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

/// Decodes a JPEG or PNG file, told apart by its first bytes; `where` names it in errors. Grey values become three
/// equal ones, palettes their colours, CMYK its RGB; 16-bit values keep their upper half. Transparency is laid over
/// white, as transformers' image processors do. A JPEG image is turned as its camera says
/// (Exif's orientation). Throws Error, a
/// sentence, for other kinds of files, for damaged and cut ones, and beyond the limits above.
Image decode_image(std::span<const std::byte> file, std::string_view where);

/// Reads and decodes a file.
Image read_image(const std::filesystem::path& path);

}  // namespace nibble
