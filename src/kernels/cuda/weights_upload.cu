#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/weights_upload.h"

#include <algorithm>

namespace nibble {
namespace {

template <typename From, typename To>
__global__ void convert_kernel(const From* from, To* to, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = from_float<To>(to_float(from[i]));
}

}  // namespace

void upload_as(const TensorView& from, DType dtype, void* to, CudaDevice& device, Stream& stream) {
  if (from.dtype == dtype) {
    device.upload(to, from.bytes.data(), from.bytes.size(), stream);
    return;
  }
  TensorView source = from;
  std::vector<float> floats;  // of a f64 tensor
  if (from.dtype == DType::f64) {
    floats = to_float(from);
    source.dtype = DType::f32;
    source.bytes = std::as_bytes(std::span(floats));
    if (dtype == DType::f32) {
      device.upload(to, source.bytes.data(), source.bytes.size(), stream);
      return;
    }
  }
  std::byte* raw = device.staging(source.bytes.size());
  device.upload(raw, source.bytes.data(), source.bytes.size(), stream);
  const std::int64_t count = source.elements();
  constexpr int kThreads = 256;
  const dim3 grid(static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(count, std::int64_t{kThreads}), 1, 4096)));
  with_type(source.dtype, "a weight", [&](auto a) {
    with_type(dtype, "a weight", [&](auto b) {
      using From = decltype(a);
      using To = decltype(b);
      launch(cuda_stream(stream), grid, dim3(kThreads), 0, Overlap::no, convert_kernel<From, To>,
             reinterpret_cast<const From*>(raw), static_cast<To*>(to), count);
    });
  });
}

std::unique_ptr<Buffer> upload_biases(std::span<const std::vector<float>> biases,
                                      std::span<const std::int64_t> out_features, CudaDevice& device, Stream& stream) {
  if (std::all_of(biases.begin(), biases.end(), [](const auto& b) { return b.empty(); })) return nullptr;
  std::vector<float> all;
  for (std::size_t i = 0; i < biases.size(); ++i) {
    std::vector<float> one = biases[i];
    one.resize(static_cast<std::size_t>(out_features[i]), 0.0f);
    all.insert(all.end(), one.begin(), one.end());
  }
  std::unique_ptr<Buffer> buffer = device.allocate(all.size() * sizeof(float), "biases");
  stream.copy_to_device(buffer->data(), all.data(), all.size() * sizeof(float));
  return buffer;
}

}  // namespace nibble
