#include "models/family.h"

#include "core/error.h"
#include "formats/gptq_tensors.h"

#include <fmt/format.h>
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

// Base models (saved without their head) lack the prefix of the tensor names.
void strip_prefix(const Program& program, std::string& name) {
  if (std::string_view(name).starts_with(program.prefix)) name.erase(0, program.prefix.size());
}

// Whether the checkpoint's names lack the prefix: as its embedding's name does, or that of its first convolution.
bool lacks_prefix(const Checkpoint& checkpoint, const Program& program) {
  std::string tensor = first_tensor_of(program);
  if (checkpoint.has(tensor)) return false;
  strip_prefix(program, tensor);
  return checkpoint.has(tensor);
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

// A table that may have dimensions of 1 in front, as parameters that are added to a batch do.
void expect_rows(const Checkpoint& checkpoint, const std::string& name, std::int64_t rows, std::int64_t columns) {
  const Shape& shape = checkpoint.tensor(name).shape;
  const bool fits = !shape.empty() && shape.back() == columns && element_count(shape) == rows * columns;
  expect_shape(checkpoint, name, fits ? shape : Shape{rows, columns});
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

std::string bias_name(const LinearNode& node, std::size_t part) {
  return node.bias.empty() ? node.parts[part].name + ".bias" : node.bias;
}

struct Binder {
  const Checkpoint& checkpoint;
  const std::optional<QuantConfig>& quant;
  const Program& program;
  bool strip;

  void operator()(EmbedNode& node) const {
    const std::int64_t width = program.buffers[static_cast<std::size_t>(node.y)].columns;
    if (strip) strip_prefix(program, node.table);
    expect_shape(checkpoint, node.table, {program.vocab, width});
    if (!node.positions.empty()) {
      if (strip) strip_prefix(program, node.positions);
      expect_shape(checkpoint, node.positions, {program.max_positions + node.position_offset, width});
    }
    if (!node.types.empty()) {
      if (strip) strip_prefix(program, node.types);
      expect_shape(checkpoint, node.types, {program.types, width});
    }
  }
  void operator()(PlaceNode& node) const {
    const std::int64_t width = program.buffers[static_cast<std::size_t>(node.y)].columns;
    if (strip) strip_prefix(program, node.positions);
    expect_rows(checkpoint, node.positions, program.max_positions, width);
    for (std::string& name : node.leading) {
      if (strip) strip_prefix(program, name);
      expect_rows(checkpoint, name, 1, width);
    }
  }
  void operator()(NormNode& node) const {
    const std::int64_t width = program.buffers[static_cast<std::size_t>(node.x)].columns / node.groups;
    bind_norm(node.weight, ".weight", ".gamma");
    expect_shape(checkpoint, node.weight, {width});
    if (node.bias.empty()) return;
    bind_norm(node.bias, ".bias", ".beta");
    expect_shape(checkpoint, node.bias, {width});
  }
  void operator()(ConvolveNode& node) const {
    if (strip) strip_prefix(program, node.module);
    const ConvolutionShape& s = node.shape;
    const Shape weight = {s.outputs, s.inputs / s.groups, s.kernel};
    if (node.weight_norm) bind_weight_norm(node, weight);
    if (node.direction.empty()) expect_shape(checkpoint, node.module + ".weight", weight);
    if (s.bias) expect_shape(checkpoint, node.module + ".bias", {s.outputs});
  }
  void operator()(InstanceNormNode& node) const {
    if (strip) strip_prefix(program, node.module);
    const std::int64_t width = program.buffers[static_cast<std::size_t>(node.x)].columns;
    expect_shape(checkpoint, node.module + ".weight", {width});
    expect_shape(checkpoint, node.module + ".bias", {width});
  }
  void operator()(SelfAttentionNode& node) const {
    if (node.bias.empty()) return;
    if (strip) strip_prefix(program, node.bias);
    expect_shape(checkpoint, node.bias, {node.bias_buckets, node.heads});
  }
  void operator()(LinearNode& node) const {
    if (strip) {
      strip_prefix(program, node.tied_weight);
      for (LinearDesc& part : node.parts) strip_prefix(program, part.name);
    }
    LinearDesc& first = node.parts[0];
    // Models whose head is not tied but whose file lacks one are read as tied, as transformers does (with a warning
    // there).
    if (!node.in_block && first.out_features == program.vocab && node.tied_weight.empty() &&
        !checkpoint.has(first.name + ".weight") && !checkpoint.has(first.name + ".qweight")) {
      node.tied_weight = tables_of(program).front();
    }
    // A bias that stands by itself is sometimes stored as its module's after all.
    if (!node.bias.empty() && !checkpoint.has(node.bias) && checkpoint.has(first.name + ".bias"))
      node.bias = first.name + ".bias";
    if (!node.tied_weight.empty()) {
      expect_shape(checkpoint, node.tied_weight, {first.out_features, first.in_features});
      if (first.bias) expect_shape(checkpoint, bias_name(node, 0), {first.out_features});
      return;
    }
    if (!node.bias.empty()) {
      expect_shape(checkpoint, first.name + ".weight", {first.out_features, first.in_features});
      expect_shape(checkpoint, node.bias, {first.out_features});
      return;
    }
    if (!node.stored.empty()) {
      expect_shape(checkpoint, first.name + ".weight", node.stored);
      if (first.bias) expect_shape(checkpoint, first.name + ".bias", {first.out_features});
      return;
    }
    for (LinearDesc& part : node.parts) bind_part(checkpoint, quant, part);
  }
  template <typename T>
  void operator()(T&) const {}

 private:
  // PyTorch stored weight norm as weight_g and weight_v, and now stores it as parametrizations. A file where it was
  // multiplied out has a weight like any other.
  void bind_weight_norm(ConvolveNode& node, const Shape& weight) const {
    for (const auto& [magnitude, direction] :
         {std::pair{".weight_g", ".weight_v"},
          std::pair{".parametrizations.weight.original0", ".parametrizations.weight.original1"}}) {
      if (!checkpoint.has(node.module + direction)) continue;
      node.magnitude = node.module + magnitude;
      node.direction = node.module + direction;
      expect_shape(checkpoint, node.magnitude, {1, 1, node.shape.kernel});
      expect_shape(checkpoint, node.direction, weight);
    }
  }
  // Old files of BERT call a norm's weight and bias gamma and beta.
  void bind_norm(std::string& name, std::string_view now, std::string_view before) const {
    if (strip) strip_prefix(program, name);
    if (checkpoint.has(name) || !name.ends_with(now)) return;
    const std::string old = name.substr(0, name.size() - now.size()) + std::string(before);
    if (checkpoint.has(old)) name = old;
  }
};

// A pooler is often left out of a checkpoint: then there is none to run.
void drop_missing_pooler(const Checkpoint& checkpoint, Program& program, bool strip) {
  if (program.head != HeadKind::pooler) return;
  for (const Node& node : program.nodes) {
    const auto* linear = std::get_if<LinearNode>(&node.op);
    if (linear == nullptr || program.buffers[static_cast<std::size_t>(linear->x)].rows != RowSet::logits) continue;
    std::string name = linear->parts[0].name + ".weight";
    if (strip) strip_prefix(program, name);
    if (!checkpoint.has(name)) drop_head(program);
    return;
  }
}

// The parts that are registered for a checkpoint of several models: "text or vision".
std::string parts_of(const std::string& type) {
  std::string out;
  const std::string before = type + "/";
  for (const auto& [name, function] : families()) {
    if (name.starts_with(before)) out += (out.empty() ? "" : " or ") + name.substr(before.size());
  }
  return out;
}

}  // namespace

FamilyRegistration::FamilyRegistration(std::string_view model_type, FamilyFunction function) {
  families().emplace(std::string(model_type), function);
}

std::vector<std::string> known_families() {
  std::vector<std::string> out;
  for (const auto& [name, function] : families()) out.push_back(name);
  return out;
}

Program program_from_config(const nlohmann::json& config, std::string_view part) {
  const JsonView view(config, "config.json");
  const std::string type = view.text("model_type");
  const auto found = families().find(part.empty() ? type : fmt::format("{}/{}", type, part));
  if (found == families().end()) {
    const std::string parts = parts_of(type);
    if (!parts.empty()) fail("config.json: a {} checkpoint holds several models: name {}", type, parts);
    if (!part.empty()) fail("config.json: a {} checkpoint is one model, it has no part \"{}\"", type, part);
    std::string names;
    for (const std::string& name : known_families()) names += (names.empty() ? "" : ", ") + name;
    fail("config.json: model_type \"{}\" is not one that nibble runs; it runs {}", type, names);
  }
  return found->second(view);
}

bool is_encoder(const std::filesystem::path& folder) {
  return program_from_config(read_json_file(folder / "config.json")).encoder;
}

Program program_from_checkpoint(const Checkpoint& checkpoint, std::string_view part) {
  Program program = program_from_config(checkpoint.config(), part);
  const std::optional<QuantConfig> quant = find_quant_config(checkpoint.folder());
  const bool strip = lacks_prefix(checkpoint, program);
  drop_missing_pooler(checkpoint, program, strip);
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
  if (!node.stored.empty()) out.tensors.weight.shape = {part.out_features, part.in_features};
  if (part.bias) out.tensors.bias = checkpoint.tensor(bias_name(node, index));
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
