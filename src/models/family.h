// A family is one file below families/: it translates its config.json into a program. It registers itself by
// model_type; where a checkpoint holds several models, each is registered as "model_type/part".
#pragma once

#include "formats/checkpoint.h"
#include "formats/gptq_tensors.h"
#include "formats/json.h"
#include "formats/quant_config.h"
#include "models/program.h"

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

using FamilyFunction = Program (*)(const JsonView& config);

class FamilyRegistration {
 public:
  FamilyRegistration(std::string_view model_type, FamilyFunction function);
};

/// The model types that this build knows, sorted.
std::vector<std::string> known_families();

/// The program of a config.json, or of one part ("text", "vision") of a checkpoint that holds several models. Error
/// naming model_type and the known ones where there is none for it, and the parts where one is to be named.
Program program_from_config(const nlohmann::json& config, std::string_view part = {});

/// Whether a folder's config.json is that of an encoder; Errors as program_from_config() has them.
bool is_encoder(const std::filesystem::path& folder);

/// The program with what only the checkpoint tells: the prefix of its tensor names, which linears are quantised and
/// how, which have biases, whether the head is tied. Every tensor's presence and shape is checked; throws Error naming
/// it.
Program program_from_checkpoint(const Checkpoint& checkpoint, std::string_view part = {});

/// The tensors of one part of a linear site; `gptq` holds what LinearTensors points at.
struct LoadedLinear {
  LinearTensors tensors;
  GptqTensors gptq;
};
/// Reads part `index` of a linear node of a program made by program_from_checkpoint(); `quant` as find_quant_config()
/// gave it. `out.tensors` points into `out` and into the checkpoint's maps.
void load_linear(const Checkpoint& checkpoint, const std::optional<QuantConfig>& quant, const LinearNode& node,
                 std::size_t index, LoadedLinear& out);

/// Lets the file's pages of a packed linear node leave the resident set.
void drop_linear(const Checkpoint& checkpoint, const LinearNode& node);

}  // namespace nibble

#define NIBBLE_REGISTER_FAMILY(MODEL_TYPE, FUNCTION) \
  const ::nibble::FamilyRegistration registration_of_##FUNCTION(MODEL_TYPE, FUNCTION)
