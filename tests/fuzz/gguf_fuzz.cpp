// A GGUF file as hostile bytes: every key and tensor of what parses can be read, and its tokenizer can be written.
#include "core/error.h"
#include "core/log.h"
#include "formats/gguf.h"
#include "formats/gguf_tokenizer.h"

#include <nlohmann/json.hpp>

#include <cstdint>

namespace {

/// Runs one step; its Error is an answer, and the next step runs all the same.
template <typename Step>
void attempt(Step&& step) {
  try {
    step();
  } catch (const nibble::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  nibble::set_log_level(nibble::LogLevel::off);
  attempt([&] {
    const auto gguf = nibble::GgufContents::parse(std::as_bytes(std::span(data, size)), "fuzz");
    for (const char* key : {"a", "b", "c", "general.alignment", "tokenizer.ggml.tokens", "tokenizer.ggml.scores"}) {
      attempt([&] { (void)gguf.integer(key); });
      attempt([&] { (void)gguf.number(key); });
      attempt([&] { (void)gguf.boolean(key, false); });
      attempt([&] { (void)gguf.text(key); });
      attempt([&] { (void)gguf.integers(key); });
      attempt([&] { (void)gguf.numbers(key); });
      attempt([&] { (void)gguf.texts(key); });
    }
    std::vector<float> row;
    for (const auto& [name, tensor] : gguf.tensors()) {
      row.resize(static_cast<std::size_t>(tensor.columns()));
      tensor.rows_to_float(0, 1, row);
      tensor.rows_to_float(tensor.rows() - 1, 1, row);
    }
    attempt([&] { (void)nibble::gguf_tokenizer_json(gguf); });
    attempt([&] { (void)nibble::gguf_tokenizer_config_json(gguf); });
    attempt([&] { (void)nibble::gguf_generation_config_json(gguf); });
  });
  return 0;
}
