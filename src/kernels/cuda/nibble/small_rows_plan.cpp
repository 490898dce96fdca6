// How a product of few rows is divided among thread blocks: by a model of what each way takes.
#include "core/checked.h"
#include "kernels/cuda/nibble/small_rows.h"

#include <algorithm>
#include <cstdlib>

namespace nibble::gpu {

SmallRowsPlan plan_small_rows(const PackedLayout& layout, std::int64_t rows, const SmallRowsDevice& device) {
  SmallRowsPlan best;
  double least = 0;
  const auto m = static_cast<int>(rows);
  const std::int64_t pairs = layout.pairs();
  for (std::size_t i = 0; i < device.clusters.size(); ++i) {
    const std::int64_t cluster = std::int64_t{1} << i;
    if (device.clusters[i] == 0 || cluster > layout.blocks) continue;
    if (const char* forced = std::getenv("NIBBLE_CLUSTER"); forced != nullptr && std::atoi(forced) != cluster) continue;
    SmallRowsPlan plan;
    plan.tiles = rows <= 8 ? 1 : 2;
    plan.cluster = static_cast<int>(cluster);
    plan.clusters = static_cast<int>(std::min<std::int64_t>(device.clusters[i], pairs));
    const std::int64_t blocks = ceil_div(layout.blocks, cluster);
    const std::int64_t units = ceil_div(pairs, std::int64_t{plan.clusters});
    const std::int64_t items = ceil_div(units * blocks, std::int64_t{kSmallWarps});  // of a warp
    // A warp that begins in the last block of a pair has one more than it could have whole.
    plan.slots = items < 2 ? 0 : static_cast<int>((items - 2) / blocks + 1);
    const std::size_t piece = static_cast<std::size_t>(plan.tiles) * 1024;
    plan.inputs_bytes = static_cast<std::size_t>(blocks * 4 * staged_pair_bytes(m));
    plan.sums_bytes = static_cast<std::size_t>(blocks * (layout.sets + 1) * staged_tokens(m) * 4);
    plan.groups = static_cast<int>(ceil_div(units * 2 * plan.tiles, cluster));
    plan.slots_bytes = static_cast<std::size_t>(kSmallWarps * plan.slots) * piece;
    const std::size_t fixed = kSmallFixedBytes + plan.inputs_bytes + plan.sums_bytes + plan.slots_bytes +
                              static_cast<std::size_t>(plan.groups * cluster * 512);
    const std::size_t stage =
        static_cast<std::size_t>(kSmallWarps) * 2 * static_cast<std::size_t>(layout.block_bytes());
    for (plan.stages = kMostStages; plan.stages > 1; --plan.stages) {
      plan.shared_bytes = fixed + static_cast<std::size_t>(plan.stages) * stage;
      if (plan.shared_bytes <= static_cast<std::size_t>(device.shared_bytes)) break;
    }
    if (plan.stages < 2 || units > kMostPairs) continue;
    plan.fits = true;
    // Microseconds, by what an H100 takes: an item of a warp, the exchange of a cluster, and staging, of which each
    // thread block has a share.
    const double cost = static_cast<double>(items) * (plan.tiles == 1 ? 0.5 : 0.8) + (cluster > 1 ? 2.0 : 0.0) +
                        static_cast<double>(blocks * rows) * 0.02;
    if (!best.fits || cost < least) {
      best = plan;
      least = cost;
    }
  }
  return best;
}

}  // namespace nibble::gpu
