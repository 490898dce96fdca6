#include "kernels/cuda/site_gemm.h"

#include "core/error.h"

namespace nibble {

SiteProduct product_of(const DenseWeights& dense, const LinearArgs& args) {
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
  return product;
}

std::vector<GemmArgs> products_of(const SiteProduct& p) {
  std::vector<GemmArgs> out;
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
    out.push_back(args);
    bias_at += columns;
    first = last;
  }
  return out;
}

void multiply_site(const SiteProduct& product, CudaStream& stream) {
  for (const GemmArgs& one : products_of(product)) gemm(one, stream);
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
