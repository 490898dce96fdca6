// Model folders with random weights: the real shapes and formats of any supported config.json, without its weights.
#pragma once

#include "core/dtype.h"
#include "formats/quant_config.h"

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct SynthOptions {
  DType dtype = DType::f16;         // of what is not quantised: f16, bf16 or f32
  std::optional<LinearQuant> gptq;  // quantise the linears of the repeated blocks
  ZeroFormat zeros = ZeroFormat::v1;
  std::uint64_t seed = 0;
  bool overwrite = false;
};

struct SynthReport {
  std::size_t tensors = 0;
  std::size_t bytes = 0;
  std::size_t files = 0;  // of weights
  double seconds = 0;
};

/// Writes a Hugging Face folder for `config` (a config.json of a supported family) whose activations have a size of
/// about 1 at any depth: weights have a standard deviation of 1 / sqrt(inputs), those that write to the residual stream
/// by another 1 / sqrt(2 * blocks) smaller; norms are about 1, biases about 0. GPTQ codes are uniform but for the
/// lowest, which no code has, so that they are centred; scales give the weights the same deviation, and vary by 20%;
/// act-order is a random order, the same for layers with one input. The bytes depend on the config, the options and the
/// seed, not on threads. Memory holds a piece of a tensor at a time. Throws UsageError for options that cannot be,
/// Error as program_from_config() does.
SynthReport synthesise(const nlohmann::ordered_json& config, const std::filesystem::path& out,
                       const SynthOptions& options);

/// Names that preset_config() knows: "llama-2-7b" ...
std::vector<std::string_view> preset_names();
/// The config.json of a published model; UsageError that lists the names where there is none of this name.
nlohmann::ordered_json preset_config(std::string_view name);

}  // namespace nibble
