#include "models/family.h"

#include "core/error.h"
#include "formats/gptq_tensors.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <map>

namespace nibble {
namespace {

std::map<std::string, FamilyFunction, std::less<>>& families() {
  static std::map<std::string, FamilyFunction, std::less<>> all;
  return all;
}

constexpr std::string_view kPrefix = "model.";

// Base models (saved without their head) lack the prefix of the tensor names.
void strip_prefix(std::string& name) {
  if (std::string_view(name).starts_with(kPrefix)) name.erase(0, kPrefix.size());
}

void expect_shape(const Checkpoint& checkpoint, const std::string& name, const Shape& shape) {
  const TensorView tensor = checkpoint.tensor(name);
  if (tensor.shape != shape) {
    fail("{}: tensor {} has shape {}, but config.json asks for {}", checkpoint.file_of(name).string(), name,
         to_string(tensor.shape), to_string(shape));
  }
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16 &&
      tensor.dtype != DType::f64) {
    fail("{}: tensor {} has type {}, expected f32, f16 or bf16", checkpoint.file_of(name).string(), name,
         name_of(tensor.dtype));
  }
}

// The order of a layer's inputs is real only where g_idx says so, whatever desc_act says.
bool has_act_order(const Checkpoint& checkpoint, const std::string& module, std::int64_t group_size) {
  const std::string name = module + ".g_idx";
  if (!checkpoint.has(name)) return false;
  const TensorView g_idx = checkpoint.tensor(name);
  if (g_idx.dtype != DType::i32) return false;  // load_gptq() reports it
  for (std::int64_t k = 0; k < g_idx.elements(); ++k) {
    std::int32_t group;
    std::memcpy(&group, g_idx.bytes.data() + static_cast<std::size_t>(k) * sizeof group, sizeof group);
    if (group != k / group_size) return true;
  }
  return false;
}

void bind_part(const Checkpoint& checkpoint, const std::optional<QuantConfig>& quant, LinearDesc& part) {
  if (checkpoint.has(part.name + ".qweight")) {
    if (!quant) {
      fail("{} has {}.qweight, but neither config.json nor quantize_config.json says how it was quantised",
           checkpoint.folder().string(), part.name);
    }
    const std::optional<LinearQuant> linear = quant->for_module(part.name);
    const LinearQuant settings = linear.value_or(quant->linear);
    GptqFormat format;
    format.bits = settings.bits;
    format.group_size = settings.group_size == -1 ? part.in_features : settings.group_size;
    // Shapes outrank the configuration, as in load_gptq(): qweight is [K * bits / 32, N], qzeros has a row a group.
    const TensorView qweight = checkpoint.tensor(part.name + ".qweight");
    if (qweight.shape.size() == 2 && part.in_features > 0) {
      for (const int bits : {2, 3, 4, 8}) {
        if (qweight.shape[0] == (part.in_features * bits + 31) / 32) format.bits = bits;
      }
    }
    if (checkpoint.has(part.name + ".qzeros")) {
      const TensorView qzeros = checkpoint.tensor(part.name + ".qzeros");
      if (qzeros.shape.size() == 2 && qzeros.shape[0] > 0) {
        const std::int64_t groups = qzeros.shape[0];
        const std::int64_t wanted = (part.in_features + format.group_size - 1) / format.group_size;
        if (groups != wanted) format.group_size = (part.in_features + groups - 1) / groups;
      }
    }
    format.symmetric = settings.sym;
    format.act_order = has_act_order(checkpoint, part.name, format.group_size);
    part.gptq = format;
    part.bias = checkpoint.has(part.name + ".bias");
    return;
  }
  expect_shape(checkpoint, part.name + ".weight", {part.out_features, part.in_features});
  if (part.bias) expect_shape(checkpoint, part.name + ".bias", {part.out_features});
}

struct Binder {
  const Checkpoint& checkpoint;
  const std::optional<QuantConfig>& quant;
  const Program& program;
  bool strip;

  void operator()(EmbedNode& node) const {
    if (strip) strip_prefix(node.table);
    expect_shape(checkpoint, node.table, {program.vocab, program.hidden});
  }
  void operator()(NormNode& node) const {
    if (strip) strip_prefix(node.weight);
    const std::int64_t width = program.buffers[static_cast<std::size_t>(node.x)].columns / node.groups;
    expect_shape(checkpoint, node.weight, {width});
    if (!node.bias.empty()) expect_shape(checkpoint, node.bias, {width});
  }
  void operator()(LinearNode& node) const {
    if (strip) {
      strip_prefix(node.tied_weight);
      for (LinearDesc& part : node.parts) strip_prefix(part.name);
    }
    // Models whose head is not tied but whose file lacks one are read as tied, as transformers does (with a warning
    // there).
    if (!node.in_block && node.tied_weight.empty() && !checkpoint.has(node.parts[0].name + ".weight") &&
        !checkpoint.has(node.parts[0].name + ".qweight")) {
      node.tied_weight = strip ? "embed_tokens.weight" : "model.embed_tokens.weight";
    }
    if (!node.tied_weight.empty()) {
      expect_shape(checkpoint, node.tied_weight, {node.parts[0].out_features, node.parts[0].in_features});
      return;
    }
    for (LinearDesc& part : node.parts) bind_part(checkpoint, quant, part);
  }
  template <typename T>
  void operator()(T&) const {}
};

}  // namespace

FamilyRegistration::FamilyRegistration(std::string_view model_type, FamilyFunction function) {
  families().emplace(std::string(model_type), function);
}

std::vector<std::string> known_families() {
  std::vector<std::string> out;
  for (const auto& [name, function] : families()) out.push_back(name);
  return out;
}

Program program_from_config(const nlohmann::json& config) {
  const JsonView view(config, "config.json");
  const std::string type = view.text("model_type");
  const auto found = families().find(type);
  if (found == families().end()) {
    std::string names;
    for (const std::string& name : known_families()) names += (names.empty() ? "" : ", ") + name;
    fail("config.json: model_type \"{}\" is not one that nibble runs; it runs {}", type, names);
  }
  return found->second(view);
}

Program program_from_checkpoint(const Checkpoint& checkpoint) {
  Program program = program_from_config(checkpoint.config());
  const std::optional<QuantConfig> quant = find_quant_config(checkpoint.folder());
  const bool strip = !checkpoint.has("model.embed_tokens.weight") && checkpoint.has("embed_tokens.weight");
  const Binder binder{checkpoint, quant, program, strip};
  for (Node& node : program.nodes) std::visit(binder, node.op);
  return program;
}

void load_linear(const Checkpoint& checkpoint, const std::optional<QuantConfig>& quant, const LinearNode& node,
                 std::size_t index, LoadedLinear& out) {
  const LinearDesc& part = node.parts[index];
  out.tensors = {};
  if (part.gptq) {
    out.gptq = load_gptq(checkpoint, part.name, *quant, part.in_features, part.out_features);
    out.tensors.gptq = &out.gptq;
    if (!out.gptq.bias.empty()) {
      const std::span<const float> bias(out.gptq.bias);
      out.tensors.bias = {DType::f32, {part.out_features}, std::as_bytes(bias)};
    }
    return;
  }
  out.tensors.weight = checkpoint.tensor(node.tied_weight.empty() ? part.name + ".weight" : node.tied_weight);
  if (part.bias) out.tensors.bias = checkpoint.tensor(part.name + ".bias");
}

void drop_linear(const Checkpoint& checkpoint, const LinearNode& node) {
  for (const LinearDesc& part : node.parts) {
    for (const std::string_view suffix : {".weight", ".qweight", ".qzeros", ".scales", ".g_idx"}) {
      const std::string name = part.name + std::string(suffix);
      if (checkpoint.has(name)) checkpoint.drop(name);
    }
  }
}

}  // namespace nibble
