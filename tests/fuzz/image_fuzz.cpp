// An image as hostile bytes: it decodes to as many pixels as it says, or a sentence says why not.
#include "core/error.h"
#include "inputs/image.h"

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const nibble::Image image = nibble::decode_image(std::as_bytes(std::span(data, size)), "fuzz");
    if (image.rgb.size() != static_cast<std::size_t>(image.width * image.height * 3)) std::abort();
  } catch (const nibble::Error&) {
  }
  return 0;
}
