// A site's weights in the layout of layout.h, and the GPU functions that work on them.
#pragma once

#include "core/cuda/cuda_device.h"
#include "kernels/cuda/nibble/layout.h"
#include "kernels/linear_kernel.h"
#include "kernels/output_order.h"

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace nibble::gpu {

/// What the kernel for few rows wants to know of a GPU.
struct SmallRowsDevice {
  int shared_bytes = 0;              // that a thread block can have
  int half_shared_bytes = 0;         // that each of two of a multiprocessor can have; 0: they cannot overlap
  std::array<int, 4> clusters = {};  // of 1, 2, 4 and 8 thread blocks: how many run at a time; 0: there are none
};
/// Of the current GPU.
SmallRowsDevice small_rows_device();

class PackedSite final : public PackedLinear, public OutputOrder {
 public:
  LinearSite site;
  PackedLayout layout;
  std::vector<std::int64_t> first_strips;  // of each part (gated: one)
  SmallRowsDevice small_rows_device;
  std::unique_ptr<Buffer> weights;
  std::unique_ptr<Buffer> order;   // InputOrder::inputs, int32; null where packed place p holds input p
  std::unique_ptr<Buffer> bias;    // f32, parts one after another; null where there is none
  std::unique_ptr<Buffer> y_bias;  // the same in the outputs' type, for cuBLASLt; null where that is f32 or gated
  bool streams = false;            // few rows go to small_rows()
  // Of a site that leaves its results of few rows in the order of their reader once more: int32, where each output
  // stands there, and the place for them.
  std::unique_ptr<Buffer> places;
  float* copy_to = nullptr;
  // Of that reader: where it finds them, and its norm's weights in its order, null where it has none.
  const float* copy_from = nullptr;
  std::unique_ptr<Buffer> ordered_norm;
  std::size_t bytes() const override;
  /// Of gated sites, before readers whose inputs fill whole blocks.
  bool put_out_for(PackedLinear& reader, Device& device, Stream& stream) override;
  /// Of sites with f32 residuals, before readers whose inputs fill whole blocks.
  bool copy_out_for(PackedLinear& reader, const float* norm_weight, std::byte* copy, Device& device,
                    Stream& stream) override;

  const std::int32_t* order_data() const {
    return order ? reinterpret_cast<const std::int32_t*>(order->data()) : nullptr;
  }
  const float* bias_data() const { return bias ? reinterpret_cast<const float*>(bias->data()) : nullptr; }
};

std::unique_ptr<PackedSite> pack_site(const LinearSite& site, std::span<const LinearTensors> tensors,
                                      CudaDevice& device, Stream& stream);

/// Bytes that pack_site() will keep.
std::size_t packed_site_bytes(const LinearSite& site);

// --- Up to kMostSmallRows rows: weights stream once through the tensor cores. f16 and bf16.
constexpr std::int64_t kMostSmallRows = 16;
// Up to here reading the weights once for each 16 rows takes less than writing them out: on an H100 12 to 21 us a pass
// against 43 to 119 (5120 x 5120 and 5120 x 13824; docs/performance.md).
constexpr std::int64_t kMostPassRows = 4 * kMostSmallRows;
/// Prologue, product and epilogue in one kernel (two where inputs out of order are too many for shared memory); only
/// where takes_few_rows(). `first_row`: of the call, where it takes several passes.
void small_rows(const PackedSite& packed, const LinearArgs& args, std::int64_t first_row, CudaStream& stream);
/// Whether calls of this many rows go to small_rows(), in passes of kMostSmallRows.
bool takes_few_rows(const LinearSite& site, const PackedLayout& layout, std::int64_t rows,
                    const SmallRowsDevice& device);

// --- Any number of rows: weights are written out, then cuBLASLt multiplies.
std::size_t dequantised_workspace(const LinearSite& site, const PackedLayout& layout, std::int64_t rows);
void dequantised(const PackedSite& packed, const LinearArgs& args, CudaStream& stream);

/// Writes all weights as `compute` (f32, f16 or bf16) to `to`, [strips * 16, packed_inputs].
void dequantise(const PackedSite& packed, DType compute, void* to, CudaStream& stream);
/// y[m, p] = x[m, order[p]] of `compute`, normed where the site's prologue says so; zeros at empty places.
void stage_inputs(const PackedSite& packed, const LinearArgs& args, DType compute, void* to, CudaStream& stream);
/// y = act(gate) * up from products of a gated site's strips, [rows, strips * 16] of `compute`.
void activate_strips(const PackedSite& packed, const void* products, DType compute, const MatrixRef& y,
                     CudaStream& stream);

}  // namespace nibble::gpu
