#include "kernels/cuda/site_gemm.h"

#include "core/error.h"

namespace nibble {

void multiply_site(const SiteProduct& p, CudaStream& stream) {
  const std::size_t element = bytes_of(p.y.front().dtype);
  const auto side_by_side = [&](std::size_t part) {
    const MatrixRef& before = p.y[part - 1];
    return p.y[part].stride == before.stride && p.y[part].dtype == before.dtype &&
           static_cast<const std::byte*>(p.y[part].data) ==
               static_cast<const std::byte*>(before.data) + static_cast<std::size_t>(before.columns) * element &&
           p.first_rows[part] == p.first_rows[part - 1] + p.parts[part - 1].out_features;
  };
  std::int64_t bias_at = 0;
  for (std::size_t first = 0; first < p.parts.size();) {
    std::size_t last = first + 1;
    std::int64_t columns = p.parts[first].out_features;
    for (; last < p.parts.size() && side_by_side(last); ++last) columns += p.parts[last].out_features;
    GemmArgs args;
    args.m = p.rows;
    args.n = columns;
    args.k = p.inputs;
    args.x = p.x;
    args.x_stride = p.x_stride;
    args.w = static_cast<const std::byte*>(p.w) +
             static_cast<std::size_t>(p.first_rows[first] * p.w_stride) * bytes_of(p.operands);
    args.w_stride = p.w_stride;
    args.operands = p.operands;
    args.y = p.y[first].data;
    args.y_stride = p.y[first].stride;
    args.y_dtype = p.y[first].dtype;
    if (p.bias != nullptr)
      args.same_bias = static_cast<const std::byte*>(p.bias) + static_cast<std::size_t>(bias_at) * element;
    args.accumulate = p.accumulate;
    args.workspace = p.workspace;
    gemm(args, stream);
    bias_at += columns;
    first = last;
  }
}

void copy_residual(const MatrixRef& residual, const MatrixRef& y, CudaStream& stream) {
  if (residual.data == y.data) return;
  if (residual.dtype != y.dtype)
    fail("a residual of {} was given for outputs of {}", name_of(residual.dtype), name_of(y.dtype));
  const std::size_t element = bytes_of(y.dtype);
  const auto bytes = [&](std::int64_t elements) { return static_cast<std::size_t>(elements) * element; };
  check_cuda(cudaMemcpy2DAsync(y.data, bytes(y.stride), residual.data, bytes(residual.stride), bytes(y.columns),
                               static_cast<std::size_t>(y.rows), cudaMemcpyDeviceToDevice, stream.handle()),
             "copying a residual");
}

}  // namespace nibble
