// Options that every command that runs a model shares.
#pragma once

#include "engine/engine.h"
#include "formats/checkpoint.h"

#include <memory>
#include <string>

namespace CLI {
class App;
}

namespace nibble {

struct ModelOptions {
  std::string model;
  std::string revision = "main";
  std::string kernel = "auto";
  std::string dtype;
  std::string kv_dtype;
  std::string device = "auto";
  std::int64_t max_tokens = 0;
  std::int64_t prefill_chunk = 0;
  bool no_fuse = false;

  /// Adds --model, --revision, --kernel, --dtype, --kv-dtype, --device, --max-tokens, --prefill-chunk, --no-fuse.
  void add_to(CLI::App& app);
  /// The folder that --model names: a folder, or a hub id found in the Hugging Face cache.
  std::shared_ptr<const Checkpoint> open() const;
  /// Options for the engine; throws UsageError for a type that does not exist.
  EngineOptions engine_options() const;
};

}  // namespace nibble
