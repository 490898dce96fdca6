// `reference`: the oracle. Plain C++ for every format, sums in double in the order of k, nothing fused, nothing clever.
#include "core/checked.h"
#include "core/cpu_device.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"

#include <algorithm>
#include <array>
#include <utility>

namespace nibble {
namespace {

struct ReferencePart {
  std::int64_t outputs = 0;
  std::vector<float> dense;         // [outputs, K], or empty and
  std::optional<GptqTensors> gptq;  // codes as the file has them
  std::vector<float> bias;          // [outputs] or empty
};

class ReferencePacked final : public PackedLinear {
 public:
  std::int64_t inputs = 0;
  std::vector<ReferencePart> parts;
  std::size_t size = 0;
  std::size_t bytes() const override { return size; }
};

// A chunk of one output's weights on the stack, and the rows that share its unpacking: 2 KiB and 128 bytes.
constexpr std::int64_t kChunk = 256;
constexpr std::int64_t kRows = 16;

using Chunk = std::array<double, kChunk>;

// W[n, k0 .. k1)
void weights(const ReferencePart& part, std::int64_t inputs, std::int64_t n, std::int64_t k0, std::int64_t k1,
             Chunk& out) {
  if (!part.gptq) {
    const float* row = part.dense.data() + n * inputs;
    std::copy(row + k0, row + k1, out.begin());
    return;
  }
  const GptqTensors& gptq = *part.gptq;
  std::array<std::uint8_t, kChunk> codes;
  gptq.codes(k0, k1, n, n + 1, codes.data());
  for (std::int64_t k = k0; k < k1; ++k) {
    const std::int64_t at = gptq.g_idx[static_cast<std::size_t>(k)] * gptq.out_features + n;
    const int q = codes[static_cast<std::size_t>(k - k0)] - gptq.zeros[static_cast<std::size_t>(at)];
    out[static_cast<std::size_t>(k - k0)] = static_cast<double>(gptq.scales[static_cast<std::size_t>(at)]) * q;
  }
}

void output(const ReferencePart& part, std::int64_t inputs, std::int64_t n, std::int64_t rows, const MatrixRef& x,
            const MatrixRef& y) {
  Chunk w;
  for (std::int64_t m0 = 0; m0 < rows; m0 += kRows) {
    const std::int64_t count = std::min(kRows, rows - m0);
    std::array<double, kRows> sum{};
    for (std::int64_t k0 = 0; k0 < inputs; k0 += kChunk) {
      const std::int64_t k1 = std::min(inputs, k0 + kChunk);
      weights(part, inputs, n, k0, k1, w);
      for (std::int64_t m = 0; m < count; ++m) {
        const float* row = x.f32_row(m0 + m);
        double& total = sum[static_cast<std::size_t>(m)];
        for (std::int64_t k = k0; k < k1; ++k)
          total += static_cast<double>(row[k]) * w[static_cast<std::size_t>(k - k0)];
      }
    }
    for (std::int64_t m = 0; m < count; ++m) {
      const double bias = part.bias.empty() ? 0 : static_cast<double>(part.bias[static_cast<std::size_t>(n)]);
      y.f32_row(m0 + m)[n] = static_cast<float>(sum[static_cast<std::size_t>(m)] + bias);
    }
  }
}

class ReferenceKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "reference"; }
  KernelTraits traits() const override {
    return {.summary = "plain scalar code for every format, sums in double; slow: the oracle",
            .accumulate = "f64",
            .in_all = false,
            .error_f32 = 1e-5,  // the result is rounded to float
            .error_bf16 = 1e-5};
  }
  Fit fit(const LinearSite&, const DeviceInfo&, std::int64_t) const override { return Fit::yes(false, false); }

  std::size_t packed_bytes(const LinearSite& site) const override {
    std::size_t total = 0;
    for (const LinearDesc& part : site.parts) {
      const auto k = static_cast<std::size_t>(part.in_features);
      const auto n = static_cast<std::size_t>(part.out_features);
      if (part.gptq) {
        const std::size_t groups = ceil_div(k, static_cast<std::size_t>(part.gptq->group_size));
        total +=
            ceil_div(k * static_cast<std::size_t>(part.gptq->bits), std::size_t{32}) * n * 4 + groups * n * 6 + k * 4;
      } else {
        total += k * n * 4;
      }
      if (part.bias) total += n * 4;
    }
    return total;
  }

  std::unique_ptr<PackedLinear> pack(const LinearSite& site, std::span<const LinearTensors> tensors, Device&,
                                     Stream&) const override {
    auto packed = std::make_unique<ReferencePacked>();
    packed->inputs = site.in_features();
    packed->size = packed_bytes(site);
    for (std::size_t i = 0; i < site.parts.size(); ++i) {
      ReferencePart part;
      part.outputs = site.parts[i].out_features;
      if (tensors[i].gptq != nullptr) {
        part.gptq = *tensors[i].gptq;
        // The codes may lie in the checkpoint's mapping, which goes away.
        auto words =
            std::make_shared<const std::vector<std::uint32_t>>(part.gptq->qweight.begin(), part.gptq->qweight.end());
        part.gptq->qweight = *words;
        part.gptq->qweight_copy = std::move(words);
      } else {
        part.dense = to_float(tensors[i].weight);
      }
      part.bias = bias_of(tensors[i]);
      packed->parts.push_back(std::move(part));
    }
    return packed;
  }

  std::size_t workspace(const LinearSite&, std::int64_t) const override { return 0; }
  Cost cost(const LinearSite& site, std::int64_t rows) const override { return minimal_cost(site, rows); }

  void enqueue(const PackedLinear& packed, const LinearArgs& args, Stream& stream) const override {
    const auto& site = static_cast<const ReferencePacked&>(packed);
    for (std::size_t i = 0; i < site.parts.size(); ++i) {
      const ReferencePart* part = &site.parts[i];
      cpu_stream(stream).parallel(
          [part, inputs = site.inputs, rows = args.rows, x = args.x, y = args.y[i]](int thread, int threads) {
            const auto [begin, end] = split_range(part->outputs, 1, thread, threads);
            for (std::int64_t n = begin; n < end; ++n) output(*part, inputs, n, rows, x, y);
          });
    }
  }
};

NIBBLE_REGISTER_KERNEL(DeviceKind::cpu, ReferenceKernel);

}  // namespace
}  // namespace nibble
