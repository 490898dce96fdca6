// A tokenizer.json as hostile text, up to the input's first zero byte; after that byte, a text to encode with it.
#include "core/error.h"
#include "core/log.h"
#include "formats/tokenizer.h"

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  nibble::set_log_level(nibble::LogLevel::off);
  try {
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const std::size_t end = input.find('\0');
    const auto tokenizer = nibble::Tokenizer::from_json(input.substr(0, end), "fuzz");
    const std::string_view text =
        end == std::string_view::npos ? " The caf\xc3\xa9, 12 \xf0\x9f\x8e\x89\n" : input.substr(end + 1);
    const auto ids = tokenizer.encode(text, true);
    nibble::StreamingDecoder decoder(tokenizer, false);
    std::string streamed;
    for (const std::int32_t id : ids) streamed += decoder.push(id);
    streamed += decoder.finish();
    if (streamed != tokenizer.decode(ids, false)) std::abort();
  } catch (const nibble::Error&) {
  }
  return 0;
}
