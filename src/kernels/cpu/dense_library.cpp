#include "kernels/cpu/dense_library.h"

#include "core/error.h"
#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/library_engine.h"

#include <array>
#include <string_view>
#include <utility>

namespace nibble {
namespace {

using dnnl::memory;

}  // namespace

struct LibraryProduct::Impl {
  dnnl::matmul primitive;
  memory x;
  memory weights;
  memory bias;
  memory y;
  std::array<dnnl_exec_arg_t, 4> args{};
  int arg_count = 0;
};

LibraryProduct::LibraryProduct(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LibraryProduct::~LibraryProduct() = default;

std::unique_ptr<LibraryProduct> LibraryProduct::make(const Shape& shape, const std::byte* panels, const float* bias) {
  // A panel of f32 has no padding of K; the library's has, to 16.
  if (!shape.bf16 && shape.inputs % 16 != 0) return nullptr;
  const auto type = shape.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const auto tag = shape.bf16 ? memory::format_tag::BA16a32b2a : memory::format_tag::BA16a32b;
  const memory::desc x({shape.rows, shape.inputs}, type, memory::dims{shape.x_stride, 1});
  const memory::desc weights({shape.inputs, shape.outputs}, type, tag);
  const memory::desc y({shape.rows, shape.outputs}, memory::data_type::f32, memory::dims{shape.y_stride, 1});
  const memory::desc bias_row = bias == nullptr
                                    ? memory::desc()
                                    : memory::desc({1, shape.outputs}, memory::data_type::f32, memory::format_tag::ab);
  dnnl::primitive_attr attributes;
  if (shape.adds) {
    dnnl::post_ops add;
    add.append_sum(1.0f);
    attributes.set_post_ops(add);
  }
  try {
    const dnnl::matmul::desc operation =
        bias == nullptr ? dnnl::matmul::desc(x, weights, y) : dnnl::matmul::desc(x, weights, bias_row, y);
    const dnnl::matmul::primitive_desc desc(operation, attributes, library_engine());
    // Other implementations reorder the weights at each call, or are plain loops.
    if (std::string_view(desc.impl_info_str()).substr(0, 3) != "brg") return nullptr;
    auto impl = std::make_unique<Impl>();
    const auto at = [](const void* data) { return const_cast<void*>(data); };  // it only reads weights and bias
    impl->primitive = dnnl::matmul(desc);
    impl->x = memory(x, library_engine(), nullptr);
    impl->weights = memory(weights, library_engine(), at(panels));
    impl->y = memory(y, library_engine(), nullptr);
    impl->args = {
        {{DNNL_ARG_SRC, impl->x.get()}, {DNNL_ARG_WEIGHTS, impl->weights.get()}, {DNNL_ARG_DST, impl->y.get()}}};
    impl->arg_count = 3;
    if (bias != nullptr) {
      impl->bias = memory(bias_row, library_engine(), at(bias));
      impl->args[3] = {DNNL_ARG_BIAS, impl->bias.get()};
      impl->arg_count = 4;
    }
    return std::unique_ptr<LibraryProduct>(new LibraryProduct(std::move(impl)));
  } catch (const dnnl::error&) {
    return nullptr;
  }
}

void LibraryProduct::run(const std::byte* x, float* y) {
  impl_->x.set_data_handle(const_cast<std::byte*>(x), library_stream());
  impl_->y.set_data_handle(y, library_stream());
  const dnnl_status_t status =
      dnnl_primitive_execute(impl_->primitive.get(), library_stream().get(), impl_->arg_count, impl_->args.data());
  if (status != dnnl_success) fail("oneDNN's matrix product failed with status {}", static_cast<int>(status));
}

}  // namespace nibble
