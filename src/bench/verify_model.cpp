#include "bench/verify_model.h"

#include "core/error.h"
#include "engine/configuration.h"
#include "engine/weights.h"
#include "formats/quant_config.h"
#include "kernels/verify.h"
#include "models/family.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

namespace nibble {
namespace {

/// Equal for sites that a kernel cannot tell apart but by their values.
std::string shape_of(const LoweredNode& node) {
  std::string out =
      fmt::format("{} {} {} {} ", node.kernel->name(), static_cast<int>(node.site.prologue.kind),
                  static_cast<int>(node.site.epilogue.kind), static_cast<int>(node.site.epilogue.activation));
  for (const LinearDesc& part : node.site.parts) {
    out += fmt::format("{}x{}{}", part.in_features, part.out_features, part.bias ? "b" : "");
    if (part.gptq)
      out += fmt::format(" q{} g{} {} {}", part.gptq->bits, part.gptq->group_size, part.gptq->act_order,
                         part.gptq->symmetric);
    out += ";";
  }
  return out;
}

}  // namespace

ModelVerification verify_model(const Checkpoint& checkpoint, const EngineOptions& options, Backend& backend,
                               std::span<const std::int64_t> rows) {
  EngineConfiguration decided = configure_engine(checkpoint, options, backend);
  ModelVerification out = verify_nodes(checkpoint, std::move(decided.nodes), backend, rows);
  out.tune_seconds = decided.tune_seconds;
  return out;
}

ModelVerification verify_nodes(const Checkpoint& checkpoint, std::vector<LoweredNode> nodes, Backend& backend,
                               std::span<const std::int64_t> rows) {
  const std::unique_ptr<Stream> stream = backend.device().make_stream();
  const std::optional<QuantConfig> quant = find_quant_config(checkpoint.folder());
  ModelVerification out;
  std::set<std::string> seen;
  for (LoweredNode& node : nodes) {
    if (node.linear() == nullptr || !seen.insert(shape_of(node)).second) continue;
    std::vector<LoadedLinear> loaded;
    const std::vector<LinearTensors> tensors = load_site(checkpoint, quant, *node.linear(), node.site, loaded);
    const std::unique_ptr<PackedLinear> packed = node.kernel->pack(node.site, tensors, backend.device(), *stream);
    stream->synchronize();
    for (const std::int64_t count : rows) {
      VerifyOptions verify_options;
      verify_options.rows = count;
      const VerifyResult result = verify(*node.kernel, *packed, node.site, tensors, verify_options, backend.device());
      if (!result.ok)
        fail("{} is not timed: on {} with {} rows, {}", node.kernel->name(), node.site.parts.front().name, count,
             result.sentence);
      if (result.bound > 0) out.error = std::max(out.error, result.error / result.bound);
    }
    ++out.sites;
    drop_linear(checkpoint, *node.linear());
  }
  return out;
}

}  // namespace nibble
