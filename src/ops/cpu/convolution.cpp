// A convolution as matrix products by the kernel `dense`. Frames lie one after the other, so that the window of a frame
// is a run of memory of its own, and the next frame's begins `stride` rows later: a matrix whose rows overlap. Only
// where there is padding, or more than one group, frames are laid out anew first, a block of rows at a time.
#include "ops/cpu/convolution.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

namespace nibble::cpu {
namespace {

// Frames made at a time: laid out for 48 channels and 128 taps of one group they take 0.2 MB, and each panel of weights
// is still read once for hundreds of rows.
constexpr std::int64_t kBlockRows = 1024;
// Channels that are normed together: their sums stay in registers or a first-level cache.
constexpr std::int64_t kChannels = 64;

const LinearKernel& kernel() { return kernel_named("dense", DeviceKind::cpu); }

void check(const ConvolutionShape& shape) {
  if (shape.inputs < 1 || shape.outputs < 1 || shape.kernel < 1 || shape.stride < 1 || shape.padding < 0 ||
      shape.groups < 1 || shape.inputs % shape.groups != 0 || shape.outputs % shape.groups != 0) {
    fail("convolve: {} to {} channels in {} groups, kernel {}, stride {}, padding {} are no convolution", shape.inputs,
         shape.outputs, shape.groups, shape.kernel, shape.stride, shape.padding);
  }
}

// One group's product.
LinearSite site_of(const ConvolutionShape& shape) {
  check(shape);
  LinearSite site;
  site.parts = {{"a convolution", shape.window(), shape.outputs / shape.groups, shape.bias, std::nullopt}};
  site.compute = shape.compute;
  if (shape.activation) site.epilogue = {EpilogueKind::activation, *shape.activation};
  return site;
}

// Frames that a block of rows looks at.
std::int64_t block_frames(const ConvolutionShape& shape, std::int64_t rows) {
  return (rows - 1) * shape.stride + shape.kernel;
}

std::size_t layout_bytes(const ConvolutionShape& shape) {
  const std::int64_t values = checked_mul(block_frames(shape, kBlockRows), shape.inputs, "frames of a convolution");
  return round_up(checked_mul(static_cast<std::size_t>(values), sizeof(float), "frames of a convolution"),
                  std::size_t{64});
}

class CpuConvolution final : public PackedConvolution {
 public:
  ConvolutionShape shape;
  std::vector<std::unique_ptr<PackedLinear>> groups;
};

// One sequence of a call.
struct Sequence {
  MatrixRef x, y;  // its rows alone
};

MatrixRef rows_of(const MatrixRef& matrix, std::span<const std::int64_t> begin, std::size_t s) {
  MatrixRef out = matrix;
  out.data = matrix.f32_row(begin[s]);
  out.rows = begin[s + 1] - begin[s];
  return out;
}

// to [groups, frames, inputs / groups] = the frames of x from `first` on; zeros where x has none.
void lay_out(const ConvolutionShape& shape, const MatrixRef& x, std::int64_t first, std::int64_t frames, float* to,
             CpuStream& stream) {
  stream.parallel([=](int thread, int threads) {
    const std::int64_t width = shape.inputs / shape.groups;
    const auto bytes = static_cast<std::size_t>(width) * sizeof(float);
    const auto [begin, end] = split_range(frames, 1, thread, threads);
    for (std::int64_t group = 0; group < shape.groups; ++group) {
      for (std::int64_t f = begin; f < end; ++f) {
        float* out = to + (group * frames + f) * width;
        const std::int64_t row = first + f;
        if (row < 0 || row >= x.rows) {
          std::memset(out, 0, bytes);
        } else {
          std::memcpy(out, x.f32_row(row) + group * width, bytes);
        }
      }
    }
  });
}

void convolve_sequence(const CpuConvolution& conv, const Sequence& sequence, std::byte* workspace, Stream& stream) {
  const ConvolutionShape& shape = conv.shape;
  const MatrixRef& x = sequence.x;
  const std::int64_t width = shape.inputs / shape.groups;
  const std::int64_t out = shape.outputs / shape.groups;
  const bool lays_out = shape.padding > 0 || shape.groups > 1 || x.stride != shape.inputs ||
                        block_frames(shape, sequence.y.rows) > x.rows;
  for (std::int64_t row = 0; row < sequence.y.rows; row += kBlockRows) {
    const std::int64_t rows = std::min(kBlockRows, sequence.y.rows - row);
    const std::int64_t frames = block_frames(shape, rows);
    auto* laid = reinterpret_cast<float*>(workspace);
    const float* windows = laid;
    if (lays_out) {
      lay_out(shape, x, row * shape.stride - shape.padding, frames, laid, cpu_stream(stream));
    } else {
      windows = x.f32_row(row * shape.stride);
    }
    for (std::int64_t group = 0; group < shape.groups; ++group) {
      LinearArgs args;
      args.rows = rows;
      args.x = {const_cast<float*>(windows) + group * frames * width, DType::f32, rows, shape.window(),
                shape.stride * width};
      const std::array<MatrixRef, 1> y = {
          {{sequence.y.f32_row(row) + group * out, DType::f32, rows, out, sequence.y.stride}}};
      args.y = y;
      args.workspace = workspace + layout_bytes(shape);
      kernel().enqueue(*conv.groups[static_cast<std::size_t>(group)], args, stream);
    }
  }
}

// The columns [first, first + count) of one sequence.
void norm_channels(const InstanceNormArgs& args, std::size_t s, std::int64_t first, std::int64_t count) {
  MatrixRef x = rows_of(args.x, args.begin, s);
  if (!args.rows.empty()) x.rows = args.rows[s];
  const MatrixRef y = rows_of(args.y, args.begin, s);
  std::array<double, kChannels> mean{}, variance{};
  std::array<float, kChannels> middle{}, factor{};
  const auto n = static_cast<std::size_t>(count);
  const double rows = static_cast<double>(x.rows);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    for (std::size_t c = 0; c < n; ++c) mean[c] += static_cast<double>(x.f32_row(r)[first + static_cast<int>(c)]);
  }
  for (std::size_t c = 0; c < n; ++c) mean[c] /= rows;
  for (std::int64_t r = 0; r < x.rows; ++r) {
    for (std::size_t c = 0; c < n; ++c) {
      const double d = static_cast<double>(x.f32_row(r)[first + static_cast<int>(c)]) - mean[c];
      variance[c] += d * d;
    }
  }
  for (std::size_t c = 0; c < n; ++c) {
    const std::int64_t column = first + static_cast<std::int64_t>(c);
    middle[c] = static_cast<float>(mean[c]);
    factor[c] = static_cast<float>(static_cast<double>(args.weight[column]) /
                                   std::sqrt(variance[c] / rows + static_cast<double>(args.eps)));
  }
  for (std::int64_t r = 0; r < x.rows; ++r) {
    const float* from = x.f32_row(r) + first;
    float* to = y.f32_row(r) + first;
    const float* bias = args.bias + first;
    for (std::size_t c = 0; c < n; ++c) to[c] = (from[c] - middle[c]) * factor[c] + bias[c];
  }
}

// Spans point at what the caller may change once a call returns.
std::vector<std::int64_t> copy_of(std::span<const std::int64_t> list) { return {list.begin(), list.end()}; }

}  // namespace

std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape, std::span<const float> weight,
                                                    std::span<const float> bias, Stream& stream) {
  const LinearSite site = site_of(shape);
  const std::int64_t out = shape.outputs / shape.groups;
  const std::int64_t width = shape.inputs / shape.groups;
  if (static_cast<std::int64_t>(weight.size()) != shape.outputs * shape.window() ||
      static_cast<std::int64_t>(bias.size()) != (shape.bias ? shape.outputs : 0)) {
    fail("convolve: {} weights and {} biases were given for {} outputs of {} weights each", weight.size(), bias.size(),
         shape.outputs, shape.window());
  }
  auto packed = std::make_unique<CpuConvolution>();
  packed->shape = shape;
  packed->groups.reserve(static_cast<std::size_t>(shape.groups));
  std::vector<float> rows(static_cast<std::size_t>(out * shape.window()));
  for (std::int64_t group = 0; group < shape.groups; ++group) {
    // A window in memory has frames outside and channels inside.
    auto to = rows.begin();
    for (std::int64_t n = 0; n < out; ++n) {
      const auto from = weight.subspan(static_cast<std::size_t>((group * out + n) * shape.window()));
      for (std::int64_t k = 0; k < shape.kernel; ++k) {
        for (std::int64_t c = 0; c < width; ++c) *to++ = from[static_cast<std::size_t>(c * shape.kernel + k)];
      }
    }
    LinearTensors tensors;
    tensors.weight = {DType::f32, {out, shape.window()}, std::as_bytes(std::span(rows))};
    if (shape.bias) {
      tensors.bias = {
          DType::f32,
          {out},
          std::as_bytes(bias.subspan(static_cast<std::size_t>(group * out), static_cast<std::size_t>(out)))};
    }
    packed->groups.push_back(kernel().pack(site, std::span(&tensors, 1), cpu_device(), stream));
  }
  return packed;
}

std::size_t convolution_bytes(const ConvolutionShape& shape) {
  return static_cast<std::size_t>(shape.groups) * kernel().packed_bytes(site_of(shape));
}

std::size_t convolution_workspace(const ConvolutionShape& shape) {
  const LinearSite site = site_of(shape);
  std::size_t most = kernel().workspace(site, kBlockRows);
  // Kernels change their ways with the number of rows.
  for (std::int64_t rows = 1; rows < kBlockRows; rows *= 2) most = std::max(most, kernel().workspace(site, rows));
  return layout_bytes(shape) + most;
}

void convolve(const PackedConvolution& packed, const ConvolveArgs& args, Stream& stream) {
  const auto& conv = static_cast<const CpuConvolution&>(packed);
  if (args.x_begin.empty() || args.y_begin.size() != args.x_begin.size() || args.x.columns != conv.shape.inputs ||
      args.y.columns != conv.shape.outputs || args.x.rows < args.x_begin.back() || args.y.rows < args.y_begin.back()) {
    fail("convolve: x [{}, {}] and y [{}, {}] of {} and {} bounds were given to a convolution of {} to {} channels",
         args.x.rows, args.x.columns, args.y.rows, args.y.columns, args.x_begin.size(), args.y_begin.size(),
         conv.shape.inputs, conv.shape.outputs);
  }
  for (std::size_t s = 0; s + 1 < args.x_begin.size(); ++s) {
    convolve_sequence(conv, {rows_of(args.x, args.x_begin, s), rows_of(args.y, args.y_begin, s)}, args.workspace,
                      stream);
  }
}

void instance_norm(const InstanceNormArgs& args, CpuStream& stream) {
  stream.parallel([args, begin = copy_of(args.begin), rows = copy_of(args.rows)](int thread, int threads) {
    InstanceNormArgs call = args;
    call.begin = begin;
    call.rows = rows;
    const std::int64_t columns = args.x.columns;
    const std::int64_t pieces = ceil_div(columns, kChannels);
    const auto sequences = static_cast<std::int64_t>(begin.size()) - 1;
    const auto [first, last] = split_range(sequences * pieces, 1, thread, threads);
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t column = i % pieces * kChannels;
      norm_channels(call, static_cast<std::size_t>(i / pieces), column, std::min(kChannels, columns - column));
    }
  });
}

void trim_frames(const TrimArgs& args, CpuStream& stream) {
  const std::int64_t all = args.y_begin[args.sequences];
  if (all > args.y.rows) fail("trim_frames: sequences of {} rows were given, but y has {}", all, args.y.rows);
  for (std::int64_t s = 0; s < args.sequences; ++s) {
    const std::int64_t kept = args.kept[s];
    const std::int64_t from = args.x_begin[s];
    const std::int64_t to = args.y_begin[s];
    const std::int64_t rows = args.y_begin[s + 1] - to;
    if (kept > rows || from + kept > args.x.rows) {
      fail("trim_frames: {} rows are kept of {} for {} of sequence {}", kept, args.x.rows - from, rows, s);
    }
    stream.parallel([x = args.x, y = args.y, from, to, rows, kept](int thread, int threads) {
      const auto bytes = static_cast<std::size_t>(y.columns) * sizeof(float);
      const auto [begin, end] = split_range(rows, 1, thread, threads);
      for (std::int64_t row = begin; row < end; ++row) {
        if (row < kept) {
          std::memcpy(y.f32_row(to + row), x.f32_row(from + row), bytes);
        } else {
          std::memset(y.f32_row(to + row), 0, bytes);
        }
      }
    });
  }
  stream.parallel([y = args.y, all](int thread, int threads) {
    const auto [begin, end] = split_range(y.rows - all, 1, thread, threads);
    for (std::int64_t row = begin; row < end; ++row)
      std::memset(y.f32_row(all + row), 0, static_cast<std::size_t>(y.columns) * sizeof(float));
  });
}

void transpose(const MatrixRef& x, const MatrixRef& y, CpuStream& stream) {
  if (x.rows != y.columns || x.columns != y.rows)
    fail("transpose: x is [{}, {}] and y [{}, {}]", x.rows, x.columns, y.rows, y.columns);
  stream.parallel([x, y](int thread, int threads) {
    const auto [begin, end] = split_range(y.rows, 1, thread, threads);
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t column = 0; column < y.columns; ++column) y.f32_row(row)[column] = x.f32_row(column)[row];
    }
  });
}

}  // namespace nibble::cpu
