// `dense`: full-precision weights in the type that is computed in, multiplied by cuBLASLt: the baseline that quantised
// kernels are held against.
#include "core/error.h"
#include "kernels/cuda/dense_weights.h"
#include "kernels/cuda/site_gemm.h"
#include "kernels/registry.h"

namespace nibble {
namespace {

class DenseKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "dense"; }
  KernelTraits traits() const override {
    return {.summary = "full precision through cuBLASLt: f16, bf16 or f32 (no TF32) with sums in f32; fuses residuals",
            .accumulate = "f32"};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    Fit fit = fits_dense(site);
    fit.fuses_epilogue = fit.ok && site.epilogue.kind == EpilogueKind::residual;
    return fit;
  }

  std::size_t packed_bytes(const LinearSite& site) const override { return dense_bytes(site); }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    return pack_dense(site, tensors, device, stream);
  }

  std::size_t workspace(const LinearSite&, std::int64_t) const override { return gemm_workspace_bytes(); }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& dense = static_cast<const DenseWeights&>(packed);
    if (args.x.dtype != dense.site.compute) {
      fail("dense: inputs of {} were given to {}, which computes in {}", name_of(args.x.dtype),
           dense.site.parts.front().name, name_of(dense.site.compute));
    }
    SiteProduct product = product_of(dense, args);
    if (dense.site.epilogue.kind == EpilogueKind::residual) {
      copy_residual(args.residual, args.y.front(), cuda_stream(stream));
      product.accumulate = true;
    }
    multiply_site(product, cuda_stream(stream));
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cuda, DenseKernel);

}  // namespace
}  // namespace nibble
