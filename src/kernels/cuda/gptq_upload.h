// The tensors of GPTQ linears in device memory as the kernels of the original benchmark take them: packed as in the
// checkpoint, one linear after the other.
#pragma once

#include "core/cuda/cuda_device.h"
#include "kernels/linear_kernel.h"

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::cuda {

/// How a kernel finds the group of a row of codes, and what it keeps for that.
enum class RowOrder {
  plain,    // row k belongs to group k div group_size, without act-order: nothing is kept
  indexed,  // row k belongs to group row_index[k]
  sorted,   // row k belongs to group k div group_size, and with act-order multiplies input row_index[k]
};

/// One linear. K = in_features, N = out_features, G = groups.
struct DeviceGptq {
  int bits = 4;
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  std::int64_t groups = 0;
  std::int64_t group_size = 0;
  std::uint32_t* codes = nullptr;           // [K * bits / 32, N]
  const std::uint32_t* zeros = nullptr;     // [G, N * bits / 32] zero points less 1, modulo 2^bits
  const __half* scales = nullptr;           // [G, N]
  const std::int32_t* row_index = nullptr;  // [K], or null where `RowOrder` keeps nothing
  const float* bias = nullptr;              // [N], or null
  std::unique_ptr<Buffer> memory;           // all of them
};

/// A site's linears.
class UploadedSite final : public PackedLinear {
 public:
  std::vector<DeviceGptq> parts;
  std::size_t bytes() const override;
};

/// Bytes that upload_site() keeps.
std::size_t uploaded_bytes(const LinearSite& site, RowOrder order);

/// Needs K in multiples of 32, and N such that its zero points fill whole words. Throws Error where rows sorted by
/// their groups do not make groups of group_size rows each.
std::unique_ptr<UploadedSite> upload_site(const LinearSite& site, std::span<const LinearTensors> tensors,
                                          RowOrder order, Device& device, Stream& stream);

/// Why a kernel of f16 activations for GPTQ weights cannot take a site, whatever its shapes and widths; empty where it
/// can.
std::string refused_types(std::string_view kernel, const LinearSite& site);

/// Throws Error where x or y is not f16, which lowering has to see to.
void check_f16(std::string_view kernel, const LinearArgs& args);

}  // namespace nibble::cuda
