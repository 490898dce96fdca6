// WAV files as tests want them, good ones and others.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>

namespace nibble::test {

template <typename T>
std::string packed(std::initializer_list<T> values) {
  std::string out(values.size() * sizeof(T), '\0');
  std::memcpy(out.data(), values.begin(), out.size());
  return out;
}

struct WavFile {
  std::uint16_t tag = 1;
  std::int64_t channels = 1;
  std::int64_t rate = 16000;
  std::int64_t bits = 16;
  std::optional<std::int64_t> block = {};  // bytes of a sample of all channels; unset: what they take
  bool extensible = false;
  char identifier_end = '\x71';
  std::string before = {};  // chunks before the data
  std::string data = {};
  std::optional<std::uint32_t> data_size = {};  // unset: that of `data`

  std::string bytes() const {
    const auto word = [](auto value) { return packed({static_cast<std::uint16_t>(value)}); };
    const auto two_words = [](auto value) { return packed({static_cast<std::uint32_t>(value)}); };
    const std::int64_t size = block.value_or(channels * bits / 8);
    std::string format = word(extensible ? 0xFFFE : tag) + word(channels) + two_words(rate) + two_words(rate * size) +
                         word(size) + word(bits);
    if (extensible) {
      format += word(22) + word(bits) + two_words(0) + word(tag) +
                std::string("\0\0\0\0\x10\0\x80\0\0\xAA\0\x38\x9B", 13) + identifier_end;
    }
    const std::string body = "WAVEfmt " + two_words(format.size()) + format + before + "data" +
                             two_words(data_size.value_or(static_cast<std::uint32_t>(data.size()))) + data;
    return "RIFF" + two_words(body.size()) + body;
  }
};

}  // namespace nibble::test
