#include "bench/kernel_bench.h"

#include "bench/statistics.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "kernels/verify.h"

#include <algorithm>
#include <chrono>
#include <memory>

namespace nibble {
namespace {

// A round long enough that starting it and waiting for it (some 10 us on a GPU) are below 1%.
constexpr double kRoundSeconds = 2e-3;
constexpr int kRounds = 30;
constexpr std::size_t kMostCopies = 64;
constexpr std::size_t kMostCalls = 2048;
// Every kernel has left its ways for few rows by then (the last does at 128), and comparing more takes seconds.
constexpr std::int64_t kMostVerifiedRows = 256;
// So many random values, again and again: they do not fit any cache that would make a product faster than it is.
constexpr std::size_t kMostRandoms = std::size_t{1} << 22;

/// A matrix of normal random numbers in device memory.
std::unique_ptr<Buffer> random_matrix(std::int64_t rows, std::int64_t columns, DType dtype, Device& device,
                                      Stream& stream) {
  const std::size_t count = static_cast<std::size_t>(rows * columns);
  std::unique_ptr<Buffer> buffer = device.allocate(count * bytes_of(dtype), "timing kernels");
  Random random(11);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = i < kMostRandoms ? random.normal() : values[i - kMostRandoms];
  if (dtype == DType::f32) {
    stream.copy_to_device(buffer->data(), values.data(), count * sizeof(float));
  } else {
    std::vector<std::uint16_t> halves(count);
    std::transform(values.begin(), values.end(), halves.begin(),
                   [&](float v) { return dtype == DType::bf16 ? float_to_bf16(v) : float_to_half(v); });
    stream.copy_to_device(buffer->data(), halves.data(), count * sizeof(std::uint16_t));
  }
  stream.synchronize();
  return buffer;
}

}  // namespace

std::vector<KernelTiming> time_kernel(const LinearKernel& kernel, const RandomSite& random,
                                      std::span<const std::int64_t> rows, std::size_t cold_bytes, Device& device) {
  const std::int64_t most = *std::max_element(rows.begin(), rows.end());
  std::vector<KernelTiming> out;
  const Fit fit = kernel.fit(random.site(), device.info(), most);
  const std::unique_ptr<Stream> stream = device.make_stream();
  if (!fit.ok) {
    for (const std::int64_t m : rows) out.push_back({.rows = m, .error = fit.reason, .cost = {}});
    return out;
  }
  const LinearSite site = fused_site(random.site(), fit);
  std::vector<std::unique_ptr<PackedLinear>> packed;
  packed.push_back(kernel.pack(site, random.tensors(), device, *stream));
  const std::size_t copies =
      std::clamp<std::size_t>(cold_bytes / std::max<std::size_t>(packed.front()->bytes(), 1) + 1, 2, kMostCopies);
  while (packed.size() < copies) packed.push_back(kernel.pack(site, random.tensors(), device, *stream));

  const std::unique_ptr<Buffer> x = random_matrix(most, site.in_features(), site.x_dtype, device, *stream);
  const std::int64_t outputs = site.out_features();
  const std::unique_ptr<Buffer> y =
      device.allocate(static_cast<std::size_t>(most * outputs) * bytes_of(site.y_dtype), "timing kernels");
  for (const std::int64_t m : rows) {
    KernelTiming timing{.rows = m, .error = {}, .cost = kernel.cost(site, m)};
    const VerifyResult verified =
        verify(kernel, *packed.front(), site, random.tensors(), {.rows = std::min(m, kMostVerifiedRows)}, device);
    timing.verified = verified.bound > 0 ? verified.error / verified.bound : 0;
    if (!verified.ok) {
      timing.error = verified.sentence;
      out.push_back(std::move(timing));
      continue;
    }
    const std::unique_ptr<Buffer> workspace = device.allocate(kernel.workspace(site, m), "timing kernels");
    std::vector<MatrixRef> parts;
    std::int64_t column = 0;
    for (const LinearDesc& part : site.parts) {
      parts.push_back({y->data() + static_cast<std::size_t>(column) * bytes_of(site.y_dtype), site.y_dtype, m,
                       part.out_features, outputs});
      column += part.out_features;
    }
    LinearArgs args;
    args.rows = m;
    args.x = {x->data(), site.x_dtype, m, site.in_features(), site.in_features()};
    args.y = parts;
    args.workspace = workspace->data();
    // One pass over the copies tells how many make a round.
    const auto capture = [&](std::size_t calls) {
      stream->begin_capture();
      for (std::size_t i = 0; i < calls; ++i) kernel.enqueue(*packed[i % packed.size()], args, *stream);
      return stream->end_capture();
    };
    const auto time = [&](const Graph& graph) {
      const auto start = std::chrono::steady_clock::now();
      stream->launch(graph);
      stream->synchronize();
      return seconds_since(start);
    };
    std::unique_ptr<Graph> graph = capture(packed.size());
    time(*graph);
    const double once = time(*graph) / static_cast<double>(packed.size());
    const std::size_t calls = std::clamp(static_cast<std::size_t>(kRoundSeconds / once), packed.size(), kMostCalls);
    graph = capture(calls);
    time(*graph);
    std::vector<double> seconds;
    seconds.reserve(kRounds);
    for (int i = 0; i < kRounds; ++i) seconds.push_back(time(*graph) / static_cast<double>(calls));
    const Statistics statistics = statistics_of(seconds);
    timing.seconds = statistics.median;
    timing.least = statistics.min;
    out.push_back(std::move(timing));
  }
  return out;
}

}  // namespace nibble
