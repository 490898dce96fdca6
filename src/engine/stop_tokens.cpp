#include "engine/stop_tokens.h"

#include "formats/json.h"

#include <nlohmann/json.hpp>

#include <filesystem>

namespace nibble {

std::vector<std::int32_t> stop_tokens(const Checkpoint& checkpoint) {
  const std::filesystem::path path = checkpoint.folder() / "generation_config.json";
  std::vector<std::int64_t> ids;
  if (std::filesystem::exists(path)) {
    const nlohmann::json config = read_json_file(path);
    ids = JsonView(config, "generation_config.json").integers("eos_token_id");
  }
  if (ids.empty()) ids = JsonView(checkpoint.config(), "config.json").integers("eos_token_id");
  return {ids.begin(), ids.end()};
}

}  // namespace nibble
