// `dequant`: GPTQ codes stay packed; a panel of weights at a time is dequantised into the cache and then multiplied by
// all rows as `dense` does. That costs some 0.1 ns a weight each call: little beside the products of many rows.
#include "core/checked.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/common_site.h"
#include "kernels/cpu/dequant_panel.h"
#include "kernels/registry.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

using panels::kPad;
using panels::kWidth;

// Where the things of one panel lie in the packed memory, in bytes.
struct PanelPlace {
  std::size_t codes = 0;
  std::size_t scales = 0;
  std::size_t zeros = 0;
};

struct Places {
  std::vector<PanelPlace> panels;
  std::size_t bytes = 0;
};

std::int64_t groups_of(const LinearDesc& part) { return ceil_div(part.in_features, part.gptq->group_size); }

// One forward stream a panel: its codes, then its scales and zeros. All are multiples of 32 bytes.
Places places(const LinearSite& site, const PanelLayout& layout) {
  Places out;
  for (const PanelLayout::Panel& panel : layout.panels) {
    const LinearDesc& part = site.parts[panel.part];
    const auto groups = static_cast<std::size_t>(groups_of(part));
    const auto pairs = static_cast<std::size_t>(ceil_div(part.in_features, std::int64_t{2}));
    PanelPlace place;
    place.codes = out.bytes;
    place.scales = place.codes + pairs * kWidth * (part.gptq->bits > 4 ? 2 : 1);
    place.zeros = place.scales + groups * kWidth * sizeof(float);
    out.bytes = place.zeros + groups * kWidth;
    out.panels.push_back(place);
  }
  return out;
}

class DequantPacked final : public PackedLinear {
 public:
  explicit DequantPacked(const LinearSite& site) : layout(site), place(places(site, layout)) {}
  PanelLayout layout;
  Places place;
  std::vector<std::vector<std::int32_t>> groups;  // g_idx of each part
  std::vector<bool> wide;                         // of each part
  std::unique_ptr<Buffer> memory;
  std::size_t size = 0;
  std::size_t bytes() const override { return size; }

  panels::PanelCodes codes(std::size_t panel) const {
    const std::size_t part = layout.panels[panel].part;
    const PanelPlace& at = place.panels[panel];
    return {reinterpret_cast<const std::uint8_t*>(memory->data() + at.codes),
            wide[part],
            layout.inputs,
            groups[part].data(),
            reinterpret_cast<const float*>(memory->data() + at.scales),
            reinterpret_cast<const std::uint8_t*>(memory->data() + at.zeros)};
  }
};

void write_codes(const GptqTensors& gptq, const PanelLayout::Panel& panel, const PanelPlace& place, std::byte* memory) {
  const std::int64_t inputs = gptq.in_features;
  const std::int64_t count = panel.count;
  const bool wide = gptq.bits > 4;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(inputs * count));
  gptq.codes(0, inputs, panel.first, panel.first + count, codes.data());
  auto* to = reinterpret_cast<std::uint8_t*>(memory + place.codes);
  std::fill(to, reinterpret_cast<std::uint8_t*>(memory + place.scales), std::uint8_t{0});
  for (std::int64_t k = 0; k < inputs; ++k) {
    const std::uint8_t* row = codes.data() + k * count;
    std::uint8_t* out = to + (wide ? k * kWidth : k / 2 * kWidth);
    const int shift = !wide && k % 2 != 0 ? 4 : 0;
    for (std::int64_t n = 0; n < count; ++n) out[n] = static_cast<std::uint8_t>(out[n] | row[n] << shift);
  }
  // Outputs that pad the panel have scale 0.
  auto* scales = reinterpret_cast<float*>(memory + place.scales);
  auto* zeros = reinterpret_cast<std::uint8_t*>(memory + place.zeros);
  std::fill(scales, scales + gptq.groups * kWidth, 0.0f);
  std::fill(zeros, zeros + gptq.groups * kWidth, std::uint8_t{0});
  for (std::int64_t g = 0; g < gptq.groups; ++g) {
    for (std::int64_t n = 0; n < count; ++n) {
      const auto from = static_cast<std::size_t>(g * gptq.out_features + panel.first + n);
      scales[g * kWidth + n] = gptq.scales[from];
      zeros[g * kWidth + n] = static_cast<std::uint8_t>(gptq.zeros[from]);
    }
  }
}

// The site as it is multiplied: where no product of bf16 pairs will be used, panels are f32, which is more exact and no
// slower, as they never leave the cache.
LinearSite computed_site(LinearSite site) {
  if (panels::functions().bf16 == nullptr) site.compute = DType::f32;
  return site;
}

class DequantKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "dequant"; }
  KernelTraits traits() const override {
    return {.summary = "GPTQ weights dequantised panel by panel, then multiplied as dense ones; for large batches",
            .accumulate = "f32"};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    for (const LinearDesc& part : site.parts) {
      if (!part.gptq) return Fit::no(fmt::format("{} is not quantised: use dense", part.name));
    }
    return Fit::yes(true, true);
  }

  std::size_t packed_bytes(const LinearSite& site) const override {
    const PanelLayout layout(computed_site(site));
    return places(site, layout).bytes + layout.bias.size() * 4 +
           site.parts.size() * static_cast<std::size_t>(layout.inputs) * 4;
  }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream&) const override {
    auto packed = std::make_unique<DequantPacked>(computed_site(site));
    packed->layout.set_bias(tensors);
    packed->size = packed_bytes(site);
    packed->memory = device.allocate(packed->place.bytes, "the weights of " + site.parts.front().name);
    for (const LinearTensors& part : tensors) {
      packed->groups.push_back(part.gptq->g_idx);
      packed->wide.push_back(part.gptq->bits > 4);
    }
    ThreadPool::instance().run([&](int thread, int threads) {
      const auto step = static_cast<std::int64_t>(packed->layout.step);
      const auto [begin, end] =
          split_range(static_cast<std::int64_t>(packed->layout.panels.size()), step, thread, threads);
      for (std::int64_t i = begin; i < end; ++i) {
        const auto panel = static_cast<std::size_t>(i);
        const PanelLayout::Panel& place = packed->layout.panels[panel];
        write_codes(*tensors[place.part].gptq, place, packed->place.panels[panel], packed->memory->data());
      }
    });
    return packed;
  }

  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    return panels_workspace(computed_site(site), rows, true);
  }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto* site = &static_cast<const DequantPacked&>(packed);
    PanelSource source;
    if (site->layout.bf16) {
      source = [site, dequantize = panels::dequant_bf16()](std::size_t panel, std::byte* scratch) {
        dequantize(site->codes(panel), round_up(site->layout.inputs, kPad), reinterpret_cast<std::uint16_t*>(scratch));
        return scratch;
      };
    } else {
      source = [site, dequantize = panels::dequant_f32()](std::size_t panel, std::byte* scratch) {
        dequantize(site->codes(panel), reinterpret_cast<float*>(scratch));
        return scratch;
      };
    }
    run_panels(site->layout, std::move(source), true, args, cpu_stream(stream));
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, DequantKernel);

}  // namespace
}  // namespace nibble
