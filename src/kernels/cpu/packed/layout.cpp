#include "kernels/cpu/packed/layout.h"

#include "core/checked.h"
#include "core/float_convert.h"
#include "core/thread_pool.h"
#include "formats/gptq_pack.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <utility>

namespace nibble::packed {
namespace {

constexpr int kWordBytes = 4 * kPanel;

// Inputs and bytes of a chunk; 3 bits take two words of low bits and one of high bits.
constexpr int chunk_inputs(int bits) { return bits == 3 ? 32 : 32 / bits; }
constexpr int chunk_bytes(int bits) { return bits == 3 ? 3 * kWordBytes : kWordBytes; }
constexpr int code_planes(int bits) { return bits == 3 ? 4 : 8 / bits; }

// Blocks start at multiples of this, so that staging can write 16 bytes at a time.
constexpr int kSlotAlignment = 16;
// Slots that one AMX step of bf16 takes.
constexpr int kStepSlots = 32;

bool fits_half(float value) {
  const float back = half_to_float(float_to_half(value));
  return std::bit_cast<std::uint32_t>(back) == std::bit_cast<std::uint32_t>(value) || (value != value && back != back);
}

std::int64_t panel_count(std::int64_t outputs) { return ceil_div<std::int64_t>(outputs, kPanel); }

// Writes one part's panels.
class Packer {
 public:
  Packer(const GptqTensors& gptq, const Plan& plan, const Matrix& matrix, std::uint8_t* panels)
      : gptq_(gptq), plan_(plan), matrix_(matrix), panels_(panels) {}

  void pack(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t panel = begin; panel < end; ++panel) pack_scales(panel);
    if (plan_.order.empty() && gptq_.bits != 3 && blocks_start_words()) {
      // Sixteen panels at a time read 1 KiB of each row of words and write sixteen streams.
      for (std::int64_t panel = begin; panel < end; panel += 16) copy_words(panel, std::min(end, panel + 16));
      return;
    }
    switch (gptq_.bits) {
      case 2:
        return pack_codes<2>(begin, end);
      case 3:
        return pack_codes<3>(begin, end);
      case 4:
        return pack_codes<4>(begin, end);
      default:
        return pack_codes<8>(begin, end);
    }
  }

 private:
  std::uint8_t* panel_at(std::int64_t panel) const { return panels_ + panel * matrix_.stride; }

  bool blocks_start_words() const {
    return std::all_of(plan_.blocks.begin(), plan_.blocks.end(),
                       [this](const Block& block) { return block.first % chunk_inputs(gptq_.bits) == 0; });
  }

  void pack_scales(std::int64_t panel) const {
    const std::int64_t first = panel * kPanel;
    const auto count = static_cast<std::size_t>(std::min<std::int64_t>(kPanel, gptq_.out_features - first));
    std::uint8_t* const to = panel_at(panel);
    std::memset(to, 0, static_cast<std::size_t>(matrix_.codes_offset));
    for (std::size_t b = 0; b < plan_.blocks.size(); ++b) {
      const std::size_t from = static_cast<std::size_t>(plan_.groups[b] * gptq_.out_features + first);
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t at = b * kPanel + i;
        if (matrix_.wide_scales) {
          std::memcpy(to + 4 * at, &gptq_.scales[from + i], 4);
        } else {
          const std::uint16_t half = float_to_half(gptq_.scales[from + i]);
          std::memcpy(to + 2 * at, &half, 2);
        }
        if (!matrix_.symmetric)
          to[matrix_.zeros_offset + static_cast<std::int64_t>(at)] = static_cast<std::uint8_t>(gptq_.zeros[from + i]);
      }
    }
  }

  // The file's words are chunks already.
  void copy_words(std::int64_t begin, std::int64_t end) const {
    const std::int64_t columns = gptq_.qweight_columns;
    std::int64_t chunk = 0;
    for (const Block& block : plan_.blocks) {
      const std::int64_t first_word = block.first / chunk_inputs(gptq_.bits);
      for (int c = 0; c < block.chunks; ++c, ++chunk) {
        const std::uint32_t* const row = gptq_.qweight.data() + (first_word + c) * columns;
        for (std::int64_t panel = begin; panel < end; ++panel) {
          std::uint8_t* const to = panel_at(panel) + matrix_.codes_offset + chunk * kWordBytes;
          const std::int64_t left = std::min<std::int64_t>(kPanel, columns - panel * kPanel);
          if (left == kPanel) {
            std::memcpy(to, row + panel * kPanel, kWordBytes);
          } else {
            std::memcpy(to, row + panel * kPanel, static_cast<std::size_t>(left) * 4);
            std::memset(to + left * 4, 0, static_cast<std::size_t>(kPanel - left) * 4);
          }
        }
      }
    }
  }

  using Words = std::array<std::uint32_t, kPanel>;

  // Any order of inputs: one after the other, 16 outputs at a time. Rows of words lie some power of two apart, so that
  // a column of them would fight for a few sets of the cache: panels are gathered first, some side by side.
  template <int Bits>
  void pack_codes(std::int64_t begin, std::int64_t end) const {
    constexpr std::int64_t kTogether = 4;
    const std::int64_t rows = packed_words(gptq_.in_features, Bits);
    std::vector<Words> gathered(static_cast<std::size_t>(kTogether * rows));
    for (std::int64_t first = begin; first < end; first += kTogether) {
      const std::int64_t count = std::min(kTogether, end - first);
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t p = 0; p < count; ++p)
          gathered[static_cast<std::size_t>(p * rows + row)] = words_at(row, first + p);
      }
      for (std::int64_t p = 0; p < count; ++p) pack_panel<Bits>(gathered.data() + p * rows, first + p);
    }
  }

  // A panel's words of one row; of outputs that do not exist, zeros.
  Words words_at(std::int64_t row, std::int64_t panel) const {
    const std::int64_t n = panel * kPanel;
    const std::uint32_t* const from = gptq_.qweight.data() + row * gptq_.qweight_columns + n;
    Words words{};
    if (gptq_.out_features - n >= kPanel) {
      std::memcpy(words.data(), from, sizeof words);
    } else {
      std::memcpy(words.data(), from, static_cast<std::size_t>(gptq_.out_features - n) * sizeof(std::uint32_t));
    }
    return words;
  }

  template <int Bits>
  void pack_panel(const Words* rows, std::int64_t panel) const {
    constexpr int kInputs = chunk_inputs(Bits);
    std::uint8_t* to = panel_at(panel) + matrix_.codes_offset;
    for (const Block& block : plan_.blocks) {
      for (int c = 0; c < block.chunks; ++c, to += chunk_bytes(Bits)) {
        std::array<Words, Bits == 3 ? 3 : 1> words{};
        const int inputs = std::min(kInputs, block.inputs - c * kInputs);
        for (int i = 0; i < inputs; ++i) {
          const std::int64_t sorted = block.first + c * kInputs + i;
          const std::int64_t k = plan_.order.empty() ? sorted : plan_.order[static_cast<std::size_t>(sorted)];
          add_codes<Bits>(rows, k, i, words);
        }
        std::memcpy(to, words.data(), sizeof words);
      }
    }
  }

  // Puts the codes of input k into place i of a chunk.
  template <int Bits, std::size_t Count>
  static void add_codes(const Words* rows, std::int64_t k, int i, std::array<Words, Count>& words) {
    constexpr std::uint32_t kMask = (1u << Bits) - 1u;
    const std::int64_t bit = k * Bits;
    const int shift = static_cast<int>(bit % 32);
    const Words& row = rows[bit / 32];
    if constexpr (Bits != 3) {
      for (std::size_t n = 0; n < kPanel; ++n) words[0][n] |= (row[n] >> shift & kMask) << (Bits * i);
    } else {
      Words codes;
      for (std::size_t n = 0; n < kPanel; ++n) codes[n] = row[n] >> shift;
      if (shift + Bits > 32) {
        const Words& next = (&row)[1];
        for (std::size_t n = 0; n < kPanel; ++n) codes[n] |= next[n] << (32 - shift);
      }
      const int low_shift = 2 * (i % 16);
      const int high_shift = 8 * (i % 16 / 4) + 4 * (i / 16) + i % 4;
      Words& low = words[static_cast<std::size_t>(i / 16)];
      for (std::size_t n = 0; n < kPanel; ++n) {
        low[n] |= (codes[n] & 3u) << low_shift;
        words[2][n] |= (codes[n] >> 2 & 1u) << high_shift;
      }
    }
  }

  const GptqTensors& gptq_;
  const Plan& plan_;
  const Matrix& matrix_;
  std::uint8_t* panels_;
};

// Panels of all parts in the order that the work takes them, so that each thread reads one forward stream.
// Sets the parts' strides and returns their offsets, and the size of all behind them.
std::vector<std::int64_t> place(std::vector<Matrix>& parts, bool gated) {
  if (gated) {
    // Gate and up take turns.
    const std::int64_t first = parts[0].stride;
    const std::int64_t both = first + parts[1].stride;
    for (Matrix& part : parts) part.stride = both;
    return {0, first, both * panel_count(parts[0].outputs)};
  }
  std::vector<std::int64_t> offsets = {0};
  for (const Matrix& part : parts) offsets.push_back(offsets.back() + part.stride * panel_count(part.outputs));
  return offsets;
}

Plan regular_plan(const LinearDesc& part, int planes) {
  const std::int64_t size = part.gptq->group_size;
  const std::int64_t group = size > 0 ? std::min(size, part.in_features) : part.in_features;
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(part.in_features));
  for (std::int64_t k = 0; k < part.in_features; ++k)
    g_idx[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k / group);
  return Plan(g_idx, part.gptq->bits, planes);
}

void check(const LinearDesc& desc, const GptqTensors* gptq) {
  if (gptq == nullptr || !desc.gptq) fail("{} has no GPTQ tensors, but it is to be packed as if it had", desc.name);
  if (gptq->in_features != desc.in_features || gptq->out_features != desc.out_features ||
      gptq->bits != desc.gptq->bits) {
    fail("{}: the checkpoint has a matrix of {} inputs, {} outputs and {} bits where the model has {}, {} and {}",
         desc.name, gptq->in_features, gptq->out_features, gptq->bits, desc.in_features, desc.out_features,
         desc.gptq->bits);
  }
  if (std::any_of(gptq->zeros.begin(), gptq->zeros.end(), [](std::uint16_t z) { return z > 255; })) {
    fail("{}: a zero point is above 255, which no code of 8 bits can reach", desc.name);
  }
}

std::size_t bookkeeping_bytes(const Plan& plan) {
  return plan.blocks.size() * (sizeof(Block) + sizeof(std::int32_t)) + plan.order.size() * sizeof(std::int32_t);
}

}  // namespace

Plan::Plan(std::span<const std::int32_t> g_idx, int code_bits, int planes) : bits(code_bits) {
  order.resize(g_idx.size());
  std::iota(order.begin(), order.end(), 0);
  const auto group_of = [&g_idx](std::int32_t k) { return g_idx[static_cast<std::size_t>(k)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return group_of(a) < group_of(b); });
  const int inputs = chunk_inputs(bits);
  std::int32_t slot = 0;
  std::int32_t filled = 0;
  for (std::size_t first = 0; first < order.size();) {
    std::size_t last = first;
    while (last < order.size() && group_of(order[last]) == group_of(order[first]) &&
           last - first < static_cast<std::size_t>(max_block(planes))) {
      ++last;
    }
    Block block;
    block.first = static_cast<std::int32_t>(first);
    block.inputs = static_cast<std::int32_t>(last - first);
    block.chunks = ceil_div(block.inputs, inputs);
    const std::int32_t slots = block.chunks * inputs;
    if (slot % kLine + slots > kLine) slot = round_up(slot, kLine);
    gaps |= slot != filled;
    block.slot = slot;
    filled = slot + slots;
    slot = round_up(filled, kSlotAlignment);
    chunks += block.chunks;
    blocks.push_back(block);
    groups.push_back(group_of(order[first]));
    first = last;
  }
  steps = ceil_div(filled, kStepSlots);
  gaps |= filled != steps * kStepSlots;
  lines = ceil_div(filled, kLine);
  if (std::is_sorted(order.begin(), order.end())) order = {};
}

PlanView Plan::view() const {
  return {blocks.data(),
          order.empty() ? nullptr : order.data(),
          static_cast<std::int32_t>(blocks.size()),
          lines,
          code_planes(bits),
          chunk_inputs(bits),
          gaps,
          steps};
}

std::int64_t panel_bytes(std::int64_t blocks, std::int64_t chunks, int bits, bool symmetric, bool wide_scales) {
  const std::int64_t header = blocks * kPanel * ((wide_scales ? 4 : 2) + (symmetric ? 0 : 1));
  return round_up<std::int64_t>(header, 64) + chunks * chunk_bytes(bits);
}

int PackedSite::plan_of(const GptqTensors& gptq, int planes) {
  Plan plan(gptq.g_idx, gptq.bits, planes);
  const auto found = std::find(plans_.begin(), plans_.end(), plan);
  if (found != plans_.end()) return static_cast<int>(found - plans_.begin());
  bytes_ += bookkeeping_bytes(plan);
  plans_.push_back(std::move(plan));
  return static_cast<int>(plans_.size()) - 1;
}

PackedSite::PackedSite(const LinearSite& site, std::span<const LinearTensors> tensors, int planes, Device& device)
    : site_(site) {
  plans_.reserve(site.parts.size());
  for (std::size_t i = 0; i < site.parts.size(); ++i) {
    const LinearDesc& desc = site.parts[i];
    const GptqTensors* const gptq = tensors[i].gptq;
    check(desc, gptq);
    Matrix part;
    part.bits = gptq->bits;
    part.outputs = gptq->out_features;
    part.symmetric = gptq->sym;
    part.middle = static_cast<float>(1 << (part.bits - 1));
    part.wide_scales = !std::all_of(gptq->scales.begin(), gptq->scales.end(), fits_half);
    part.staged = plan_of(*gptq, planes);
    const Plan& plan = plans_[static_cast<std::size_t>(part.staged)];
    const Plan regular = regular_plan(desc, planes);
    if (plan.lines > regular.lines || plan.blocks.size() > regular.blocks.size()) {
      fail("{}: its g_idx does not put {} inputs in each group, which `{}` needs; use the kernel dequant", desc.name,
           gptq->group_size, planes == 2 ? "packed" : "packed-int8");
    }
    const auto blocks = static_cast<std::int64_t>(plan.blocks.size());
    part.zeros_offset = blocks * kPanel * (part.wide_scales ? 4 : 2);
    part.codes_offset = panel_bytes(blocks, 0, part.bits, part.symmetric, part.wide_scales);
    part.stride = panel_bytes(blocks, plan.chunks, part.bits, part.symmetric, part.wide_scales);
    biases_.push_back(bias_of(tensors[i]));
    bytes_ += biases_.back().size() * sizeof(float);
    parts_.push_back(part);
    pairs_ += ceil_div<std::int64_t>(panel_count(part.outputs), 2);
  }
  const bool gated = site.epilogue.kind == EpilogueKind::gated;
  if (gated) pairs_ = panel_count(parts_.front().outputs);
  const std::vector<std::int64_t> offsets = place(parts_, gated);
  const auto code_bytes = static_cast<std::size_t>(offsets.back());
  bytes_ += code_bytes;
  codes_ = device.allocate(code_bytes, "the packed weights of " + site.parts.front().name);
  std::uint8_t* const base = reinterpret_cast<std::uint8_t*>(codes_->data());
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Matrix& part = parts_[i];
    const Plan& plan = plans_[static_cast<std::size_t>(part.staged)];
    part.plan = plan.view();
    part.bias = biases_[i].empty() ? nullptr : biases_[i].data();
    std::uint8_t* const panels = base + offsets[i];
    part.panels = panels;
    Packer packer(*tensors[i].gptq, plan, part, panels);
    ThreadPool::instance().run([&](int thread, int threads) {
      const auto [begin, end] = split_range(panel_count(part.outputs), 1, thread, threads);
      packer.pack(begin, end);
    });
  }
}

std::vector<Plan> possible_plans(const LinearSite& site, int planes) {
  std::vector<Plan> plans;
  for (const LinearDesc& part : site.parts) {
    Plan plan = regular_plan(part, planes);
    if (part.gptq->act_order || std::find(plans.begin(), plans.end(), plan) == plans.end())
      plans.push_back(std::move(plan));
  }
  return plans;
}

std::size_t packed_site_bytes(const LinearSite& site, int planes) {
  std::size_t total = 0;
  std::vector<Plan> plans;
  for (const LinearDesc& part : site.parts) {
    const GptqFormat& format = *part.gptq;
    Plan plan = regular_plan(part, planes);
    const std::int64_t bytes =
        panel_bytes(static_cast<std::int64_t>(plan.blocks.size()), plan.chunks, format.bits, format.symmetric, false);
    total += static_cast<std::size_t>(bytes * panel_count(part.out_features));
    if (part.bias) total += static_cast<std::size_t>(part.out_features) * sizeof(float);
    if (std::find(plans.begin(), plans.end(), plan) != plans.end()) continue;
    total += bookkeeping_bytes(plan) +
             (format.act_order ? static_cast<std::size_t>(part.in_features) * sizeof(std::int32_t) : 0);
    plans.push_back(std::move(plan));
  }
  return total;
}

}  // namespace nibble::packed
