// `nibble`: quantised weights in one layout for all numbers of rows (layout.h). Few rows stream them through the tensor
// cores once; more rows multiply weights that are written out first. `dequant` does the latter always.
#include "core/error.h"
#include "kernels/cuda/nibble/packed_site.h"
#include "kernels/cuda/nibble/small_rows.h"
#include "kernels/registry.h"

#include <algorithm>
#include <array>
#include <span>
#include <vector>

namespace nibble {
namespace {

using gpu::kMostParts;
using gpu::kMostPassRows;
using gpu::kMostSmallRows;
using gpu::PackedLayout;
using gpu::PackedSite;
using gpu::takes_few_rows;

bool known_activation(ActivationKind kind) {
  return kind != ActivationKind::quick_gelu && kind != ActivationKind::tanh;
}

Fit fit_packed(const LinearSite& site) {
  for (const LinearDesc& part : site.parts) {
    if (!part.gptq) return Fit::no(fmt::format("{} is not quantised; full-precision weights are for dense", part.name));
    const GptqFormat& first = *site.parts.front().gptq;
    if (part.gptq->bits != first.bits || part.gptq->group_size != first.group_size) {
      return Fit::no(fmt::format("{} and {} have different bits or group sizes, so they cannot share one product",
                                 site.parts.front().name, part.name));
    }
  }
  if (site.parts.size() > static_cast<std::size_t>(kMostParts))
    return Fit::no(fmt::format("{} parts share one input; at most {} do here", site.parts.size(), kMostParts));
  // The residual may be what the norm reads, and it is written before all have read it.
  const bool both = site.prologue.kind != PrologueKind::none && site.epilogue.kind == EpilogueKind::residual;
  return Fit::yes(!both, site.epilogue.kind != EpilogueKind::activation && known_activation(site.epilogue.activation));
}

MatrixRef rows_from(MatrixRef m, std::int64_t first, std::int64_t rows) {
  if (m.data == nullptr) return m;
  m.data = static_cast<std::byte*>(m.data) + static_cast<std::size_t>(first * m.stride) * bytes_of(m.dtype);
  m.rows = rows;
  return m;
}

// As many passes over the weights as the rows take.
void few_rows_in_passes(const PackedSite& packed, const LinearArgs& args, CudaStream& stream) {
  for (std::int64_t first = 0; first < args.rows; first += kMostSmallRows) {
    LinearArgs pass = args;
    pass.rows = std::min(kMostSmallRows, args.rows - first);
    pass.x = rows_from(args.x, first, pass.rows);
    pass.residual = rows_from(args.residual, first, pass.rows);
    std::array<MatrixRef, kMostParts> y;
    for (std::size_t i = 0; i < args.y.size(); ++i) y[i] = rows_from(args.y[i], first, pass.rows);
    pass.y = std::span(y).first(args.y.size());
    gpu::small_rows(packed, pass, first, stream);
  }
}

class PackedKernel : public LinearKernel {
 public:
  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override { return fit_packed(site); }
  std::size_t packed_bytes(const LinearSite& site) const override { return gpu::packed_site_bytes(site); }
  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    return gpu::pack_site(site, tensors, cuda_device(device), stream);
  }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }
};

class NibbleKernel final : public PackedKernel {
 public:
  std::string_view name() const override { return "nibble"; }
  KernelTraits traits() const override {
    return {.summary =
                "2, 3, 4 and 8 bits, any groups and order: to 64 rows weights stream through the tensor cores, once "
                "for each 16, from there on as dequant; fuses norms, residuals and gates",
            .accumulate = "f32"};
  }
  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    std::unique_ptr<PackedSite> packed = gpu::pack_site(site, tensors, cuda_device(device), stream);
    packed->streams = true;
    return packed;
  }
  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    const PackedLayout layout = gpu::layout_of(site);
    return takes_few_rows(site, layout, rows, gpu::small_rows_device())
               ? gpu::staged_rows_bytes(layout, std::min(rows, kMostSmallRows))
               : gpu::dequantised_workspace(site, layout, rows);
  }
  std::vector<KernelWay> ways(const LinearSite& site) const override {
    const PackedLayout layout = gpu::layout_of(site);
    const gpu::SmallRowsDevice device = gpu::small_rows_device();
    std::int64_t most = 0;
    while (most < kMostPassRows && takes_few_rows(site, layout, most + 1, device)) ++most;
    std::vector<KernelWay> out;
    if (most > 0) out.push_back({"small_rows", std::min(most, kMostSmallRows)});
    if (most > kMostSmallRows) out.push_back({"small_rows in passes of 16", most});
    out.push_back({"dequantised", 0});
    return out;
  }
  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& site = static_cast<const PackedSite&>(packed);
    if (takes_few_rows(site.site, site.layout, args.rows, site.small_rows_device)) {
      few_rows_in_passes(site, args, cuda_stream(stream));
    } else {
      gpu::dequantised(site, args, cuda_stream(stream));
    }
  }
};

class DequantKernel final : public PackedKernel {
 public:
  std::string_view name() const override { return "dequant"; }
  KernelTraits traits() const override {
    return {.summary = "writes weights out as f16, bf16 or f32, then multiplies by cuBLASLt: for many rows",
            .accumulate = "f32"};
  }
  std::size_t workspace(const LinearSite& site, std::int64_t rows) const override {
    return gpu::dequantised_workspace(site, gpu::layout_of(site), rows);
  }
  std::vector<KernelWay> ways(const LinearSite&) const override { return {{"dequantised", 0}}; }
  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    gpu::dequantised(static_cast<const PackedSite&>(packed), args, cuda_stream(stream));
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, NibbleKernel);
NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, DequantKernel);

}  // namespace
}  // namespace nibble
