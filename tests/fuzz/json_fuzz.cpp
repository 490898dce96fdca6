// JSON as hostile text: what parses is written and parsed again to the same; getters answer or say why not.
#include "core/error.h"
#include "formats/json.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstdlib>

namespace {

template <typename Step>
void attempt(Step&& step) {
  try {
    step();
  } catch (const nibble::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  attempt([&] {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const nlohmann::json json = nibble::parse_json(text, "fuzz");
    if (nibble::parse_json(json.dump(), "again") != json) std::abort();
    (void)nibble::parse_ordered_json(text, "fuzz");
    (void)nibble::json_excerpt(json);
    const nibble::JsonView view(json, "fuzz");
    for (const auto& [key, value] : json.items()) {
      attempt([&] { (void)view.object(key); });
      attempt([&] { (void)view.integer(key); });
      attempt([&] { (void)view.positive(key); });
      attempt([&] { (void)view.number(key); });
      attempt([&] { (void)view.boolean(key); });
      attempt([&] { (void)view.text(key); });
      attempt([&] { (void)view.integers(key); });
      attempt([&] { (void)view.numbers(key); });
      attempt([&] { (void)view.texts(key); });
    }
  });
  return 0;
}
