#include "kernels/cuda/dense_weights.h"

#include "core/checked.h"
#include "core/error.h"
#include "kernels/cuda/weights_upload.h"

#include <algorithm>

namespace nibble {

std::size_t dense_bytes(const LinearSite& site) {
  const std::size_t outputs = static_cast<std::size_t>(site.out_features());
  const bool biased = std::any_of(site.parts.begin(), site.parts.end(), [](const LinearDesc& d) { return d.bias; });
  return checked_mul(checked_mul(outputs, static_cast<std::size_t>(site.in_features()), "a weight matrix"),
                     bytes_of(site.compute), "a weight matrix") +
         (biased ? outputs * bytes_of(site.y_dtype) : 0);
}

std::unique_ptr<DenseWeights> pack_dense(const LinearSite& site, std::span<const LinearTensors> tensors, Device& device,
                                         Stream& stream) {
  CudaDevice& gpu = cuda_device(device);
  auto packed = std::make_unique<DenseWeights>();
  packed->site = site;
  const std::size_t row_bytes = static_cast<std::size_t>(site.in_features()) * bytes_of(site.compute);
  packed->weights = gpu.allocate(static_cast<std::size_t>(site.out_features()) * row_bytes,
                                 "the weights of " + site.parts.front().name);
  std::vector<std::vector<float>> biases;
  std::vector<std::int64_t> outputs;
  std::int64_t row = 0;
  for (std::size_t i = 0; i < site.parts.size(); ++i) {
    packed->first_rows.push_back(row);
    upload_as(tensors[i].weight, site.compute, packed->weights->data() + static_cast<std::size_t>(row) * row_bytes, gpu,
              stream);
    row += site.parts[i].out_features;
    outputs.push_back(site.parts[i].out_features);
    biases.push_back(bias_of(tensors[i]));
  }
  packed->bias = upload_biases(biases, outputs, site.y_dtype, gpu, stream);
  return packed;
}

Fit fits_dense(const LinearSite& site) {
  for (const LinearDesc& part : site.parts) {
    if (part.gptq) {
      return Fit::no(fmt::format("{} is quantised and this kernel keeps full-precision weights: use nibble or dequant",
                                 part.name));
    }
  }
  return Fit::yes(false, false);
}

}  // namespace nibble
