// A safetensors file as hostile bytes: it parses, or says why not; what parsed lies inside of the bytes.
#include "core/error.h"
#include "formats/safetensors.h"

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> file = std::as_bytes(std::span(data, size));
  try {
    const nibble::SafetensorsHeader header = nibble::parse_safetensors(file, "fuzz");
    std::size_t total = header.bytes.size();
    for (const auto& [name, tensor] : header.tensors) {
      if (!tensor.bytes.empty() &&
          (tensor.bytes.data() < file.data() || tensor.bytes.data() + tensor.bytes.size() > file.data() + size))
        std::abort();
      total += tensor.bytes.size();
    }
    if (total != size) std::abort();
  } catch (const nibble::Error&) {
  }
  return 0;
}
