// `dense`: full-precision weights, kept as f32 or, to compute in bf16, as bf16: the baseline that quantised kernels are
// held against. One layout serves all numbers of rows. No library multiplies: oneDNN 2.6 was measured beside it
// (benchmarks/micro, --onednn) and is no faster up to 64 rows, but for a few cells within 15%; at 512 rows on AMX its
// bare product is 10 to 23% faster, without the norm, the conversion to bf16 and the residual that are done here in one
// call.
#include "core/checked.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/common_site.h"
#include "kernels/registry.h"

#include <utility>

namespace nibble {
namespace {

class DensePacked final : public PackedLinear {
 public:
  explicit DensePacked(const LinearSite& site) : layout(site) {}
  PanelLayout layout;
  std::unique_ptr<Buffer> weights;
  std::size_t size = 0;
  std::size_t bytes() const override { return size; }
};

class DenseKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "dense"; }
  KernelTraits traits() const override {
    return {.summary = "full precision, f32 or bf16 weights with sums in f32; fuses norms, residuals and gates",
            .accumulate = "f32"};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    for (const LinearDesc& part : site.parts) {
      if (part.gptq) {
        return Fit::no(fmt::format(
            "{} is quantised and dense keeps full-precision weights: use packed, dequant or reference", part.name));
      }
    }
    return Fit::yes(true, true);
  }

  std::size_t packed_bytes(const LinearSite& site) const override {
    const PanelLayout layout(site);
    return layout.panels.size() * static_cast<std::size_t>(layout.panel_bytes) + layout.bias.size() * 4;
  }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream&) const override {
    auto packed = std::make_unique<DensePacked>(site);
    PanelLayout& layout = packed->layout;
    layout.set_bias(tensors);
    const auto panel_bytes = static_cast<std::size_t>(layout.panel_bytes);
    packed->weights = device.allocate(layout.panels.size() * panel_bytes, "the weights of " + site.parts.front().name);
    packed->size = layout.panels.size() * panel_bytes + layout.bias.size() * 4;
    // Written by the threads that will read it: that is where the system puts a page.
    ThreadPool::instance().run([&](int thread, int threads) {
      const auto step = static_cast<std::int64_t>(layout.step);
      const auto [begin, end] = split_range(static_cast<std::int64_t>(layout.panels.size()), step, thread, threads);
      std::vector<float> rows(static_cast<std::size_t>(panels::kWidth * layout.inputs));
      for (std::int64_t i = begin; i < end; ++i) {
        const PanelLayout::Panel& panel = layout.panels[static_cast<std::size_t>(i)];
        rows_to_float(tensors[panel.part].weight, panel.first, panel.count,
                      std::span(rows).first(static_cast<std::size_t>(panel.count * layout.inputs)));
        write_panel(layout, rows.data(), panel.count,
                    packed->weights->data() + static_cast<std::size_t>(i) * panel_bytes);
      }
    });
    return packed;
  }

  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    return panels_workspace(site, rows, false);
  }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& dense = static_cast<const DensePacked&>(packed);
    const std::byte* weights = dense.weights->data();
    const auto panel_bytes = static_cast<std::size_t>(dense.layout.panel_bytes);
    run_panels(
        dense.layout, [=](std::size_t panel, std::byte*) { return weights + panel * panel_bytes; }, false, args,
        cpu_stream(stream));
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, DenseKernel);

}  // namespace
}  // namespace nibble
