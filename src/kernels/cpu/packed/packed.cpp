// `packed`, nibble's own kernel for GPTQ weights on the CPU, and `packed-int8`, the same with activations of 8 bits.
// isa.h says what is stored and computed; here it is fitted to sites, rows and threads.
#include "core/checked.h"
#include "core/cpu.h"
#include "core/cpu_device.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/packed/layout.h"
#include "kernels/registry.h"

#include <algorithm>
#include <array>
#include <utility>

namespace nibble {
namespace {

using namespace packed;

// Staged activations up to this size are made by every thread for itself, on its stack: that takes less than the
// barrier (some 2 us) that sharing them costs, and they end up in the thread's own first-level cache.
constexpr std::size_t kOwnBytes = 32768;

constexpr std::size_t kAlignment = 64;

// From this many rows on, bf16 tiles beat byte tiles, whose sums must leave the tiles after every block: 32 rows take
// 0.8 of the time with bytes, 64 rows 1.15 of it.
constexpr std::int64_t kBf16TileRows = 48;
// The same for vdpbf16ps against vpdpbusd: a core of Zen 5, K 576 and 1536, 24 rows take 0.95 to 1.02 of the time with
// bytes, 32 rows 0.92 to 0.97, 128 rows 0.82 to 0.86.
constexpr std::int64_t kBf16VectorRows = 24;

// The product on activations in bf16 for a call of `rows` rows of a site that computes in bf16; null where bytes are
// faster.
MultiplyFunction* bf16_product(std::int64_t rows) {
  if (active_isa() >= Isa::amx) return rows >= kBf16TileRows ? multiply_bf16_amx : nullptr;
  return rows >= kBf16VectorRows && panels::pairs_are_faster() ? multiply_bf16_avx512bf16 : nullptr;
}

// The bytes of one plan's staged activations: integers, scales, sums.
struct StagedSizes {
  std::size_t q = 0;
  std::size_t meta = 0;  // of scales, and again of sums
  std::size_t total() const { return q + 2 * meta; }
};

StagedSizes staged_sizes(std::size_t blocks, std::size_t lines, std::int64_t rows, int planes) {
  const auto tiles = static_cast<std::size_t>(ceil_div<std::int64_t>(rows * planes, kTileRows));
  const auto tile_rows = static_cast<std::size_t>(staged_tile_rows(rows, planes));
  return {round_up(tiles * tile_rows * lines * kLine, kAlignment),
          round_up(tiles * blocks * static_cast<std::size_t>(kTileRows / planes) * sizeof(float), kAlignment)};
}

std::size_t staged_bytes(const std::vector<Plan>& plans, std::int64_t rows, int planes) {
  std::size_t total = 0;
  for (const Plan& plan : plans)
    total += staged_sizes(plan.blocks.size(), static_cast<std::size_t>(plan.lines), rows, planes).total();
  return total;
}

// Where each plan's activations go.
std::array<Staged, kMaxParts> place_staged(const std::vector<Plan>& plans, std::int64_t rows, int planes,
                                           std::byte* at) {
  std::array<Staged, kMaxParts> staged{};
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const StagedSizes sizes =
        staged_sizes(plans[i].blocks.size(), static_cast<std::size_t>(plans[i].lines), rows, planes);
    staged[i].q = reinterpret_cast<std::int8_t*>(at);
    staged[i].scale = reinterpret_cast<float*>(at + sizes.q);
    staged[i].minus_sum = reinterpret_cast<float*>(at + sizes.q + sizes.meta);
    at += sizes.total();
  }
  return staged;
}

std::size_t bf16_bytes(std::int32_t steps, std::int64_t rows) {
  constexpr std::size_t kTileBytes = 1024;
  return static_cast<std::size_t>(ceil_div<std::int64_t>(rows, kTileRows)) * static_cast<std::size_t>(steps) *
         kTileBytes;
}

// What a thread needs to bring a row of inputs into the order of its plan.
std::size_t scratch_bytes(const LinearSite& site) {
  return round_up(2 * static_cast<std::size_t>(scratch_stride(site.in_features())) * sizeof(float), kAlignment);
}

// Gates of encoders' kinds, and activations alone, are left to an op.
bool known_epilogue(const Epilogue& epilogue) {
  if (epilogue.kind == EpilogueKind::activation) return false;
  return epilogue.kind != EpilogueKind::gated ||
         (epilogue.activation != ActivationKind::quick_gelu && epilogue.activation != ActivationKind::tanh);
}

Finish finish_of(const Epilogue& epilogue) {
  switch (epilogue.kind) {
    case EpilogueKind::store:
      return Finish::store;
    case EpilogueKind::residual:
      return Finish::residual;
    case EpilogueKind::gated:
    case EpilogueKind::activation:
      break;
  }
  switch (epilogue.activation) {
    case ActivationKind::silu:
      return Finish::silu;
    case ActivationKind::gelu:
      return Finish::gelu;
    case ActivationKind::gelu_tanh:
      return Finish::gelu_tanh;
    case ActivationKind::relu:
      return Finish::relu;
    case ActivationKind::quick_gelu:
    case ActivationKind::tanh:
      break;
  }
  fail("an activation that `packed` does not know");
}

// Everything that a call's tasks need, by value.
struct Task {
  const PackedSite* packed = nullptr;
  Call call;
  StageCall stage;  // without its plan and place
  StageFunction* stage_rows = nullptr;
  MultiplyFunction* multiply = nullptr;
  bool bf16 = false;              // activations are staged as bf16
  std::byte* scratch = nullptr;   // of all threads
  std::size_t scratch_bytes = 0;  // of one

  void stage_all(const std::array<Staged, kMaxParts>& staged, int thread, std::int64_t begin, std::int64_t end) const {
    const std::vector<Plan>& plans = packed->plans();
    for (std::size_t i = 0; i < plans.size(); ++i) {
      StageCall one = stage;
      one.plan = plans[i].view();
      one.to = staged[i];
      one.scratch = reinterpret_cast<float*>(scratch + static_cast<std::size_t>(thread) * scratch_bytes);
      stage_rows(one, begin, end);
    }
  }

  // The work in items of one pair and 32 rows, pair after pair; a thread gets a run of them, which is at most three
  // rectangles: the rest of a pair, whole pairs, the beginning of a pair.
  void multiply_share(const std::array<Staged, kMaxParts>& staged, int thread, int threads) const {
    Call mine = call;
    std::copy(staged.begin(), staged.end(), mine.staged);
    const std::int64_t chunks = ceil_div<std::int64_t>(call.rows, kRowGrain);
    auto [begin, end] = split_range(call.pairs * chunks, 1, thread, threads);
    const auto rows_to = [this](std::int64_t chunk) { return std::min(call.rows, chunk * kRowGrain); };
    while (begin < end) {
      const std::int64_t pair = begin / chunks;
      const std::int64_t chunk = begin % chunks;
      if (chunk == 0 && end - begin >= chunks) {
        const std::int64_t pairs = (end - begin) / chunks;
        multiply(mine, {pair, pair + pairs, 0, call.rows});
        begin += pairs * chunks;
      } else {
        const std::int64_t last = std::min(chunks, chunk + end - begin);
        multiply(mine, {pair, pair + 1, chunk * kRowGrain, rows_to(last)});
        begin += last - chunk;
      }
    }
  }
};

class PackedKernel : public LinearKernel {
 public:
  explicit PackedKernel(int planes) : planes_(planes) {}

  std::string_view name() const override { return planes_ == 2 ? "packed" : "packed-int8"; }

  KernelTraits traits() const override {
    KernelTraits traits;
    traits.accumulate = "i32 in a group, f32 across groups";
    if (planes_ == 2) {
      traits.summary = "nibble's own: GPTQ codes read once, activations rounded to 16 bits a group";
      // Half a step of max|x| / 32639 an input: some 5e-5 of inputs alike, ten times that beside an input a hundred
      // times larger.
      traits.error_f32 = 1e-3;
    } else {
      traits.summary = "as packed, with activations of few rows rounded to 8 bits a block of 64: less exact";
      traits.exact_activations = false;
      // The same with 127 steps instead of 32639.
      traits.error_f32 = traits.error_bf16 = 0.25;
    }
    return traits;
  }

  Fit fit(const LinearSite& site, const DeviceInfo& device, std::int64_t) const override {
    if (device.kind != DeviceKind::cpu) return Fit::no("it runs on the CPU only");
    if (site.parts.size() > kMaxParts) return Fit::no("it takes at most 8 matrices at one place; run them apart");
    for (const LinearDesc& part : site.parts) {
      if (!part.gptq) return Fit::no(part.name + " is not quantised; it takes GPTQ weights (use dense)");
      const int bits = part.gptq->bits;
      if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        return Fit::no(part.name + " has codes of other than 2, 3, 4 or 8 bits");
    }
    const bool gated_pair = site.epilogue.kind != EpilogueKind::gated ||
                            (site.parts.size() == 2 && site.parts[0].out_features == site.parts[1].out_features);
    const bool one_residual = site.epilogue.kind != EpilogueKind::residual || site.parts.size() == 1;
    return Fit::yes(true, gated_pair && one_residual && known_epilogue(site.epilogue));
  }

  std::size_t packed_bytes(const LinearSite& site) const override { return packed_site_bytes(site, planes_); }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream&) const override {
    return std::make_unique<PackedSite>(site, tensors, planes_, device);
  }

  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    const std::vector<Plan> plans = possible_plans(site, planes_);
    std::size_t bytes = staged_bytes(plans, rows, planes_);
    for (const Plan& plan : plans) bytes = std::max(bytes, bf16_bytes(plan.steps, rows));
    return bytes + static_cast<std::size_t>(ThreadPool::instance().threads()) * scratch_bytes(site);
  }

  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& weights = static_cast<const PackedSite&>(packed);
    const Task task = make_task(weights, args);
    CpuStream& cpu = cpu_stream(stream);
    if (!task.bf16 && staged_bytes(weights.plans(), args.rows, planes_) <= kOwnBytes) {
      cpu.parallel([task](int thread, int threads) {
        alignas(kAlignment) std::array<std::byte, kOwnBytes> own;
        const auto staged = place_staged(task.packed->plans(), task.call.rows, task.call.planes, own.data());
        task.stage_all(staged, thread, 0, task.call.rows);
        task.multiply_share(staged, thread, threads);
      });
      return;
    }
    std::array<Staged, kMaxParts> staged{};
    std::byte* const to =
        task.scratch + static_cast<std::size_t>(ThreadPool::instance().threads()) * task.scratch_bytes;
    if (task.bf16) {
      staged[0].bf16 = reinterpret_cast<std::uint16_t*>(to);
    } else {
      staged = place_staged(weights.plans(), args.rows, planes_, to);
    }
    cpu.parallel([task, staged](int thread, int threads) {
      const auto [begin, end] = split_range(task.call.rows, 1, thread, threads);
      task.stage_all(staged, thread, begin, end);
    });
    cpu.parallel([task, staged](int thread, int threads) { task.multiply_share(staged, thread, threads); });
  }

 private:
  Task make_task(const PackedSite& weights, const LinearArgs& args) const {
    Task task;
    task.packed = &weights;
    task.scratch = args.workspace;
    task.scratch_bytes = scratch_bytes(weights.site());
    Call& call = task.call;
    call.parts = weights.parts().data();
    call.part_count = static_cast<int>(weights.parts().size());
    call.planes = planes_;
    call.rows = args.rows;
    call.pairs = weights.pairs();
    call.finish = finish_of(weights.site().epilogue);
    for (std::size_t i = 0; i < args.y.size(); ++i) call.y[i] = {static_cast<float*>(args.y[i].data), args.y[i].stride};
    if (call.finish == Finish::residual) {
      call.residual = static_cast<const float*>(args.residual.data);
      call.residual_stride = args.residual.stride;
    }
    StageCall& stage = task.stage;
    stage.x = static_cast<const float*>(args.x.data);
    stage.stride = args.x.stride;
    stage.rows = args.rows;
    stage.inputs = weights.site().in_features();
    stage.planes = planes_;
    if (weights.site().prologue.kind == PrologueKind::rms_norm) {
      stage.norm_weight = args.norm_weight;
      stage.eps = weights.site().prologue.eps;
    }
    task.stage_rows =
        pick<StageFunction>({{Isa::scalar, stage_scalar}, {Isa::avx2, stage_avx2}, {Isa::avx512, stage_avx512}});
    task.multiply = pick<MultiplyFunction>({{Isa::scalar, multiply_scalar},
                                            {Isa::avx2, multiply_avx2},
                                            {Isa::avxvnni, multiply_avxvnni},
                                            {Isa::avx512, multiply_avx512},
                                            {Isa::avx512vnni, multiply_avx512vnni},
                                            {Isa::amx, multiply_amx}});
    if (weights.site().compute == DType::bf16 && weights.plans().size() == 1) {
      if (MultiplyFunction* const multiply = bf16_product(args.rows)) {
        task.bf16 = true;
        task.stage_rows = stage_avx512bf16;
        task.multiply = multiply;
      }
    }
    return task;
  }

  int planes_;
};

class Packed16 final : public PackedKernel {
 public:
  Packed16() : PackedKernel(2) {}
};
class Packed8 final : public PackedKernel {
 public:
  Packed8() : PackedKernel(1) {}
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, Packed16);
NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, Packed8);

}  // namespace
}  // namespace nibble
