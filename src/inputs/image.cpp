#include "inputs/image.h"

#include "core/error.h"
#include "core/file.h"
#include "inputs/decoders.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

constexpr std::array<unsigned char, 8> kPng = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
constexpr std::array<unsigned char, 3> kJpeg = {0xFF, 0xD8, 0xFF};

template <std::size_t N>
bool begins_with(std::span<const std::byte> file, const std::array<unsigned char, N>& mark) {
  return file.size() >= N && std::equal(mark.begin(), mark.end(), file.begin(),
                                        [](unsigned char a, std::byte b) { return std::byte{a} == b; });
}

}  // namespace

Image sized_image(std::int64_t width, std::int64_t height, std::string_view where) {
  if (width < 1 || height < 1 || width > kMaxImageSide || height > kMaxImageSide || width * height > kMaxImagePixels) {
    fail("{}: an image of {} x {} pixels is out of range; expected sides of 1 to {} and at most {} pixels", where,
         width, height, kMaxImageSide, kMaxImagePixels);
  }
  Image image;
  image.width = width;
  image.height = height;
  image.rgb.resize(static_cast<std::size_t>(width * height * 3));
  return image;
}

Image decode_image(std::span<const std::byte> file, std::string_view where) {
  if (begins_with(file, kJpeg)) return decode_jpeg(file, where);
  if (begins_with(file, kPng)) return decode_png(file, where);
  fail("{}: {} bytes that are neither a JPEG nor a PNG image; convert it to one of these", where, file.size());
}

Image read_image(const std::filesystem::path& path) {
  const MappedFile file(path);
  if (file.bytes().size() > kMaxImageFile) {
    fail("{}: a file of {} bytes is too large for an image; expected at most {}", path.string(), file.bytes().size(),
         kMaxImageFile);
  }
  return decode_image(file.bytes(), path.string());
}

}  // namespace nibble
