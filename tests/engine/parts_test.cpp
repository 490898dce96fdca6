// Which products leave their sums in parts, for the norm behind them to add up, and the memory that takes.
#include "core/cpu_device.h"
#include "engine/lowering.h"
#include "engine/plan.h"
#include "kernels/registry.h"
#include "models/encoder.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace nibble {
namespace {

constexpr std::int64_t kMostRows = 100;

/// Leaves long sums of up to kMostRows rows in three parts, of more than half of that in two. It is asked, and never
/// run.
class Parting final : public LinearKernel {
 public:
  std::string_view name() const override { return "parting"; }
  // Tests of models try all kernels with exact activations.
  KernelTraits traits() const override {
    return {
        .summary = "for a test", .accumulate = "f32", .exact_activations = false, .in_all = false, .in_auto = false};
  }
  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    return Fit::yes(false, site.epilogue.kind == EpilogueKind::activation);
  }
  std::size_t packed_bytes(const LinearSite&) const override { return 0; }
  std::unique_ptr<PackedLinear> pack(const LinearSite&, std::span<const LinearTensors>, Device&,
                                     Stream&) const override {
    return nullptr;
  }
  std::size_t workspace(const LinearSite&, std::int64_t) const override { return 0; }
  Cost cost(const LinearSite&, std::int64_t) const override { return {}; }
  int parts(const LinearSite& site, std::int64_t rows, const DeviceInfo&) const override {
    return site.in_features() < 128 || rows > kMostRows ? 1 : rows > kMostRows / 2 ? 2 : 3;
  }
  void enqueue(const PackedLinear&, const LinearArgs&, Stream&) const override {}
};
NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, Parting);

EncoderSpec two_layers(bool pre_norm) {
  EncoderSpec spec;
  spec.architecture = "test";
  spec.hidden = spec.embedding = 64;
  spec.intermediate = 128;
  spec.heads = 2;
  spec.vocab = 10;
  spec.max_positions = 16;
  spec.pre_norm = pre_norm;
  spec.word_table = "words";
  spec.position_table = "positions";
  spec.embedding_norm = pre_norm ? "" : "first";
  spec.final_norm = pre_norm ? "last" : "";
  for (const std::string layer : {"a.", "b."}) {
    spec.layers.push_back({layer + "q", layer + "k", layer + "v", layer + "o", layer + "attention_norm", layer + "up",
                           layer + "down", layer + "output_norm"});
  }
  return spec;
}

std::vector<LoweredNode> lowered(const Program& program, const std::string& kernel = "parting", bool fuse = true) {
  LoweringOptions options;
  options.kernel = kernel;
  options.max_rows = 16;
  options.fuse = fuse;
  options.backend.fuses_add_norm = true;
  return lower(program, cpu_device(), options);
}

/// The products that may leave parts, each with the norm behind it.
std::vector<std::string> in_parts(const std::vector<LoweredNode>& nodes) {
  std::vector<std::string> out;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (!nodes[i].in_parts || nodes[i].linear() == nullptr) continue;
    const auto* norm = i + 1 < nodes.size() ? std::get_if<NormNode>(&nodes[i + 1].node.op) : nullptr;
    const bool both = norm != nullptr && nodes[i + 1].in_parts;
    out.push_back(nodes[i].linear()->parts.front().name + (both ? ", " + norm->weight : ""));
  }
  return out;
}

TEST(Parts, OfLongSumsThatANormAdds) {
  const std::vector<LoweredNode> nodes = lowered(build_encoder(two_layers(false)));
  const std::vector<std::string> expected = {"a.down, a.output_norm.weight", "b.down, b.output_norm.weight"};
  EXPECT_EQ(in_parts(nodes), expected);
  // 100 rows in two parts are more than 50 in three.
  EXPECT_EQ(parts_bytes(nodes, 1000, cpu_device().info()), std::size_t{2 * 100 * 64 * 4});
  EXPECT_EQ(parts_bytes(nodes, 50, cpu_device().info()), std::size_t{3 * 50 * 64 * 4});
}

TEST(Parts, NoneWhereSomethingElseReadsTheSums) {
  Program program = build_encoder(two_layers(false));
  // A row of what the first block's down gives is asked for, too: right behind the norm.
  const auto down = std::find_if(program.nodes.begin(), program.nodes.end(), [](const Node& n) {
    const auto* linear = std::get_if<LinearNode>(&n.op);
    return linear != nullptr && linear->parts.front().name == "a.down";
  });
  ASSERT_NE(down, program.nodes.end());
  const BufferId y = std::get<LinearNode>(down->op).y.front();
  program.buffers.push_back({"picked", 64, RowSet::logits, false});
  const auto behind =
      std::find_if(down, program.nodes.end(), [](const Node& n) { return std::holds_alternative<NormNode>(n.op); });
  program.nodes.insert(behind + 1, Node{0, GatherNode{y, static_cast<BufferId>(program.buffers.size()) - 1}});
  EXPECT_EQ(in_parts(lowered(program)), std::vector<std::string>{"b.down, b.output_norm.weight"});
}

TEST(Parts, NoneOfSumsThatAreKeptBesideTheirNorms) {
  const std::vector<std::string> expected = {"b.down, last.weight"};
  EXPECT_EQ(in_parts(lowered(build_encoder(two_layers(true)))), expected);
}

TEST(Parts, NoneOpByOpOrWithoutAKernelThatLeavesThem) {
  const Program program = build_encoder(two_layers(false));
  for (const std::vector<LoweredNode>& nodes : {lowered(program, "parting", false), lowered(program, "dense")}) {
    EXPECT_EQ(in_parts(nodes), std::vector<std::string>{});
    EXPECT_EQ(parts_bytes(nodes, 1000, cpu_device().info()), 0U);
  }
}

}  // namespace
}  // namespace nibble
