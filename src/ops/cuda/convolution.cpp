// Convolutions over time. Frames lie one after the other, so that the window of a frame is a run of memory of its own
// and the next frame's begins `stride` rows later: a matrix whose rows overlap. Where there is one group that matrix is
// a product's input as it lies, but for the frames that look at padding. Those, and groups, run on kernels of our own.
#include "ops/cuda/convolution.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "kernels/cuda/elementwise_activation.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/tile_gemm.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/op_checks.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace nibble::cuda {
namespace {

void check(const ConvolutionShape& shape) {
  if (shape.inputs < 1 || shape.outputs < 1 || shape.kernel < 1 || shape.stride < 1 || shape.padding < 0 ||
      shape.groups < 1 || shape.inputs % shape.groups != 0 || shape.outputs % shape.groups != 0) {
    fail("convolve: {} to {} channels in {} groups, kernel {}, stride {}, padding {} are no convolution", shape.inputs,
         shape.outputs, shape.groups, shape.kernel, shape.stride, shape.padding);
  }
}

std::size_t weight_bytes(const ConvolutionShape& shape) {
  return checked_mul(static_cast<std::size_t>(checked_mul(shape.outputs, shape.window(), "a convolution's weights")),
                     bytes_of(shape.compute), "a convolution's weights");
}

// `values` as `type` in device memory.
std::unique_ptr<Buffer> upload(std::span<const float> values, DType type, CudaDevice& device, Stream& stream,
                               const char* purpose) {
  std::unique_ptr<Buffer> to = device.allocate(values.size() * bytes_of(type), purpose);
  if (type == DType::f32) {
    stream.copy_to_device(to->data(), values.data(), values.size_bytes());
    stream.synchronize();
    return to;
  }
  std::vector<std::uint16_t> raw(values.size());
  std::transform(values.begin(), values.end(), raw.begin(),
                 [&](float v) { return type == DType::f16 ? float_to_half(v) : float_to_bf16(v); });
  stream.copy_to_device(to->data(), raw.data(), raw.size() * sizeof(std::uint16_t));
  stream.synchronize();
  return to;
}

// Rows of y and the windows they are made of, all within x.
struct Product {
  std::int64_t x_row = 0;
  std::int64_t y_row = 0;
  std::int64_t rows = 0;
};

// The frames of a span whose windows lie within it: [first, last).
struct Inner {
  std::int64_t first = 0, last = 0;
};
Inner inner_of(const ConvolutionShape& shape, const FrameSpan& span) {
  const std::int64_t first = ceil_div(shape.padding, shape.stride);
  const std::int64_t room = span.x_rows + shape.padding - shape.kernel;
  const std::int64_t last = room < 0 ? 0 : room / shape.stride + 1;
  return {std::min(first, span.y_rows), std::clamp(last, std::min(first, span.y_rows), span.y_rows)};
}

// Whether each sequence's frames begin where its rows do, divided by the stride.
bool aligned(const ConvolutionShape& shape, std::span<const FrameSpan> spans) {
  return std::all_of(spans.begin(), spans.end(), [&](const FrameSpan& span) {
    return span.x_begin - spans.front().x_begin == (span.y_begin - spans.front().y_begin) * shape.stride;
  });
}

// Such sequences as one.
FrameSpan whole(std::span<const FrameSpan> spans) {
  const FrameSpan& head = spans.front();
  const FrameSpan& tail = spans.back();
  return {head.x_begin, tail.x_begin + tail.x_rows - head.x_begin, head.y_begin,
          tail.y_begin + tail.y_rows - head.y_begin};
}

// One product a sequence; one in all for those that are aligned(): frames that look across the end of a sequence are
// made with the others, and where there is padding once more, as edges_of() says.
std::vector<Product> products_of(const ConvolutionShape& shape, const Frames& frames) {
  std::vector<FrameSpan> spans = frames.spans;
  if (aligned(shape, spans)) spans = {whole(spans)};
  std::vector<Product> out;
  out.reserve(spans.size());
  for (const FrameSpan& span : spans) {
    const Inner inner = inner_of(shape, span);
    if (inner.first == inner.last) continue;
    out.push_back({span.x_begin + inner.first * shape.stride - shape.padding, span.y_begin + inner.first,
                   inner.last - inner.first});
  }
  return out;
}

// The frames whose windows begin before a sequence's first row, and those whose windows end behind its last.
std::array<Frames, 2> edges_of(const ConvolutionShape& shape, const Frames& frames) {
  Frames front{frames.x, frames.y, {}, shape.padding, nullptr};
  Frames back{frames.x, frames.y, {}, 0, nullptr};
  for (const FrameSpan& span : frames.spans) {
    const Inner inner = inner_of(shape, span);
    if (inner.first > 0) front.spans.push_back({span.x_begin, span.x_rows, span.y_begin, inner.first});
    if (inner.last == span.y_rows) continue;
    const std::int64_t before = inner.last * shape.stride - shape.padding;
    back.spans.push_back({span.x_begin + before, std::max<std::int64_t>(span.x_rows - before, 0),
                          span.y_begin + inner.last, span.y_rows - inner.last});
  }
  return {std::move(front), std::move(back)};
}

const std::byte* at_row(const MatrixRef& m, std::int64_t row) {
  return static_cast<const std::byte*>(m.data) + static_cast<std::size_t>(row * m.stride) * bytes_of(m.dtype);
}

// Whether the window of a frame within its sequence is one run of memory.
bool contiguous(const ConvolutionShape& shape, const MatrixRef& x) {
  return shape.groups == 1 && x.stride == shape.inputs && x.dtype == shape.compute;
}

TileGemm tile_gemm_of(const CudaConvolution& packed, const Frames& frames, const Product& one) {
  const ConvolutionShape& shape = packed.shape;
  TileGemm gemm;
  gemm.m = one.rows;
  gemm.n = shape.outputs;
  gemm.k = shape.window();
  gemm.type = shape.compute;
  gemm.x = at_row(frames.x, one.x_row);
  gemm.x_stride = shape.stride * shape.inputs;
  gemm.w = packed.weight->data();
  gemm.w_stride = shape.window();
  gemm.bias = packed.same_bias ? packed.same_bias->data() : nullptr;
  gemm.activation = shape.activation;
  gemm.y = const_cast<std::byte*>(at_row(frames.y, one.y_row));
  gemm.y_stride = frames.y.stride;
  return gemm;
}

// In f32: as many taps at a time as do not overlap with those of the next frame, which the library takes; their
// products add up.
void multiply_f32(const CudaConvolution& packed, const Frames& frames, const Product& one, std::byte* workspace,
                  CudaStream& stream) {
  const ConvolutionShape& shape = packed.shape;
  const auto* const x = reinterpret_cast<const float*>(at_row(frames.x, one.x_row));
  const auto* const w = reinterpret_cast<const float*>(packed.weight->data());
  for (std::int64_t tap = 0; tap < shape.kernel; tap += shape.stride) {
    GemmArgs gemm;
    gemm.m = one.rows;
    gemm.n = shape.outputs;
    gemm.k = std::min(shape.stride, shape.kernel - tap) * shape.inputs;
    gemm.x = x + tap * shape.inputs;
    gemm.x_stride = shape.stride * shape.inputs;
    gemm.w = w + tap * shape.inputs;
    gemm.w_stride = shape.window();
    gemm.operands = DType::f32;
    gemm.y = const_cast<std::byte*>(at_row(frames.y, one.y_row));
    gemm.y_stride = frames.y.stride;
    gemm.y_dtype = DType::f32;
    gemm.accumulate = tap > 0;
    if (tap + shape.stride >= shape.kernel) gemm.bias = packed.bias_values();
    gemm.workspace = workspace;
    nibble::gemm(gemm, stream);
  }
  if (shape.activation) {
    MatrixRef y = frames.y;
    y.data = const_cast<std::byte*>(at_row(frames.y, one.y_row));
    y.rows = one.rows;
    activate_rows(*shape.activation, y, stream);
  }
}

void convolve_by_tiles(const CudaConvolution& packed, const Frames& frames, CudaStream& stream) {
  if (packed.shape.compute != DType::f32) {
    convolve_tiles(packed, frames, stream);
  } else if (takes_taps_f32(packed.shape, frames)) {
    convolve_taps_f32(packed, frames, stream);
  } else {
    convolve_f32(packed, frames, stream);
  }
}

// Makes the frames whose windows lie within their sequences by products of the rows as they lie; false, and nothing is
// made, where no kernel for that takes them.
bool multiply(const CudaConvolution& packed, const Frames& frames, std::byte* workspace, CudaStream& stream) {
  const std::vector<Product> products = products_of(packed.shape, frames);
  if (packed.shape.compute == DType::f32) {
    for (const Product& one : products) multiply_f32(packed, frames, one, workspace, stream);
    return true;
  }
  const bool taken = std::all_of(products.begin(), products.end(), [&](const Product& one) {
    return takes(tile_gemm_of(packed, frames, one), packed.capability);
  });
  if (!taken) return false;
  for (const Product& one : products) {
    const TileGemm gemm = tile_gemm_of(packed, frames, one);
    nibble::enqueue(gemm, plan_of(gemm, packed.multiprocessors), packed.multiprocessors, stream);
  }
  return true;
}

}  // namespace

SequenceRows rows_of(std::span<const FrameSpan> spans, int tile_rows) {
  SequenceRows out;
  out.count = static_cast<int>(spans.size());
  out.tile_begin[0] = 0;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    out.x_begin[i] = spans[i].x_begin;
    out.x_rows[i] = spans[i].x_rows;
    out.y_begin[i] = spans[i].y_begin;
    out.y_rows[i] = spans[i].y_rows;
    out.tile_begin[i + 1] = out.tile_begin[i] + static_cast<int>(ceil_div(out.y_rows[i], std::int64_t{tile_rows}));
  }
  return out;
}

std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape, std::span<const float> weight,
                                                    std::span<const float> bias, CudaDevice& device, Stream& stream) {
  check(shape);
  if (static_cast<std::int64_t>(weight.size()) != shape.outputs * shape.window() ||
      static_cast<std::int64_t>(bias.size()) != (shape.bias ? shape.outputs : 0)) {
    fail("convolve: {} weights and {} biases were given for {} outputs of {} weights each", weight.size(), bias.size(),
         shape.outputs, shape.window());
  }
  auto packed = std::make_unique<CudaConvolution>();
  packed->shape = shape;
  packed->capability = device.capability();
  packed->multiprocessors = device.multiprocessors();
  const std::int64_t width = shape.inputs / shape.groups;
  // A window in memory has frames outside and channels inside.
  std::vector<float> rows(weight.size());
  auto to = rows.begin();
  for (std::int64_t n = 0; n < shape.outputs; ++n) {
    const auto from = weight.subspan(static_cast<std::size_t>(n * shape.window()));
    for (std::int64_t k = 0; k < shape.kernel; ++k) {
      for (std::int64_t c = 0; c < width; ++c) *to++ = from[static_cast<std::size_t>(c * shape.kernel + k)];
    }
  }
  packed->weight = upload(rows, shape.compute, device, stream, "the weights of a convolution");
  if (shape.bias) {
    packed->bias = upload(bias, DType::f32, device, stream, "the biases of a convolution");
    packed->same_bias = upload(bias, shape.compute, device, stream, "the biases of a convolution");
  }
  return packed;
}

std::size_t convolution_bytes(const ConvolutionShape& shape) {
  check(shape);
  const std::size_t biases =
      shape.bias ? static_cast<std::size_t>(shape.outputs) * (sizeof(float) + bytes_of(shape.compute)) : 0;
  return weight_bytes(shape) + biases;
}

std::size_t convolution_workspace(const ConvolutionShape& shape) {
  check(shape);
  return shape.compute == DType::f32 ? gemm_workspace_bytes() : 0;
}

void convolve(const PackedConvolution& packed, const ConvolveArgs& args, CudaStream& stream) {
  const auto& conv = static_cast<const CudaConvolution&>(packed);
  const ConvolutionShape& shape = conv.shape;
  if (args.x_begin.empty() || args.y_begin.size() != args.x_begin.size())
    fail("convolve: {} and {} bounds of sequences were given", args.x_begin.size(), args.y_begin.size());
  check_shape(args.x, args.x_begin.back(), shape.inputs, "convolve", "x");
  check_shape(args.y, args.y_begin.back(), shape.outputs, "convolve", "y");
  if (args.y.dtype != shape.compute || (args.x.dtype != shape.compute && args.x.dtype != DType::f32)) {
    fail("convolve: x of {} and y of {} were given to a convolution in {}", name_of(args.x.dtype),
         name_of(args.y.dtype), name_of(shape.compute));
  }
  Frames frames{args.x, args.y, {}, shape.padding, args.begin};
  frames.spans.reserve(args.x_begin.size());
  for (std::size_t s = 0; s + 1 < args.x_begin.size(); ++s) {
    frames.spans.push_back({args.x_begin[s], args.x_begin[s + 1] - args.x_begin[s], args.y_begin[s],
                            args.y_begin[s + 1] - args.y_begin[s]});
  }
  if (frames.spans.empty()) return;
  if (args.begin != nullptr) {
    convolve_by_tiles(conv, frames, stream);
    return;
  }
  // Frames that look across the end of a sequence are not specified.
  if (shape.padding == 0 && aligned(shape, frames.spans)) frames.spans = {whole(frames.spans)};
  if (is_narrow(shape)) {
    convolve_narrow(conv, frames, stream);
    return;
  }
  if (contiguous(shape, args.x) && multiply(conv, frames, args.workspace, stream)) {
    if (shape.padding == 0) return;
    for (const Frames& edge : edges_of(shape, frames)) {
      if (takes_edges(edge)) {
        convolve_edges(conv, edge, stream);
      } else {
        convolve_by_tiles(conv, edge, stream);
      }
    }
    return;
  }
  convolve_by_tiles(conv, frames, stream);
}

}  // namespace nibble::cuda
