// How a product of few rows is divided among thread blocks: by a model of what each way takes.
#include "core/checked.h"
#include "kernels/cuda/nibble/small_rows.h"

#include <algorithm>
#include <array>

namespace nibble::gpu {
namespace {

// On an H100 5120 x 5120 (4 items) takes 8.1 us with two thread blocks a multiprocessor and rings of 2 stages, 9.6 with
// one and 4; 5120 x 13824 (9 items) 18.4 and 15.1.
constexpr std::int64_t kMostResidentItems = 4;

}  // namespace

SmallRowsPlan plan_small_rows(const PackedLayout& layout, std::int64_t rows, const SmallRowsDevice& device,
                              const SmallRowsUse& use) {
  const auto& [norm, residual, picked_row_bytes] = use;
  SmallRowsPlan best;
  double least = 0;
  const auto m = static_cast<int>(rows);
  const std::int64_t pairs = layout.pairs();
  for (std::size_t i = 0; i < device.clusters.size(); ++i) {
    const std::int64_t cluster = std::int64_t{1} << i;
    if (device.clusters[i] == 0 || cluster > layout.blocks) continue;
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
    const std::size_t received = static_cast<std::size_t>(plan.groups * cluster * 512);
    plan.slice_inputs = static_cast<int>(blocks) * kBlockInputs;
    const std::size_t slice_table = static_cast<std::size_t>(plan.slice_inputs) * 4;
    const std::size_t norm_slice = norm ? slice_table : 0;
    const std::size_t fixed = kSmallFixedBytes + plan.sums_bytes + plan.slots_bytes + norm_slice;
    const std::size_t stage =
        static_cast<std::size_t>(kSmallWarps) * 2 * static_cast<std::size_t>(layout.block_bytes());
    const auto room = static_cast<std::size_t>(device.shared_bytes);
    plan.overlaid = fixed + plan.inputs_bytes + received + 2 * stage > room;
    if (plan.overlaid) plan.inputs_bytes = std::max(plan.inputs_bytes, received);
    const std::size_t kept = fixed + plan.inputs_bytes + (plan.overlaid ? 0 : received);
    if (kept + 2 * stage > room || units > kMostPairs) continue;
    // Picked inputs want rows and the norm's weights whole, and the order of the slice: worth stages of the rings.
    const std::size_t all_norm = norm ? static_cast<std::size_t>(layout.inputs) * 4 : 0;
    const std::size_t picked =
        slice_table + static_cast<std::size_t>(rows * picked_row_bytes) + std::max(all_norm, norm_slice) - norm_slice;
    plan.picks = picked_row_bytes > 0 && kept + 2 * stage + picked <= room;
    const std::size_t tables = plan.picks ? picked : 0;
    const auto half = static_cast<std::size_t>(device.half_shared_bytes);
    // Sites with a norm or a residual stand in a decoding step, whose attention takes a multiprocessor's memory whole:
    // there one block with its longer ring is faster (an H100 takes 3.374 instead of 3.400 ms a token for a model of 13
    // billion parameters, 1.940 instead of 1.970 for 7, 0.887 instead of 0.930 for 1.1).
    if (!norm && !residual && layout.bits == kResidentBits && layout.sets == kResidentSets && plan.tiles == 1 &&
        items <= kMostResidentItems && kept + tables + 2 * stage <= half) {
      plan.resident = 2;
    }
    plan.stages = static_cast<int>(
        std::min<std::size_t>(kMostStages, ((plan.resident == 2 ? half : room) - kept - tables) / stage));
    plan.tables_at = kept - norm_slice + static_cast<std::size_t>(plan.stages) * stage;
    plan.shared_bytes = plan.tables_at + norm_slice + tables;
    plan.fits = true;
    // Early stages keep the copy engine, which takes some forty requests and then lets warps wait, from letting them go
    // on to the inputs: that is worth it where there is much to read.
    plan.early_stages = plan.tiles == 1 && items > 5 ? std::min(plan.stages, 3) : 2;
    // Microseconds, by what an H100 takes: the items of a warp, what a cluster costs to start and to meet (one of 8
    // leaves multiprocessors out), and staging, of which each thread block has its slice.
    constexpr std::array<double, 4> kMeeting = {0, 0.3, 0.6, 0.6};
    const bool one_tile = plan.tiles == 1;
    const double item = (one_tile ? 0.5 : 0.8) + (cluster < kMostCluster ? 0 : one_tile ? 0.07 : 0.11);
    const double cost = static_cast<double>(items) * item + kMeeting[i] +
                        static_cast<double>(blocks * rows) * (one_tile ? 0.025 : 0.0125);
    if (!best.fits || cost < least) {
      best = plan;
      least = cost;
    }
  }
  return best;
}

bool takes_few_rows(const LinearSite& site, const PackedLayout& layout, std::int64_t rows,
                    const SmallRowsDevice& device) {
  if (rows > kMostPassRows || site.compute == DType::f32) return false;
  // The kernel counts items, and sixteen times as many, in 32 bits.
  if (layout.strips() * layout.blocks > std::int64_t{1} << 22) return false;
  const bool norm = site.prologue.kind == PrologueKind::rms_norm;
  return plan_small_rows(layout, std::min(rows, kMostSmallRows), device, {.norm = norm}).fits;
}

}  // namespace nibble::gpu
