// `dense`: full-precision weights, kept as f32 or, to compute in bf16, as bf16: the baseline that quantised kernels are
// held against. One layout serves all numbers of rows: panels, which are the blocks that oneDNN wants too. Own products
// for few rows, oneDNN's for many where that is faster (library_is_faster).
#include "kernels/cpu/dense.h"

#include "core/checked.h"
#include "core/cpu.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/common_site.h"
#include "kernels/cpu/dense_library.h"
#include "kernels/registry.h"

#include <cstring>
#include <utility>
#include <vector>

namespace nibble {
namespace {

// In bf16 with AMX, from kLibraryRows rows on: 0.82 (K 576) and 0.91 (K 1536) of the time at 512 rows, the bare
// product. With vdpbf16ps the library takes 0.98 to 1.03 at K 384 to 4096 and 64 to 2048 rows, in f32 0.96 to 1.05:
// leaving the parallel region and coming back costs more than it wins (Zen 5, a core).
bool library_is_faster(const LinearSite& site) {
  return site.compute == DType::bf16 && panels::functions().bf16 != nullptr && active_isa() >= Isa::amx;
}

// Not activations, which the own product applies while its outputs are in a cache. Not gates: they stand interleaved
// with up in the panels, so that a pass of its own would have to read and write 9 MB a 512 rows of SmolLM2, about a
// tenth of the product's time at 50 GB/s.
bool library_can(const LinearSite& site, const PanelLayout& layout) {
  if (site.epilogue.kind == EpilogueKind::gated || site.epilogue.kind == EpilogueKind::activation) return false;
  return layout.bf16 ? panels::functions().bf16 != nullptr : true;
}

// The rows of a call from `first` on; y is where its outputs are kept.
LinearArgs rows_from(LinearArgs args, std::int64_t first, std::vector<MatrixRef>& y) {
  const auto skip = [first](MatrixRef& matrix) {
    if (matrix.data != nullptr) matrix.data = matrix.f32_row(first);
    matrix.rows -= first;
  };
  y.assign(args.y.begin(), args.y.end());
  for (MatrixRef& part : y) skip(part);
  args.y = y;
  args.rows -= first;
  skip(args.x);
  skip(args.residual);
  return args;
}

class DensePacked final : public PackedLinear {
 public:
  explicit DensePacked(const LinearSite& site) : layout(site) {}
  PanelLayout layout;
  std::unique_ptr<Buffer> weights;
  std::vector<std::unique_ptr<LibraryProduct>> library;  // of each part; none where it is not used
  std::vector<std::int64_t> outputs;                     // of each part
  std::size_t size = 0;
  std::size_t bytes() const override { return size; }
};

class DenseKernel final : public LinearKernel {
 public:
  explicit DenseKernel(LibraryUse use = LibraryUse::where_faster) : use_(use) {}

  std::string_view name() const override { return "dense"; }
  KernelTraits traits() const override {
    return {.summary =
                "full precision, f32 or bf16 weights with sums in f32; fuses norms, residuals, activations and gates",
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
    const bool wanted =
        use_ == LibraryUse::wherever_possible || (use_ == LibraryUse::where_faster && library_is_faster(site));
    if (wanted && library_can(site, layout)) add_library(site, *packed);
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
    const std::int64_t first = enqueue_library(dense, args, cpu_stream(stream));
    if (first == args.rows) return;
    std::vector<MatrixRef> y;
    run_panels(
        dense.layout, [=](std::size_t panel, std::byte*) { return weights + panel * panel_bytes; }, false,
        rows_from(args, first, y), cpu_stream(stream));
  }

 private:
  static void add_library(const LinearSite& site, DensePacked& packed) {
    const PanelLayout& layout = packed.layout;
    std::size_t panel = 0;
    for (const LinearDesc& part : site.parts) {
      packed.outputs.push_back(part.out_features);
      const bool prepared = layout.bf16 || layout.prologue.kind != PrologueKind::none;
      auto product = LibraryProduct::make(
          {.bf16 = layout.bf16,
           .rows = kLibraryRows,
           .inputs = layout.inputs,
           .outputs = part.out_features,
           .x_stride = prepared ? prepared_stride(layout.inputs) : layout.inputs,
           .y_stride = part.out_features,
           .adds = layout.epilogue.kind == EpilogueKind::residual},
          packed.weights->data() + panel * static_cast<std::size_t>(layout.panel_bytes),
          part.bias ? layout.bias.data() + panel * static_cast<std::size_t>(panels::kWidth) : nullptr);
      if (!product) {
        packed.library.clear();
        return;
      }
      packed.library.push_back(std::move(product));
      panel += static_cast<std::size_t>(ceil_div(part.out_features, panels::kWidth));
    }
  }

  // Leaves as many rows to the library as it takes, and returns how many. Matrices must have the strides that its
  // products were made for.
  static std::int64_t enqueue_library(const DensePacked& dense, const LinearArgs& args, CpuStream& stream) {
    const std::int64_t rows = args.rows / kLibraryRows * kLibraryRows;
    if (dense.library.empty() || rows == 0) return 0;
    const PanelLayout& layout = dense.layout;
    const bool prepares = layout.bf16 || layout.prologue.kind != PrologueKind::none;
    if (!prepares && args.x.stride != layout.inputs) return 0;
    for (std::size_t i = 0; i < args.y.size(); ++i) {
      if (args.y[i].stride != dense.outputs[i]) return 0;
    }
    if (prepares) {
      LinearArgs first = args;
      first.rows = rows;
      prepare_inputs(layout, first, stream);
    }
    if (layout.epilogue.kind == EpilogueKind::residual && args.residual.data != args.y[0].data) {
      stream.parallel([to = args.y[0], from = args.residual, rows](int thread, int threads) {
        const auto [begin, end] = split_range(rows, 1, thread, threads);
        for (std::int64_t m = begin; m < end; ++m)
          std::memcpy(to.f32_row(m), from.f32_row(m), static_cast<std::size_t>(to.stride) * sizeof(float));
      });
    }
    const std::byte* const x = prepares ? args.workspace : static_cast<const std::byte*>(args.x.data);
    const std::int64_t x_stride = prepares ? prepared_stride(layout.inputs) : layout.inputs;
    const std::int64_t block_bytes = kLibraryRows * x_stride * (layout.bf16 ? 2 : 4);
    stream.serial([&dense, y = std::vector<MatrixRef>(args.y.begin(), args.y.end()), x, block_bytes, rows] {
      for (std::int64_t m = 0; m < rows; m += kLibraryRows) {
        for (std::size_t i = 0; i < y.size(); ++i)
          dense.library[i]->run(x + m / kLibraryRows * block_bytes, y[i].f32_row(m));
      }
    });
    return rows;
  }

  LibraryUse use_;
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, DenseKernel);

}  // namespace

std::unique_ptr<LinearKernel> make_dense(LibraryUse use) { return std::make_unique<DenseKernel>(use); }

}  // namespace nibble
