#include "cli/engine_options.h"

#include "core/error.h"
#include "formats/hub_cache.h"

#include <CLI/CLI.hpp>

namespace nibble {
namespace {

std::optional<DType> parse_dtype(const std::string& text, const char* flag) {
  if (text.empty() || text == "auto") return std::nullopt;
  const std::optional<DType> dtype = dtype_from_name(text);
  if (!dtype)
    fail_usage("{} {}: there is no such type; expected auto, f32, bf16, f16 or, for the KV cache, i8 or f8_e4m3", flag,
               text);
  return dtype;
}

}  // namespace

void ModelOptions::add_to(CLI::App& app) {
  app.add_option("--model", model, "a Hugging Face folder, or a hub id that is in the Hugging Face cache")->required();
  app.add_option("--revision", revision, "branch, tag or commit of a hub id")->capture_default_str();
  app.add_option("--kernel", kernel, "kernel of the linear layers (see `nibble kernels`), or auto")
      ->capture_default_str();
  app.add_option("--dtype", dtype, "what linear layers compute in: auto, f32, bf16; on a GPU also f16");
  app.add_option("--kv-dtype", kv_dtype, "type of the KV cache: auto, f32, bf16, f16; on a GPU also i8, f8_e4m3");
  app.add_option("--device", device, "auto (a GPU where there is one), cpu, cuda, cuda:N")->capture_default_str();
  app.add_option("--max-tokens", max_tokens, "tokens a sequence that memory is planned for (0: by the model)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--prefill-chunk", prefill_chunk, "rows of the prompt a pass (0: by the device)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--no-fuse", no_fuse, "run every node of the model by itself");
}

std::shared_ptr<const Checkpoint> ModelOptions::open() const {
  return std::make_shared<const Checkpoint>(resolve_model(model, revision));
}

EngineOptions ModelOptions::engine_options() const {
  EngineOptions options;
  options.device = device;
  options.kernel = kernel;
  options.compute = parse_dtype(dtype, "--dtype");
  options.kv_dtype = parse_dtype(kv_dtype, "--kv-dtype");
  options.max_tokens = max_tokens;
  options.prefill_chunk = prefill_chunk;
  options.fuse = !no_fuse;
  return options;
}

}  // namespace nibble
