#include "engine/lowering.h"

#include "core/error.h"
#include "kernels/autotune.h"
#include "kernels/registry.h"

#include <algorithm>
#include <array>
#include <functional>

namespace nibble {
namespace {

struct Uses {
  std::vector<BufferId> reads;
  std::vector<BufferId> writes;
};

struct UsesOf {
  Uses operator()(const EmbedNode& n) const { return {{}, {n.y}}; }
  Uses operator()(const NormNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const LinearNode& n) const { return {{n.x}, n.y}; }
  Uses operator()(const RotaryNode& n) const { return {{n.x}, {n.x}}; }
  Uses operator()(const KvStoreNode& n) const { return {{n.k, n.v}, {}}; }
  Uses operator()(const AttentionNode& n) const { return {{n.q}, {n.y}}; }
  Uses operator()(const GatedNode& n) const { return {{n.gate, n.up}, {n.y}}; }
  Uses operator()(const AddNode& n) const { return {{n.a, n.b}, {n.y}}; }
  Uses operator()(const GatherNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const SampleNode& n) const { return {{n.logits}, {n.logits}}; }
};

bool contains(const std::vector<BufferId>& list, BufferId id) {
  return std::find(list.begin(), list.end(), id) != list.end();
}

// True where nothing after nodes[last] reads `buffer` before it is written anew: its value is only passed on.
bool dead_after(const std::vector<Node>& nodes, std::size_t last, BufferId buffer) {
  for (std::size_t i = last + 1; i < nodes.size(); ++i) {
    const Uses uses = std::visit(UsesOf{}, nodes[i].op);
    if (contains(uses.reads, buffer)) return false;
    if (contains(uses.writes, buffer)) return true;
  }
  return true;
}

class Lowerer {
 public:
  Lowerer(const Program& program, Device& device, const LoweringOptions& options)
      : nodes_(program.nodes), device_(device.info()), options_(options), tuner_(device) {}

  std::vector<LoweredNode> run() {
    for (std::size_t i = 0; i < nodes_.size();) i = step(i);
    return std::move(out_);
  }

 private:
  std::size_t step(std::size_t i) {
    const auto* norm = std::get_if<NormNode>(&nodes_[i].op);
    if (norm != nullptr && options_.fuse && i + 1 < nodes_.size()) {
      const auto* next = std::get_if<LinearNode>(&nodes_[i + 1].op);
      if (next != nullptr && next->x == norm->y && norm->kind == NormKind::rms && norm->groups == 1 &&
          norm->bias.empty() && dead_after(nodes_, i + 1, norm->y)) {
        return linear(i + 1, norm);
      }
    }
    if (std::holds_alternative<LinearNode>(nodes_[i].op)) return linear(i, nullptr);
    out_.push_back({nodes_[i], nullptr, {}, {}, {}, {}});
    return i + 1;
  }

  // Lowers the linear node at i with what stands before (norm) and behind it; returns the first node not yet lowered.
  std::size_t linear(std::size_t i, const NormNode* norm) {
    const auto& node = std::get<LinearNode>(nodes_[i].op);
    LoweredNode fused;
    fused.node = nodes_[i];
    fused.site.parts = node.parts;
    fused.site.compute = options_.compute;
    if (norm != nullptr) fused.site.prologue = {PrologueKind::rms_norm, norm->eps};
    std::size_t after = i + 1;
    if (options_.fuse && after < nodes_.size()) {
      if (const auto* add = std::get_if<AddNode>(&nodes_[after].op); add != nullptr && node.y.size() == 1 &&
                                                                     (add->a == node.y[0]) != (add->b == node.y[0]) &&
                                                                     dead_after(nodes_, after, node.y[0])) {
        fused.add = *add;
        fused.site.epilogue = {EpilogueKind::residual, ActivationKind::silu};
      } else if (const auto* gated = std::get_if<GatedNode>(&nodes_[after].op);
                 gated != nullptr && node.y == std::vector<BufferId>{gated->gate, gated->up} &&
                 dead_after(nodes_, after, gated->gate) && dead_after(nodes_, after, gated->up)) {
        fused.gated = *gated;
        fused.site.epilogue = {EpilogueKind::gated, gated->activation};
      }
    }
    fused.kernel = &choose(node, fused.site);
    const Fit fit = fused.kernel->fit(fused.site, device_, options_.max_rows);
    if (norm != nullptr) {
      if (fit.fuses_prologue) {
        fused.norm = *norm;
      } else {
        fused.site.prologue = {};
        out_.push_back({nodes_[i - 1], nullptr, {}, {}, {}, {}});
      }
    }
    const bool behind = fused.add.has_value() || fused.gated.has_value();
    if (behind) ++after;
    if (behind && !fit.fuses_epilogue) {
      fused.add.reset();
      fused.gated.reset();
      fused.site.epilogue = {};
      out_.push_back(std::move(fused));
      out_.push_back({nodes_[i + 1], nullptr, {}, {}, {}, {}});
    } else {
      out_.push_back(std::move(fused));
    }
    return after;
  }

  const LinearKernel& choose(const LinearNode& node, const LinearSite& site) {
    const bool quantised =
        std::any_of(site.parts.begin(), site.parts.end(), [](const LinearDesc& d) { return d.gptq.has_value(); });
    if (options_.kernel == "auto" && quantised) {
      return tuner_.choose(site, std::array{options_.decode_rows, options_.max_rows});
    }
    const LinearKernel& named = kernel_named(options_.kernel == "auto" ? "dense" : options_.kernel, device_.kind);
    const Fit fit = named.fit(site, device_, options_.max_rows);
    if (fit.ok) return named;
    // A kernel for quantised weights leaves the head, and what a checkpoint keeps in full precision, to the dense one.
    if (!quantised) {
      const LinearKernel& dense = kernel_named("dense", device_.kind);
      if (dense.fit(site, device_, options_.max_rows).ok) return dense;
    }
    fail("the kernel {} cannot run {}: {}", named.name(), node.parts.front().name, fit.reason);
  }

  const std::vector<Node>& nodes_;
  const DeviceInfo device_;
  const LoweringOptions& options_;
  Autotuner tuner_;
  std::vector<LoweredNode> out_;
};

}  // namespace

std::vector<BufferId> LoweredNode::reads() const {
  std::vector<BufferId> out = std::visit(UsesOf{}, node.op).reads;
  if (norm) out = {norm->x};
  if (add) out.push_back(add->a == linear()->y[0] ? add->b : add->a);
  return out;
}

std::vector<BufferId> LoweredNode::writes() const {
  if (add) return {add->y};
  if (gated) return {gated->y};
  return std::visit(UsesOf{}, node.op).writes;
}

std::string LoweredNode::name() const {
  std::string out(kind_of(node));
  if (const LinearNode* l = linear()) {
    out += " ";
    for (std::size_t i = 0; i < l->parts.size(); ++i) {
      const std::string& full = l->parts[i].name;
      // The first part with its parent module, the others by their last name: self_attn.q_proj|k_proj|v_proj.
      std::size_t dot = full.rfind('.');
      if (i == 0 && dot != std::string::npos) {
        const std::size_t parent = full.rfind('.', dot - 1);
        if (parent != std::string::npos) dot = parent;
      }
      out += (i == 0 ? "" : "|") + (dot == std::string::npos ? full : full.substr(dot + 1));
    }
  }
  if (norm) out += " + norm";
  if (add) out += " + residual";
  if (gated) out += " + activation";
  return out;
}

std::vector<LoweredNode> lower(const Program& program, Device& device, const LoweringOptions& options) {
  return Lowerer(program, device, options).run();
}

}  // namespace nibble
