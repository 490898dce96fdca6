#include "kernels/cuda/f32_sums.h"

#include "core/checked.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/gptq_ops.h"

#include <algorithm>

namespace nibble::cuda {
namespace {

// From here on the original dequantises all weights.
constexpr std::int64_t kGemmRows = 128;

// The edge of a block of weights, or 0 where the original has none for the shape and dequantises whatever the rows.
int block_width(std::int64_t inputs, std::int64_t outputs) {
  if (inputs % 256 == 0 && outputs % 256 == 0) return 256;
  return inputs % 64 == 0 && outputs % 64 == 0 ? 64 : 0;
}

bool dequantizes(std::int64_t inputs, std::int64_t outputs, std::int64_t rows) {
  return rows >= kGemmRows || block_width(inputs, outputs) == 0;
}

std::size_t weight_bytes(std::int64_t inputs, std::int64_t outputs) {
  return round_up(static_cast<std::size_t>(inputs) * static_cast<std::size_t>(outputs) * 2, std::size_t{256});
}

std::size_t sum_bytes(std::int64_t rows, std::int64_t outputs) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(outputs) * sizeof(float);
}

}  // namespace

std::size_t F32SumsKernel::packed_bytes(const LinearSite& site) const { return uploaded_bytes(site, order_); }

std::unique_ptr<PackedLinear> F32SumsKernel::pack(const LinearSite& site, std::span<const LinearTensors> tensors,
                                                  Device& device, Stream& stream) const {
  return upload_site(site, tensors, order_, device, stream);
}

std::string F32SumsKernel::refused(const LinearSite& site) const {
  if (std::string why = refused_types(name(), site); !why.empty()) return why;
  for (const LinearDesc& part : site.parts) {
    if (part.in_features % 32 != 0 || part.out_features % 32 != 0) {
      return fmt::format("{} is {} x {}, and {} takes inputs and outputs in multiples of 32: use another kernel",
                         part.name, part.in_features, part.out_features, name());
    }
  }
  return {};
}

// Never less than fewer rows need.
std::size_t F32SumsKernel::workspace(const LinearSite& site, std::int64_t rows) const {
  std::size_t most = 0;
  for (const LinearDesc& part : site.parts) {
    most = std::max(most, sum_bytes(std::min(rows, kGemmRows - 1), part.out_features));
    if (dequantizes(part.in_features, part.out_features, rows))
      most = std::max(most, weight_bytes(part.in_features, part.out_features) + gemm_workspace_bytes());
  }
  return most;
}

Cost F32SumsKernel::cost(const LinearSite& site, std::int64_t rows) const { return minimal_cost(site, rows); }

// Parts have different outputs: blocks are named where any part has them.
std::vector<KernelWay> F32SumsKernel::ways(const LinearSite& site) const {
  const bool blocks = std::any_of(site.parts.begin(), site.parts.end(), [](const LinearDesc& part) {
    return !dequantizes(part.in_features, part.out_features, 1);
  });
  if (!blocks) return {{"dequantised", 0}};
  return {{"blocks of codes", kGemmRows - 1}, {"dequantised", 0}};
}

void F32SumsKernel::enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const {
  check_f16(name(), args);
  CudaStream& cuda = cuda_stream(stream);
  const auto& site = static_cast<const UploadedSite&>(packed);
  for (std::size_t i = 0; i < site.parts.size(); ++i) {
    const DeviceGptq& part = site.parts[i];
    const MatrixRef& y = args.y[i];
    if (dequantizes(part.in_features, part.out_features, args.rows)) {
      auto* weights = reinterpret_cast<__half*>(args.workspace);
      dequantize(part, order_, weights, cuda);
      gemm({.m = args.rows,
            .n = part.out_features,
            .k = part.in_features,
            .x = args.x.data,
            .x_stride = args.x.stride,
            .w = weights,
            .w_stride = part.out_features,
            .w_is_kn = true,
            .y = y.data,
            .y_stride = y.stride,
            .bias = part.bias,
            .workspace = args.workspace + weight_bytes(part.in_features, part.out_features)},
           cuda);
      continue;
    }
    auto* sums = reinterpret_cast<float*>(args.workspace);
    check_cuda(cudaMemsetAsync(sums, 0, sum_bytes(args.rows, part.out_features), cuda.handle()), "clearing sums");
    add_products(part, args.x, args.rows, block_width(part.in_features, part.out_features), sums, cuda);
    store_sums(sums, part.bias, y, args.rows, cuda);
  }
}

}  // namespace nibble::cuda
