// A linear site run panel by panel (kernels/cpu/common_panels.h): what `dense` and `dequant` share. Where the panels'
// weights come from is the kernel's affair; prologue, products, epilogue and the split over threads are here.
#pragma once

#include "core/cpu_device.h"
#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace nibble {

/// How the outputs of a site are cut into panels.
struct PanelLayout {
  struct Panel {
    std::size_t part = 0;
    std::int64_t first = 0;  // output of the part
    std::int64_t count = 0;  // 1 to 32; what is missing to 32 is padded with zeros
  };

  explicit PanelLayout(const LinearSite& site);
  /// Fills in the biases of all parts.
  void set_bias(std::span<const LinearTensors> tensors);

  Prologue prologue;
  Epilogue epilogue;
  bool bf16 = false;             // panels are bf16, else f32
  std::int64_t inputs = 0;       // K
  std::int64_t panel_bytes = 0;  // of weights
  std::size_t step = 1;          // panels that make one piece of work: 2 for gated sites
  std::vector<Panel> panels;     // in the order in which they are read: for gated sites gate, up, gate, up, ...
  std::vector<float> bias;       // [panels * 32], zeros where there is none
};

/// Writes W[n, k], given as 32 rows of K floats (those past `count` are not read), as a panel of `layout`.
void write_panel(const PanelLayout& layout, const float* rows, std::int64_t count, std::byte* panel);

/// The weights of a panel, in place or written to `scratch` (panel_bytes of it, one for each panel of a step).
using PanelSource = std::function<const std::byte*(std::size_t panel, std::byte* scratch)>;

/// Scratch bytes for run_panels; `scratch`: whether the source wants scratch. It counts on the thread pool's present
/// size.
std::size_t panels_workspace(const LinearSite& site, std::int64_t rows, bool scratch);

/// Enqueues the preparation of all rows of a call, for a product that is made elsewhere: the inputs, normalised and in
/// the type of the panels, go to args.workspace as rows prepared_stride() elements apart. Sites with f32 panels must
/// have a norm; bf16 panels take an instruction set that has a product for them (panels::Functions::bf16).
void prepare_inputs(const PanelLayout& layout, const LinearArgs& args, CpuStream& stream);
/// A line of 64 bytes or two more than K, since rows a multiple of 4 KiB apart would fall into the same sets of a
/// cache.
std::int64_t prepared_stride(std::int64_t inputs);

/// Enqueues the whole site. `layout` must outlive what is enqueued.
void run_panels(const PanelLayout& layout, PanelSource source, bool scratch, const LinearArgs& args, CpuStream& stream);

}  // namespace nibble
