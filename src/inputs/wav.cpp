#include "core/error.h"
#include "core/file.h"
#include "inputs/sound.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>

namespace nibble {
namespace {

constexpr std::uint16_t kPcm = 1;
constexpr std::uint16_t kFloat = 3;
constexpr std::uint16_t kExtensible = 0xFFFE;
constexpr std::uint32_t kToTheEnd = 0xFFFFFFFF;
// What follows the format in the identifier of an extensible header's: 0000-0010-8000-00AA00389B71.
constexpr std::array<unsigned char, 14> kSubformat = {0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71};

std::uint64_t little_endian(std::span<const std::byte> bytes, std::size_t at, std::size_t count) {
  std::uint64_t out = 0;
  for (std::size_t i = 0; i < count; ++i) out |= std::to_integer<std::uint64_t>(bytes[at + i]) << (8 * i);
  return out;
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct Format {
  std::uint16_t tag = 0;
  std::int64_t channels = 0;
  std::int64_t rate = 0;
  std::int64_t block = 0;  // bytes of a sample of all channels
  std::int64_t bits = 0;
};

Format read_format(std::span<const std::byte> chunk, std::string_view where) {
  constexpr std::size_t kPlain = 16;
  constexpr std::size_t kExtended = 40;
  if (chunk.size() < kPlain) fail("{}: the fmt chunk has {} bytes; expected at least {}", where, chunk.size(), kPlain);
  Format format;
  format.tag = static_cast<std::uint16_t>(little_endian(chunk, 0, 2));
  format.channels = static_cast<std::int64_t>(little_endian(chunk, 2, 2));
  format.rate = static_cast<std::int64_t>(little_endian(chunk, 4, 4));
  format.block = static_cast<std::int64_t>(little_endian(chunk, 12, 2));
  format.bits = static_cast<std::int64_t>(little_endian(chunk, 14, 2));
  if (format.tag == kExtensible) {
    if (chunk.size() < kExtended) {
      fail("{}: the fmt chunk of an extensible WAV file has {} bytes; expected at least {}", where, chunk.size(),
           kExtended);
    }
    format.tag = static_cast<std::uint16_t>(little_endian(chunk, 24, 2));
    const auto rest = chunk.subspan(26, kSubformat.size());
    if (std::memcmp(rest.data(), kSubformat.data(), kSubformat.size()) != 0)
      fail("{}: the format's identifier is not one of PCM or floats; convert the file to PCM of 16 bits", where);
  }
  const bool pcm =
      format.tag == kPcm && (format.bits == 8 || format.bits == 16 || format.bits == 24 || format.bits == 32);
  const bool floats = format.tag == kFloat && (format.bits == 32 || format.bits == 64);
  if (!pcm && !floats) {
    fail(
        "{}: samples are of format {} with {} bits; expected PCM (1) of 8, 16, 24 or 32 bits or floats (3) of 32 or "
        "64: convert the file",
        where, format.tag, format.bits);
  }
  if (format.channels < 1 || format.channels > kMaxSoundChannels)
    fail("{}: {} channels; expected 1 to {}", where, format.channels, kMaxSoundChannels);
  if (format.rate < kMinSampleRate || format.rate > kMaxSampleRate)
    fail("{}: {} samples a second; expected {} to {}", where, format.rate, kMinSampleRate, kMaxSampleRate);
  if (format.block != format.channels * format.bits / 8) {
    fail("{}: a sample of {} channels of {} bits is said to take {} bytes; expected {}", where, format.channels,
         format.bits, format.block, format.channels * format.bits / 8);
  }
  return format;
}

double sample_at(std::span<const std::byte> data, std::size_t at, const Format& format) {
  const auto bytes = static_cast<std::size_t>(format.bits / 8);
  const std::uint64_t word = little_endian(data, at, bytes);
  if (format.tag == kFloat) {
    return format.bits == 32 ? static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(word)))
                             : std::bit_cast<double>(word);
  }
  if (format.bits == 8) return (static_cast<double>(word) - 128) / 128;  // the only unsigned one
  const auto value = static_cast<std::int64_t>(word << (64 - format.bits)) >> (64 - format.bits);
  return static_cast<double>(value) / static_cast<double>(std::int64_t{1} << (format.bits - 1));
}

Sound read_samples(std::span<const std::byte> data, const Format& format, std::string_view where) {
  const auto block = static_cast<std::size_t>(format.block);
  const std::size_t count = data.size() / block;
  if (count > static_cast<std::size_t>(kMaxSamples))
    fail("{}: {} samples are too many; expected at most {}: split the file", where, count, kMaxSamples);
  Sound sound;
  sound.rate = format.rate;
  sound.samples.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    double sum = 0;
    for (std::int64_t channel = 0; channel < format.channels; ++channel)
      sum += sample_at(data, i * block + static_cast<std::size_t>(channel * format.bits / 8), format);
    const auto value = static_cast<float>(sum / static_cast<double>(format.channels));
    if (!std::isfinite(value))
      fail("{}: sample {} is {}, which is no loudness; convert the file anew", where, i, value);
    sound.samples.push_back(value);
  }
  return sound;
}

}  // namespace

Sound decode_wav(std::span<const std::byte> file, std::string_view where) {
  constexpr std::size_t kHeader = 12;
  constexpr std::size_t kChunkHeader = 8;
  if (file.size() < kHeader || text_of(file.first(4)) != "RIFF" || text_of(file.subspan(8, 4)) != "WAVE")
    fail("{}: {} bytes that are no WAV file (RIFF, WAVE); convert it to one", where, file.size());
  std::optional<Format> format;
  for (std::size_t at = kHeader; at + kChunkHeader <= file.size();) {
    const std::string_view name = text_of(file.subspan(at, 4));
    const std::uint64_t size = little_endian(file, at + 4, 4);
    at += kChunkHeader;
    const std::size_t left = file.size() - at;
    const bool data = name == "data";
    const bool to_the_end = data && size == kToTheEnd;
    if (size > left && !to_the_end) {
      fail("{}: a chunk of {} bytes begins at byte {}, but only {} follow: the file was cut", where, size, at, left);
    }
    const auto chunk = file.subspan(at, std::min(static_cast<std::size_t>(size), left));
    if (name == "fmt ") format = read_format(chunk, where);
    if (data) {
      if (!format) fail("{}: the data chunk comes before the fmt chunk that says what it holds", where);
      return read_samples(chunk, *format, where);
    }
    // Chunks begin at even bytes.
    at += chunk.size() + chunk.size() % 2;
  }
  fail("{}: a WAV file without a data chunk: the file was cut", where);
}

Sound read_wav(const std::filesystem::path& path) {
  const MappedFile file(path);
  if (file.bytes().size() > kMaxSoundFile) {
    fail("{}: a file of {} bytes is too large for sound; expected at most {}", path.string(), file.bytes().size(),
         kMaxSoundFile);
  }
  return decode_wav(file.bytes(), path.string());
}

}  // namespace nibble
