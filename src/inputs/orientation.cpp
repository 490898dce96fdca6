#include "inputs/orientation.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

namespace nibble {
namespace {

constexpr std::array<unsigned char, 6> kExif = {'E', 'x', 'i', 'f', 0, 0};
constexpr std::uint32_t kOrientationTag = 0x0112;
constexpr std::uint32_t kShort = 3;  // the type of a number of 16 bits

// A TIFF header and what it points to, in either order of bytes.
class Tiff {
 public:
  explicit Tiff(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // Whether it is one.
  bool begin() {
    if (bytes_.size() < 8) return false;
    if (bytes_[0] != bytes_[1] || (bytes_[0] != std::byte{'I'} && bytes_[0] != std::byte{'M'})) return false;
    little_ = bytes_[0] == std::byte{'I'};
    return number(2, 2) == std::uint32_t{42};
  }

  // The number of `size` bytes at a place; none beyond the end.
  std::optional<std::uint32_t> number(std::size_t at, std::size_t size) const {
    if (at > bytes_.size() || bytes_.size() - at < size) return std::nullopt;
    std::uint32_t out = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t from = at + (little_ ? size - 1 - i : i);
      out = out << 8 | std::to_integer<std::uint32_t>(bytes_[from]);
    }
    return out;
  }

 private:
  std::span<const std::byte> bytes_;
  bool little_ = false;
};

}  // namespace

int exif_orientation(std::span<const std::byte> segment) {
  const bool exif =
      segment.size() > kExif.size() && std::equal(kExif.begin(), kExif.end(), segment.begin(),
                                                  [](unsigned char a, std::byte b) { return std::byte{a} == b; });
  if (!exif) return 1;
  Tiff tiff(segment.subspan(kExif.size()));
  if (!tiff.begin()) return 1;
  // The first directory: a count, then entries of 12 bytes (tag, type, count, value).
  const std::size_t directory = tiff.number(4, 4).value_or(0);
  const std::uint32_t entries = tiff.number(directory, 2).value_or(0);
  for (std::uint32_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + std::size_t{12} * i;
    if (tiff.number(entry, 2) != kOrientationTag) continue;
    const std::uint32_t value = tiff.number(entry + 8, 2).value_or(0);
    return tiff.number(entry + 2, 2) == kShort && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image turned(Image image, int orientation) {
  if (orientation <= 1 || orientation > 8) return image;
  // Where the picture's right and lower edges are in the file: 5 to 8 change rows for columns.
  const bool swaps = orientation >= 5;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image out;
  out.width = swaps ? image.height : image.width;
  out.height = swaps ? image.width : image.height;
  out.rgb.resize(image.rgb.size());
  auto to = out.rgb.begin();
  for (std::int64_t y = 0; y < out.height; ++y) {
    for (std::int64_t x = 0; x < out.width; ++x) {
      std::int64_t column = swaps ? y : x;
      std::int64_t row = swaps ? x : y;
      if (from_right) column = image.width - 1 - column;
      if (from_below) row = image.height - 1 - row;
      to = std::copy_n(image.rgb.begin() + (row * image.width + column) * 3, 3, to);
    }
  }
  return out;
}

}  // namespace nibble
