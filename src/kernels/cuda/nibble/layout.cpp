#include "kernels/cuda/nibble/layout.h"

#include "core/checked.h"

#include <algorithm>
#include <numeric>

namespace nibble::gpu {
namespace {

// The widest set that whole groups are a multiple of; a last group may be shorter, since it is padded.
int set_width(std::span<const std::int64_t> whole_groups) {
  for (const int width : {128, 64, 32}) {
    if (std::all_of(whole_groups.begin(), whole_groups.end(), [=](std::int64_t n) { return n % width == 0; }))
      return width;
  }
  return 16;
}

}  // namespace

std::int64_t PackedLayout::strips() const {
  return std::accumulate(part_strips.begin(), part_strips.end(), std::int64_t{0});
}

std::size_t PackedLayout::bytes() const {
  return checked_mul(static_cast<std::size_t>(checked_mul(2 * pairs(), blocks, "the blocks of a matrix")),
                     static_cast<std::size_t>(block_bytes()), "a packed matrix");
}

PackedLayout layout_of(const LinearSite& site) {
  PackedLayout layout;
  layout.inputs = site.in_features();
  layout.gated = site.epilogue.kind == EpilogueKind::gated;
  const GptqFormat& first = *site.parts.front().gptq;
  layout.bits = first.bits;
  for (const LinearDesc& part : site.parts) {
    layout.zeros = layout.zeros || !part.gptq->symmetric;
    if (!layout.gated) layout.part_strips.push_back(ceil_div(part.out_features, std::int64_t{kStripRows}));
  }
  if (layout.gated) layout.part_strips = {ceil_div(site.parts.front().out_features, std::int64_t{kStripRows / 2})};
  const std::int64_t group = std::min(first.group_size, layout.inputs);
  const std::int64_t whole = layout.inputs / group;
  const std::int64_t rest = layout.inputs % group;
  const std::vector<std::int64_t> whole_groups(whole > 1 || rest > 0 ? 1 : 0, group);
  const std::int64_t width = set_width(whole_groups);
  layout.sets = static_cast<int>(kBlockInputs / width);
  const std::int64_t places = whole * round_up(group, width) + round_up(rest, width);
  layout.blocks = ceil_div(places, std::int64_t{kBlockInputs});
  return layout;
}

InputOrder order_inputs(std::span<const std::int32_t> g_idx, std::int64_t groups, PackedLayout& layout) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(groups), 0);
  for (const std::int32_t g : g_idx) ++counts[static_cast<std::size_t>(g)];
  std::size_t last = counts.size();
  while (last > 0 && counts[last - 1] == 0) --last;
  const std::int64_t width = set_width(std::span(counts).first(last > 0 ? last - 1 : 0));
  layout.sets = static_cast<int>(kBlockInputs / width);

  InputOrder order;
  std::vector<std::int64_t> at(counts.size(), 0);
  std::int64_t places = 0;
  for (std::size_t g = 0; g < counts.size(); ++g) {
    at[g] = places;
    const std::int64_t padded = round_up(counts[g], width);
    order.groups.insert(order.groups.end(), static_cast<std::size_t>(padded / width), static_cast<std::int32_t>(g));
    places += padded;
  }
  layout.blocks = std::max<std::int64_t>(1, ceil_div(places, std::int64_t{kBlockInputs}));
  order.groups.resize(static_cast<std::size_t>(layout.packed_inputs() / width), -1);
  order.inputs.assign(static_cast<std::size_t>(layout.packed_inputs()), -1);
  order.sorted = true;
  for (std::size_t k = 0; k < g_idx.size(); ++k) {
    const std::int64_t place = at[static_cast<std::size_t>(g_idx[k])]++;
    order.inputs[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(k);
    order.sorted = order.sorted && place == static_cast<std::int64_t>(k);
  }
  return order;
}

}  // namespace nibble::gpu
