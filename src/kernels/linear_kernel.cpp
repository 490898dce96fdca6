#include "kernels/linear_kernel.h"

#include "core/checked.h"

#include <fmt/core.h>

namespace nibble {

std::int64_t LinearSite::out_features() const {
  std::int64_t total = 0;
  for (const LinearDesc& part : parts) total += part.out_features;
  return total;
}

std::vector<float> bias_of(const LinearTensors& tensors) {
  if (!tensors.bias.empty()) return to_float(tensors.bias);
  return tensors.gptq != nullptr ? tensors.gptq->bias : std::vector<float>{};
}

std::string text_of(std::span<const KernelWay> ways) {
  std::string out;
  for (const KernelWay& way : ways) {
    if (!out.empty()) out += ", ";
    out += way.most_rows > 0       ? fmt::format("{} M<={}", way.name, way.most_rows)
           : &way == &ways.front() ? std::string(way.name)
                                   : fmt::format("{} above", way.name);
  }
  return out;
}

void LinearKernel::attend(const PackedLinear&, const LinearArgs&, const SiteAttention&, Stream&) const {
  fail("the kernel {} does not attend behind a site: ask attends() first", name());
}

LinearSite fused_site(LinearSite site, const Fit& fit) {
  if (!fit.fuses_prologue) site.prologue = {};
  if (!fit.fuses_epilogue) site.epilogue = {};
  return site;
}

Cost minimal_cost(const LinearSite& site, std::int64_t rows) {
  Cost cost;
  const double dense_bytes = site.compute == DType::f32 ? 4 : 2;
  for (const LinearDesc& part : site.parts) {
    const double k = static_cast<double>(part.in_features);
    const double n = static_cast<double>(part.out_features);
    if (part.gptq) {
      const double groups = static_cast<double>(ceil_div(part.in_features, part.gptq->group_size));
      const double zero_bytes = part.gptq->symmetric ? 0 : part.gptq->bits / 8.0;
      cost.bytes += k * n * part.gptq->bits / 8 + groups * n * (2 + zero_bytes);
      if (part.gptq->act_order) cost.bytes += 4 * k;
    } else {
      cost.bytes += k * n * dense_bytes;
    }
    if (part.bias) cost.bytes += n * dense_bytes;
    cost.flops += 2 * static_cast<double>(rows) * k * n;
  }
  const double m = static_cast<double>(rows);
  const double out = static_cast<double>(site.epilogue.kind == EpilogueKind::gated ? site.parts.front().out_features
                                                                                   : site.out_features());
  cost.bytes +=
      4 * m * (static_cast<double>(site.in_features()) + out * (site.epilogue.kind == EpilogueKind::residual ? 2 : 1));
  return cost;
}

}  // namespace nibble
