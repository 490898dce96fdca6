// Sound out of files that nobody has checked: WAV, always as one channel of floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

inline constexpr std::size_t kMaxSoundFile = std::size_t{1} << 30;
/// Samples of one channel: 4 hours at 16 kHz, 1 GB.
inline constexpr std::int64_t kMaxSamples = std::int64_t{1} << 28;
inline constexpr std::int64_t kMinSampleRate = 1'000;
inline constexpr std::int64_t kMaxSampleRate = 768'000;
inline constexpr std::int64_t kMaxSoundChannels = 256;

struct Sound {
  std::int64_t rate = 0;       // samples a second
  std::vector<float> samples;  // full scale is -1 to 1
};

/// Decodes a WAV file (RIFF): PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64, in the plain or the extensible
/// header. Channels become one by their mean. A data chunk of 0xFFFFFFFF bytes, as programs leave it that cannot go
/// back, goes on to the file's end. Throws Error, a sentence that names `where`, for other formats, for damaged and cut
/// files, for floats that are no numbers, and beyond the limits above.
Sound decode_wav(std::span<const std::byte> file, std::string_view where);

/// Reads and decodes a file.
Sound read_wav(const std::filesystem::path& path);

/// The sound at another rate: y[n] = sum over k of x[k] h(n * from / to - k), where x is 0 outside of the sound and
///   h(t) = 2 f sinc(2 f t) * I0(b sqrt(1 - (t / T)^2)) / I0(b) for |t| < T, else 0,
/// a sinc under a Kaiser window: f = 0.475 min(1, to / from) cycles a sample of x, T = 64 max(1, from / to) samples of
/// x, b = 0.1102 (100 - 8.7) for 100 dB of attenuation (Kaiser and Schafer, 1980). Up to 0.45 of the lower rate all
/// passes, and beyond half of it nothing does. Weights of each y are divided by their sum. Error where there would be
/// more than kMaxSamples.
Sound resample(const Sound& sound, std::int64_t rate);

}  // namespace nibble
