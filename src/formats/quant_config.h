// How a checkpoint was quantised with GPTQ: the one description that loaders and writers share, whatever file it came
// from.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// How `qzeros` stores a zero point z: v1 (format "gptq") stores z - 1, v2 (format "gptq_v2") stores z.
enum class ZeroFormat : std::uint8_t { v1, v2 };

/// The settings of one quantised linear.
struct LinearQuant {
  int bits = 4;                   // 2, 3, 4 or 8
  std::int64_t group_size = 128;  // input features that share a scale; -1: all of them
  bool desc_act = false;
  bool sym = true;
};

struct QuantConfig {
  /// One entry of `dynamic`: the modules whose name it matches (from the start; not necessarily to the end) are not
  /// quantised at all, or have other settings.
  struct Rule {
    struct Pattern;
    std::string text;  // the regular expression, without its prefix
    bool excludes = false;
    std::optional<int> bits;
    std::optional<std::int64_t> group_size;
    std::optional<bool> desc_act;
    std::optional<bool> sym;
    std::shared_ptr<const Pattern> pattern;
  };

  LinearQuant linear;
  ZeroFormat zeros = ZeroFormat::v1;
  bool lm_head = false;
  bool true_sequential = true;
  bool static_groups = false;
  double damp_percent = 0.01;
  std::vector<std::vector<std::string>> modules_in_block_to_quantize;
  std::vector<Rule> dynamic;
  /// `meta.quantizer`: the tools that made the checkpoint, as "name:version".
  std::vector<std::string> quantizers;
  /// The file that this was read from; empty where it was not read.
  std::string source;

  /// The settings of one linear, `dynamic` applied (its first rule that matches wins); nothing where a rule says that
  /// it is not quantised. `module` is the full name, such as "model.layers.3.mlp.down_proj". Throws Error where a
  /// pattern takes too long to match.
  std::optional<LinearQuant> for_module(std::string_view module) const;

  /// GPTQModel 0.9 or later packed this: its v1 zeros were made by subtracting a constant from whole words.
  bool packed_by_gptqmodel() const;

  /// The object that goes into config.json (`quantization_config`) and into quantize_config.json.
  nlohmann::ordered_json to_json() const;
};

/// Reads the text of one configuration object; `where` names it in errors. Keys are read in any case. Throws Error that
/// says what is not supported: other methods (awq, ...), other layouts (marlin, bitblas, gptq_p), widths other than 2,
/// 3, 4 and 8 bits, word types other than int32, rotated inputs.
QuantConfig parse_quant_config(std::string_view text, std::string_view where);

/// Finds the configuration of a model folder: config.json's quantization_config, else quantize_config.json, else
/// quantization_config.json, else quant_config.json; the first one there is. Nothing where the model is not quantised.
/// Throws Error as parse_quant_config does.
std::optional<QuantConfig> find_quant_config(const std::filesystem::path& folder);

}  // namespace nibble
