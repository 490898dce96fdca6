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
  Uses operator()(const PatchNode& n) const { return {{}, {n.y}}; }
  Uses operator()(const PlaceNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const ConvolveNode& n) const {
    return {n.x < 0 ? std::vector<BufferId>{} : std::vector<BufferId>{n.x}, {n.y}};
  }
  Uses operator()(const InstanceNormNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const TrimNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const NormNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const LinearNode& n) const { return {{n.x}, n.y}; }
  Uses operator()(const RotaryNode& n) const { return {{n.x}, {n.x}}; }
  Uses operator()(const KvStoreNode& n) const { return {{n.k, n.v}, {}}; }
  Uses operator()(const AttentionNode& n) const { return {{n.q}, {n.y}}; }
  Uses operator()(const SelfAttentionNode& n) const { return {{n.q, n.k, n.v}, {n.y}}; }
  Uses operator()(const ActivationNode& n) const { return {{n.x}, {n.y}}; }
  Uses operator()(const GatedNode& n) const { return {{n.gate, n.up}, {n.y}}; }
  Uses operator()(const AddNode& n) const { return {{n.a, n.b}, {n.y}}; }
  Uses operator()(const MeanNode& n) const { return {{n.a, n.b}, {n.y}}; }
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
      : nodes_(options.split_parts ? split(program.nodes) : program.nodes),
        buffers_(program.buffers),
        device_(device.info()),
        options_(options),
        tuner_(device) {}

  std::vector<LoweredNode> run() {
    for (std::size_t i = 0; i < nodes_.size();) i = step(i);
    return std::move(out_);
  }

 private:
  static std::vector<Node> split(const std::vector<Node>& nodes) {
    std::vector<Node> out;
    out.reserve(nodes.size());
    for (const Node& node : nodes) {
      const auto* linear = std::get_if<LinearNode>(&node.op);
      if (linear == nullptr || linear->parts.size() == 1) {
        out.push_back(node);
        continue;
      }
      for (std::size_t i = 0; i < linear->parts.size(); ++i) {
        LinearNode one = *linear;
        one.parts = {linear->parts[i]};
        one.y = {linear->y[i]};
        out.push_back({node.layer, std::move(one)});
      }
    }
    return out;
  }

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
    if (std::holds_alternative<ConvolveNode>(nodes_[i].op)) return convolution(i);
    if (const auto* over_time = std::get_if<InstanceNormNode>(&nodes_[i].op)) return instance_norm(i, *over_time);
    if (const std::size_t after = attention(i); after != i) return after;
    if (sum_of_norm(i)) {
      LoweredNode fused;
      fused.node = nodes_[i + 1];
      fused.before = std::get<AddNode>(nodes_[i].op);
      const auto& of_sum = std::get<NormNode>(nodes_[i + 1].op);
      fused.keeps_sum = of_sum.y != of_sum.x && !dead_after(nodes_, i + 1, of_sum.x);
      if (!fused.keeps_sum && may_leave_parts(i)) fused.in_parts = out_.back().in_parts = true;
      out_.push_back(std::move(fused));
      return i + 2;
    }
    push(nodes_[i]);
    return i + 1;
  }

  // Whether node i adds two branches that are no f32 stream, the next one norms the sum, and the back end takes that as
  // one.
  bool sum_of_norm(std::size_t i) const {
    if (!options_.fuse || !options_.backend.fuses_add_norm || i + 1 >= nodes_.size()) return false;
    const auto* add = std::get_if<AddNode>(&nodes_[i].op);
    const auto* norm = std::get_if<NormNode>(&nodes_[i + 1].op);
    if (add == nullptr || norm == nullptr || norm->x != add->y || norm->groups != 1) return false;
    const auto wide = [&](BufferId id) { return buffers_[static_cast<std::size_t>(id)].wide; };
    return !wide(add->a) && !wide(add->b) && !wide(add->y) && !wide(norm->y);
  }

  // Whether the product right ahead of the sum of node i, with nothing folded in, may leave its output in parts: nobody
  // but the sum reads it.
  bool may_leave_parts(std::size_t i) const {
    if (out_.empty() || out_.back().linear() == nullptr) return false;
    const LoweredNode& product = out_.back();
    const LinearNode& linear = *product.linear();
    if (product.norm || product.add || product.gated || product.activation || linear.y.size() != 1) return false;
    const BufferId y = linear.y.front();
    const auto& add = std::get<AddNode>(nodes_[i].op);
    return (add.a == y) != (add.b == y) && dead_after(nodes_, i + 1, y) &&
           product.kernel->parts(product.site, 1, device_) > 1;
  }

  // A convolution takes in the activation behind it.
  std::size_t convolution(std::size_t i) {
    LoweredNode lowered;
    lowered.node = nodes_[i];
    auto& node = std::get<ConvolveNode>(lowered.node.op);
    node.shape.compute = options_.compute;
    lowered.activation = activation_behind(i, node.y);
    if (lowered.activation) node.shape.activation = lowered.activation->activation;
    out_.push_back(std::move(lowered));
    return out_.back().activation ? i + 2 : i + 1;
  }

  // So does a norm over time, where the back end has that.
  std::size_t instance_norm(std::size_t i, const InstanceNormNode& node) {
    LoweredNode lowered;
    lowered.node = nodes_[i];
    if (options_.backend.fuses_instance_norm) lowered.activation = activation_behind(i, node.y);
    out_.push_back(std::move(lowered));
    return out_.back().activation ? i + 2 : i + 1;
  }

  // The activation of node i's output y that may be folded into it.
  std::optional<ActivationNode> activation_behind(std::size_t i, BufferId y) const {
    if (!options_.fuse || i + 1 >= nodes_.size()) return std::nullopt;
    const auto* activation = std::get_if<ActivationNode>(&nodes_[i + 1].op);
    if (activation == nullptr || activation->x != y) return std::nullopt;
    if (activation->y != activation->x && !dead_after(nodes_, i + 1, activation->x)) return std::nullopt;
    return *activation;
  }

  void push(const Node& node) { out_.emplace_back().node = node; }

  // Folds [rotary of q, rotary of k,] kv_store, attention, which begin at i, into one; returns i where they do not
  // stand there, or the back end does not take it in.
  std::size_t attention(std::size_t i) {
    if (!options_.fuse || !options_.backend.fuses_store) return i;
    const auto at = [&](std::size_t index, auto kind) {
      return index < nodes_.size() ? std::get_if<decltype(kind)>(&nodes_[index].op) : nullptr;
    };
    const RotaryNode* of_q = at(i, RotaryNode{});
    const RotaryNode* of_k = at(i + 1, RotaryNode{});
    const std::size_t rotations = of_q != nullptr && of_k != nullptr ? 2 : 0;
    const KvStoreNode* store = at(i + rotations, KvStoreNode{});
    const AttentionNode* node = at(i + rotations + 1, AttentionNode{});
    if (store == nullptr || node == nullptr) return i;
    const std::size_t last = i + rotations + 1;
    if (rotations != 0 && (of_q->x != node->q || of_k->x != store->k || of_q->dims != of_k->dims ||
                           of_q->interleaved != of_k->interleaved)) {
      return i;
    }
    if (!dead_after(nodes_, last, node->q) || !dead_after(nodes_, last, store->k) ||
        !dead_after(nodes_, last, store->v)) {
      return i;
    }
    LoweredNode fused;
    fused.node = nodes_[last];
    fused.store = *store;
    if (rotations != 0) fused.rotary = *of_q;
    out_.push_back(std::move(fused));
    return last + 1;
  }

  // Lowers the linear node at i with what stands before (norm) and behind it; returns the first node not yet lowered.
  std::size_t linear(std::size_t i, const NormNode* norm) {
    const auto& node = std::get<LinearNode>(nodes_[i].op);
    LoweredNode fused;
    fused.node = nodes_[i];
    fused.site.parts = node.parts;
    fused.site.compute = options_.compute;
    fused.site.x_dtype = dtype(norm != nullptr ? norm->x : node.x);
    fused.site.y_dtype = dtype(node.y.front());
    if (norm != nullptr) fused.site.prologue = {PrologueKind::rms_norm, norm->eps};
    std::size_t after = i + 1;
    if (options_.fuse && after < nodes_.size()) {
      if (const auto* add = std::get_if<AddNode>(&nodes_[after].op);
          add != nullptr && !sum_of_norm(after) && node.y.size() == 1 &&
          (add->a == node.y[0]) != (add->b == node.y[0]) && dead_after(nodes_, after, node.y[0])) {
        fused.add = *add;
        fused.site.epilogue = {EpilogueKind::residual, ActivationKind::silu};
        fused.site.y_dtype = dtype(add->y);
      } else if (const auto* gated = std::get_if<GatedNode>(&nodes_[after].op);
                 gated != nullptr && node.y == std::vector<BufferId>{gated->gate, gated->up} &&
                 dead_after(nodes_, after, gated->gate) && dead_after(nodes_, after, gated->up)) {
        fused.gated = *gated;
        fused.site.epilogue = {EpilogueKind::gated, gated->activation};
        fused.site.y_dtype = dtype(gated->y);
      } else if (const auto* activation = std::get_if<ActivationNode>(&nodes_[after].op);
                 activation != nullptr && node.y == std::vector<BufferId>{activation->x} &&
                 (activation->y == activation->x || dead_after(nodes_, after, activation->x))) {
        fused.activation = *activation;
        fused.site.epilogue = {EpilogueKind::activation, activation->activation};
        fused.site.y_dtype = dtype(activation->y);
      }
    }
    fused.kernel = &choose(node, fused.site);
    const Fit fit = fused.kernel->fit(fused.site, device_, options_.max_rows);
    if (norm != nullptr) {
      if (fit.fuses_prologue) {
        fused.norm = *norm;
      } else {
        fused.site.prologue = {};
        fused.site.x_dtype = dtype(node.x);
        push(nodes_[i - 1]);
      }
    }
    const bool behind = fused.add.has_value() || fused.gated.has_value() || fused.activation.has_value();
    if (behind) ++after;
    if (behind && !fit.fuses_epilogue) {
      fused.add.reset();
      fused.gated.reset();
      fused.activation.reset();
      fused.site.epilogue = {};
      fused.site.y_dtype = dtype(node.y.front());
      out_.push_back(std::move(fused));
      push(nodes_[i + 1]);
    } else {
      if (!behind) take_attention(i, node, fused);
      out_.push_back(std::move(fused));
    }
    return after;
  }

  // The attention behind linear node i, where nobody else wants q, k and v, is taken in for short sequences.
  void take_attention(std::size_t i, const LinearNode& node, LoweredNode& fused) const {
    if (!options_.fuse || i + 1 >= nodes_.size()) return;
    const auto* attention = std::get_if<SelfAttentionNode>(&nodes_[i + 1].op);
    if (attention == nullptr || node.y != std::vector<BufferId>{attention->q, attention->k, attention->v} ||
        !attention->bias.empty() ||
        !std::all_of(node.y.begin(), node.y.end(), [&](BufferId id) { return dead_after(nodes_, i + 1, id); })) {
      return;
    }
    fused.most_tiles = fused.kernel->attends(fused.site, attention->heads, device_);
    if (fused.most_tiles > 0) fused.attention = *attention;
  }

  DType dtype(BufferId id) const {
    return buffer_dtype(buffers_[static_cast<std::size_t>(id)],
                        options_.backend.compute_activations ? options_.compute : DType::f32);
  }

  const LinearKernel& choose(const LinearNode& node, const LinearSite& site) {
    const bool quantised =
        std::any_of(site.parts.begin(), site.parts.end(), [](const LinearDesc& d) { return d.gptq.has_value(); });
    if (options_.kernel == "auto" && quantised) {
      return tuner_.choose(site, std::array{options_.decode_rows, options_.max_rows});
    }
    const std::string& name = options_.kernel == "auto" ? options_.full_precision : options_.kernel;
    const LinearKernel& named = kernel_named(name, device_.kind);
    const Fit fit = named.fit(site, device_, options_.max_rows);
    if (fit.ok) return named;
    // A kernel for quantised weights leaves the head, and what a checkpoint keeps in full precision, to the dense one.
    if (!quantised) {
      const LinearKernel& dense = kernel_named("dense", device_.kind);
      if (dense.fit(site, device_, options_.max_rows).ok) return dense;
    }
    fail("the kernel {} cannot run {}: {}", named.name(), node.parts.front().name, fit.reason);
  }

  const std::vector<Node> nodes_;
  const std::vector<BufferDesc>& buffers_;
  const DeviceInfo device_;
  const LoweringOptions& options_;
  Autotuner tuner_;
  std::vector<LoweredNode> out_;
};

}  // namespace

std::vector<BufferId> LoweredNode::reads() const {
  std::vector<BufferId> out = std::visit(UsesOf{}, node.op).reads;
  if (norm) out = {norm->x};
  if (before) out = {before->a, before->b};
  if (add) out.push_back(add->a == linear()->y[0] ? add->b : add->a);
  if (store) out.insert(out.end(), {store->k, store->v});
  return out;
}

std::vector<BufferId> LoweredNode::writes() const {
  if (add) return {add->y};
  if (gated) return {gated->y};
  if (activation) return {activation->y};
  if (keeps_sum) return {std::get<NormNode>(node.op).y, before->y};
  std::vector<BufferId> out = std::visit(UsesOf{}, node.op).writes;
  if (attention) out.push_back(attention->y);
  return out;
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
  if (const auto* convolve = std::get_if<ConvolveNode>(&node.op)) out += " " + convolve->module;
  if (norm) out += " + norm";
  if (add || before) out += " + residual";
  if (gated || activation) out += " + activation";
  if (rotary) out += " + rotary";
  if (store) out += " + kv_store";
  return out;
}

std::int64_t most_attended_tiles(const std::vector<LoweredNode>& nodes) {
  std::int64_t out = 0;
  for (const LoweredNode& node : nodes) {
    if (node.attention) out = out == 0 ? node.most_tiles : std::min(out, node.most_tiles);
  }
  return out;
}

std::vector<LoweredNode> lower(const Program& program, Device& device, const LoweringOptions& options) {
  return Lowerer(program, device, options).run();
}

}  // namespace nibble
