// Outputs of a packed site in another order, so that the site that reads them finds its inputs sorted: a gated site's
// weights are sorted, which costs nothing later; a site with a residual puts out both orders, as others read it too.
#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "kernels/cuda/nibble/packed_site.h"

namespace nibble::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

struct ReorderArgs {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  const std::int32_t* order = nullptr;  // [outputs]: which output comes to this place
  std::int64_t outputs = 0;
  std::int64_t strips = 0;
  std::int64_t blocks = 0;
  int block_bytes = 0;
  int bits = 4;
  int sets = 1;
  bool zeros = false;
};

// A warp a block. An output's gate and up are rows g and g + 8 of a strip, which four lanes have, with whole words for
// both: so what moves are the words of lanes.
__global__ void reorder_kernel(const ReorderArgs a) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= a.strips * a.blocks) return;
  const std::int64_t strip = index / a.blocks;
  const std::int64_t block = index % a.blocks;
  const int lane = threadIdx.x % 32;
  const auto source = [&](int g) {
    const std::int64_t output = strip * 8 + g;
    return output < a.outputs ? a.order[output] : output;
  };
  const auto place = [&](std::int64_t of) { return block_place(of, block, a.blocks) * a.block_bytes; };
  std::byte* to = a.to + place(strip);
  const std::int64_t mine = source(lane / 4);
  const std::byte* from = a.from + place(mine / 8);
  const int from_lane = static_cast<int>(mine % 8) * 4 + lane % 4;
  const int units = a.bits / 2;
  for (int unit = 0; unit < units; ++unit)
    reinterpret_cast<uint4*>(to + unit * 512)[lane] = reinterpret_cast<const uint4*>(from + unit * 512)[from_lane];
  if (a.bits % 2 != 0)
    reinterpret_cast<uint2*>(to + units * 512)[lane] = reinterpret_cast<const uint2*>(from + units * 512)[from_lane];
  for (int i = lane; i < 8 * a.sets; i += 32) {
    const std::int64_t output = source(i % 8);
    const std::byte* block_from = a.from + place(output / 8);
    const int at = i / 8 * 8 + static_cast<int>(output % 8);
    reinterpret_cast<__half2*>(to + a.bits * 256)[i] = reinterpret_cast<const __half2*>(block_from + a.bits * 256)[at];
    const int zeros = a.bits * 256 + a.sets * 32;
    if (a.zeros) reinterpret_cast<uchar2*>(to + zeros)[i] = reinterpret_cast<const uchar2*>(block_from + zeros)[at];
  }
}

__global__ void reorder_bias(const float* from, float* to, const std::int32_t* order, std::int64_t outputs) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= outputs) return;
  to[n] = from[order[n]];
  to[outputs + n] = from[outputs + order[n]];
}

// Where each output stands in the reader's order, and its norm's weights in that order.
__global__ void prepare_copy(const std::int32_t* order, const float* norm, std::int32_t* places, float* ordered_norm,
                             std::int64_t count) {
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= count) return;
  const std::int32_t input = order[place];
  places[input] = static_cast<std::int32_t>(place);
  if (norm != nullptr) ordered_norm[place] = norm[input];
}

const std::byte* copied(CudaDevice& device, CudaStream& stream, const Buffer& of) {
  std::byte* to = device.staging(of.size());
  check_cuda(cudaMemcpyAsync(to, of.data(), of.size(), cudaMemcpyDeviceToDevice, stream.handle()),
             "copying weights to be sorted");
  return to;
}

}  // namespace

bool PackedSite::put_out_for(PackedLinear& reader, Device& device, Stream& stream) {
  auto* other = dynamic_cast<PackedSite*>(&reader);
  if (other == nullptr || !layout.gated || other->order == nullptr) return false;
  // With places that have no input the reader must pick in any case.
  const std::int64_t outputs = site.parts.front().out_features;
  if (other->layout.packed_inputs() != other->layout.inputs || other->layout.inputs != outputs) return false;
  CudaStream& to = cuda_stream(stream);
  ReorderArgs a;
  a.from = copied(cuda_device(device), to, *weights);
  a.to = weights->data();
  a.order = other->order_data();
  a.outputs = outputs;
  a.strips = layout.strips();
  a.blocks = layout.blocks;
  a.block_bytes = layout.block_bytes();
  a.bits = layout.bits;
  a.sets = layout.sets;
  a.zeros = layout.zeros;
  const auto count = static_cast<unsigned>(ceil_div(a.strips * a.blocks, std::int64_t{kWarps}));
  launch(to, dim3(count), dim3(kThreads), 0, Overlap::no, reorder_kernel, a);
  if (bias) {
    const auto* from = reinterpret_cast<const float*>(copied(cuda_device(device), to, *bias));
    launch(to, dim3(static_cast<unsigned>(ceil_div(outputs, std::int64_t{kThreads}))), dim3(kThreads), 0, Overlap::no,
           reorder_bias, from, reinterpret_cast<float*>(bias->data()), a.order, outputs);
  }
  stream.synchronize();  // the order is read until here
  other->order.reset();
  return true;
}

bool PackedSite::copy_out_for(PackedLinear& reader, const float* norm_weight, std::byte* copy, Device& device,
                              Stream& stream) {
  auto* other = dynamic_cast<PackedSite*>(&reader);
  if (other == nullptr || other == this || other->order == nullptr || !streams || !other->streams) return false;
  if (site.epilogue.kind != EpilogueKind::residual || site.y_dtype != DType::f32 || other->site.x_dtype != DType::f32)
    return false;
  const std::int64_t count = site.out_features();
  if (other->layout.packed_inputs() != other->layout.inputs || other->layout.inputs != count) return false;
  const bool norm = other->site.prologue.kind == PrologueKind::rms_norm;
  if (norm != (norm_weight != nullptr)) return false;
  // Calls of more rows take the results as they lie, so both must agree where few rows end.
  static_assert(kMostPassRows == kMostCopiedRows);
  for (std::int64_t rows = 1; rows <= kMostSmallRows; ++rows) {
    if (!takes_few_rows(site, layout, rows, small_rows_device) ||
        !takes_few_rows(other->site, other->layout, rows, other->small_rows_device))
      return false;
  }
  const std::size_t bytes = static_cast<std::size_t>(count) * 4;
  places = device.allocate(bytes, "the places of outputs");
  if (norm) other->ordered_norm = device.allocate(bytes, "norm weights in the order of inputs");
  launch(cuda_stream(stream), dim3(static_cast<unsigned>(ceil_div(count, std::int64_t{kThreads}))), dim3(kThreads), 0,
         Overlap::no, prepare_copy, other->order_data(), norm_weight, reinterpret_cast<std::int32_t*>(places->data()),
         norm ? reinterpret_cast<float*>(other->ordered_norm->data()) : nullptr, count);
  copy_to = reinterpret_cast<float*>(copy);
  other->copy_from = copy_to;
  return true;
}

}  // namespace nibble::gpu
