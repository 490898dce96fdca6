// Lowering: which kernel runs each linear site, what is folded into it, and what remains as ops. Done once for an
// engine; nothing is loaded yet, so that `nibble plan` can ask without reading weights.
#pragma once

#include "kernels/linear_kernel.h"
#include "models/program.h"
#include "ops/backend.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// One step of a pass: a node by itself, or a linear node with the neighbours that its kernel takes in.
struct LoweredNode {
  Node node;
  // For a linear node, or its activation alone for a convolution or an instance norm:
  const LinearKernel* kernel = nullptr;
  LinearSite site;
  std::optional<NormNode> norm;              // folded in as the prologue
  std::optional<AddNode> add;                // folded in as the residual epilogue
  std::optional<GatedNode> gated;            // folded in as the gated epilogue
  std::optional<ActivationNode> activation;  // folded in as the activation epilogue
  // The node behind a site of q, k and v, which the site's kernel takes in where a pass has short sequences only.
  std::optional<SelfAttentionNode> attention;
  std::int64_t most_tiles = 0;  // LinearKernel::attends() of these
  // For a norm node:
  std::optional<AddNode> before;  // folded in: what is normed is its sum, which is kept where keeps_sum
  bool keeps_sum = false;
  // For a linear node whose output only such a norm right behind it reads, and for that norm: it may be left in
  // LinearKernel::parts().
  bool in_parts = false;
  // For an attention node:
  std::optional<KvStoreNode> store;  // folded in, and with it ...
  std::optional<RotaryNode> rotary;  // ... the rotation of q and k

  const LinearNode* linear() const { return std::get_if<LinearNode>(&node.op); }
  std::vector<BufferId> reads() const;
  std::vector<BufferId> writes() const;
  /// "linear self_attn.q_proj|k_proj|v_proj + norm"
  std::string name() const;
};

struct LoweringOptions {
  std::string kernel = "auto";
  DType compute = DType::f32;
  std::string full_precision = "dense";  // for sites that are not quantised, where it takes them, under "auto"
  bool fuse = true;
  bool split_parts = false;  // every matrix is a site of its own, as op-by-op programs have them
  std::int64_t max_rows = 1;
  std::int64_t decode_rows = 1;  // rows of a decode step, which --kernel auto measures for beside max_rows
  BackendTraits backend;
};

/// The most tiles of short sequences for which all nodes that can take in attention do so; 0: there are none.
std::int64_t most_attended_tiles(const std::vector<LoweredNode>& nodes);

/// With kernel "auto", quantised sites get the kernel that measures fastest on the device at decode_rows and max_rows
/// rows (kernels/autotune.h), the others the dense one. Throws Error where the named kernel cannot run a site, with the
/// kernel's reason; UsageError where there is no such kernel.
std::vector<LoweredNode> lower(const Program& program, Device& device, const LoweringOptions& options);

}  // namespace nibble
