#include "models/program.h"

#include "core/checked.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace nibble {

std::vector<float> RotarySpec::inv_freq_for(std::int64_t tokens) const {
  if (dynamic_after == 0 || tokens <= dynamic_after) return inv_freq;
  // Dynamic NTK scaling: base' = base * ((factor * T / M) - (factor - 1)) ^ (d / (d - 2)), T tokens, M the trained
  // length.
  const double d = static_cast<double>(dims);
  const double ratio =
      dynamic_factor * static_cast<double>(tokens) / static_cast<double>(dynamic_after) - (dynamic_factor - 1);
  const double base = theta * std::pow(ratio, d / (d - 2));
  std::vector<float> out(static_cast<std::size_t>(dims / 2));
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / d));
  return out;
}

std::int64_t AudioShape::frames(std::int64_t steps, std::size_t count) const {
  for (std::size_t i = 0; i < count; ++i) {
    const Stage& stage = stages[i];
    const std::int64_t padded = steps + 2 * stage.padding;
    if (steps < 1 || padded < stage.kernel) return 0;
    steps = (padded - stage.kernel) / stage.stride + 1;
  }
  return steps;
}

bool AudioShape::aligns() const {
  // A kernel shorter than its stride would make more frames than the quotient.
  return std::all_of(stages.begin(), stages.end(),
                     [](const Stage& s) { return s.padding == 0 && s.kernel >= s.stride; });
}

std::int64_t AudioShape::room(std::int64_t steps, std::size_t count, bool aligned) const {
  if (!aligned || !aligns()) return frames(steps, count);
  std::int64_t all = 1;
  for (const Stage& stage : stages) all *= stage.stride;
  std::int64_t rows = ceil_div(steps, all) * all;
  for (std::size_t i = 0; i < count; ++i) rows /= stages[i].stride;
  return rows;
}

std::int64_t AudioShape::frames_for(std::int64_t rows, std::size_t count) const {
  for (std::size_t i = stages.size(); i > count; --i) {
    const Stage& stage = stages[i - 1];
    rows = std::max((rows - 1) * stage.stride + stage.kernel - 2 * stage.padding, std::int64_t{1});
  }
  return rows;
}

std::int64_t AudioShape::least_steps() const { return frames_for(1, 0); }

std::vector<Node> Program::block(int layer) const {
  std::vector<Node> out;
  for (const Node& node : nodes) {
    if (node.layer == layer && layer >= 0 && layer < layers) out.push_back(node);
  }
  return out;
}

void drop_head(Program& program) {
  const auto first = std::find_if(program.nodes.begin(), program.nodes.end(),
                                  [](const Node& node) { return std::holds_alternative<GatherNode>(node.op); });
  program.nodes.erase(first, program.nodes.end());
  program.head = HeadKind::none;
  program.logits = -1;
}

std::string_view input_kind_of(const Program& program) {
  if (program.audio) return "audio";
  return program.image ? "images" : "text";
}

std::string modules_of(const LinearNode& node) {
  std::string out = node.tied_weight;
  for (const LinearDesc& part : node.parts) out += "|" + part.name;
  return out;
}

std::vector<std::string> tables_of(const Program& program) {
  std::vector<std::string> out;
  const auto add = [&out](const std::string& name) {
    if (!name.empty()) out.push_back(name);
  };
  for (const Node& node : program.nodes) {
    if (const auto* embed = std::get_if<EmbedNode>(&node.op)) {
      add(embed->table);
      add(embed->positions);
      add(embed->types);
    } else if (const auto* place = std::get_if<PlaceNode>(&node.op)) {
      add(place->positions);
      for (const std::string& name : place->leading) add(name);
    }
  }
  return out;
}

std::string first_tensor_of(const Program& program) {
  const std::vector<std::string> tables = tables_of(program);
  if (!tables.empty()) return tables.front();
  for (const Node& node : program.nodes) {
    if (const auto* convolve = std::get_if<ConvolveNode>(&node.op)) return convolve->module + ".weight";
  }
  return {};
}

std::string_view kind_of(const Node& node) {
  static constexpr std::array<std::string_view, 18> kNames = {
      "embed",      "patches", "place", "norm", "linear", "rotary", "kv_store", "attention",     "self_attention",
      "activation", "gated",   "add",   "mean", "gather", "sample", "convolve", "instance_norm", "trim"};
  return kNames[node.op.index()];
}

}  // namespace nibble
