// A WAV file as hostile bytes: it decodes to finite samples at a rate within the limits, or a sentence says why not.
#include "core/error.h"
#include "inputs/sound.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const nibble::Sound sound = nibble::decode_wav(std::as_bytes(std::span(data, size)), "fuzz");
    if (sound.rate < nibble::kMinSampleRate || sound.rate > nibble::kMaxSampleRate) std::abort();
    for (const float sample : sound.samples) {
      if (!std::isfinite(sample)) std::abort();
    }
  } catch (const nibble::Error&) {
  }
  return 0;
}
