// Chat templates as hostile text, with variables of every type.
#include "core/error.h"
#include "formats/chat_template.h"

#include <cstdint>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    (void)nibble::render_template(text,
                                  R"({"a": 7, "b": -3, "f": 2.5, "t": "Hello, Wörld 👍", "yes": true, "nothing": null,
      "xs": [3, 1, 2], "words": ["pear", "Apple"], "d": {"k": "v", "deep": {"x": [1]}}, "bos_token": "<s>",
      "add_generation_prompt": true, "messages": [{"role": "system", "content": " s "}, {"role": "user", "content": "q\n"},
      {"role": "assistant", "content": "a"}]})",
                                  0);
  } catch (const nibble::Error&) {
  }
  return 0;
}
