// A quantisation configuration as hostile text: what is read can be asked, written, and read again to the same.
#include "core/error.h"
#include "core/log.h"
#include "formats/quant_config.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  nibble::set_log_level(nibble::LogLevel::off);
  try {
    const auto config = nibble::parse_quant_config({reinterpret_cast<const char*>(data), size}, "fuzz");
    const nlohmann::ordered_json json = config.to_json();
    if (nibble::parse_quant_config(json.dump(), "again").to_json() != json) std::abort();
    (void)config.packed_by_gptqmodel();
    for (const char* module : {"model.layers.10.self_attn.q_proj", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ""})
      (void)config.for_module(module);
  } catch (const nibble::Error&) {
  }
  return 0;
}
