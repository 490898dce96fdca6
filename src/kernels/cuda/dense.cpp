// `dense`: full-precision weights in the type that is computed in, multiplied by cuBLASLt: the baseline that quantised
// kernels are held against.
#include "core/checked.h"
#include "core/error.h"
#include "kernels/cuda/site_gemm.h"
#include "kernels/cuda/weights_upload.h"
#include "kernels/registry.h"

#include <utility>

namespace nibble {
namespace {

class DensePacked final : public PackedLinear {
 public:
  LinearSite site;
  std::vector<std::int64_t> first_rows;
  std::unique_ptr<Buffer> weights;  // [sum of out_features, in_features] of site.compute
  std::unique_ptr<Buffer> bias;
  std::size_t bytes() const override { return weights->size() + (bias ? bias->size() : 0); }
};

bool has_bias(const LinearSite& site) {
  for (const LinearDesc& part : site.parts) {
    if (part.bias) return true;
  }
  return false;
}

class DenseKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "dense"; }
  KernelTraits traits() const override {
    return {.summary = "full precision through cuBLASLt: f16, bf16 or f32 (no TF32) with sums in f32; fuses residuals",
            .accumulate = "f32"};
  }

  Fit fit(const LinearSite& site, const DeviceInfo&, std::int64_t) const override {
    for (const LinearDesc& part : site.parts) {
      if (part.gptq) {
        return Fit::no(
            fmt::format("{} is quantised and dense keeps full-precision weights: use nibble or dequant", part.name));
      }
    }
    return Fit::yes(false, site.epilogue.kind == EpilogueKind::residual);
  }

  std::size_t packed_bytes(const LinearSite& site) const override {
    const std::size_t outputs = static_cast<std::size_t>(site.out_features());
    return checked_mul(checked_mul(outputs, static_cast<std::size_t>(site.in_features()), "a weight matrix"),
                       bytes_of(site.compute), "a weight matrix") +
           (has_bias(site) ? outputs * bytes_of(site.y_dtype) : 0);
  }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                     Stream& stream) const override {
    CudaDevice& gpu = cuda_device(device);
    auto packed = std::make_unique<DensePacked>();
    packed->site = site;
    const std::size_t row_bytes = static_cast<std::size_t>(site.in_features()) * bytes_of(site.compute);
    packed->weights = gpu.allocate(static_cast<std::size_t>(site.out_features()) * row_bytes,
                                   "the weights of " + site.parts.front().name);
    std::vector<std::vector<float>> biases;
    std::vector<std::int64_t> outputs;
    std::int64_t row = 0;
    for (std::size_t i = 0; i < site.parts.size(); ++i) {
      packed->first_rows.push_back(row);
      upload_as(tensors[i].weight, site.compute, packed->weights->data() + static_cast<std::size_t>(row) * row_bytes,
                gpu, stream);
      row += site.parts[i].out_features;
      outputs.push_back(site.parts[i].out_features);
      biases.push_back(bias_of(tensors[i]));
    }
    packed->bias = upload_biases(biases, outputs, site.y_dtype, gpu, stream);
    return packed;
  }

  std::size_t workspace(const LinearSite&, std::int64_t) const override { return gemm_workspace_bytes(); }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& dense = static_cast<const DensePacked&>(packed);
    if (args.x.dtype != dense.site.compute) {
      fail("dense: inputs of {} were given to {}, which computes in {}", name_of(args.x.dtype),
           dense.site.parts.front().name, name_of(dense.site.compute));
    }
    SiteProduct product;
    product.rows = args.rows;
    product.inputs = product.w_stride = dense.site.in_features();
    product.x = args.x.data;
    product.x_stride = args.x.stride;
    product.w = dense.weights->data();
    product.operands = dense.site.compute;
    product.parts = dense.site.parts;
    product.first_rows = dense.first_rows;
    product.bias = dense.bias ? dense.bias->data() : nullptr;
    product.y = args.y;
    product.workspace = args.workspace;
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
