// A config.json as hostile text: read, and made into the model's program, or those of its parts.
#include "core/error.h"
#include "core/log.h"
#include "formats/json.h"
#include "models/family.h"

#include <nlohmann/json.hpp>

#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  nibble::set_log_level(nibble::LogLevel::off);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const char* part : {"", "text", "vision"}) {
    try {
      (void)nibble::program_from_config(nibble::parse_json(text, "config.json"), part);
    } catch (const nibble::Error&) {
      continue;
    }
  }
  return 0;
}
