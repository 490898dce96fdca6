#include "bench/ceilings.h"

#include "core/clock.h"
#include "core/float_convert.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

namespace nibble {
namespace {

// A copy moves 8 GB: far beyond a GPU's cache, and some milliseconds long.
constexpr std::size_t kMemoryFootprint = 4'000'000'000;

struct Size {
  std::int64_t rows, width;
  int products;  // that are enqueued before one waits for them, so that a launch's own time does not count
};

Size size_for(DeviceKind kind) { return kind == DeviceKind::cpu ? Size{1024, 2048, 1} : Size{8192, 8192, 8}; }

/// [rows, columns] of random values that repeat after a while: what a GPU draws of power, and so its clocks, depend on
/// the bits that change, and constants would flatter it.
Tensor random_matrix(DType dtype, std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
  constexpr std::size_t kPeriod = std::size_t{1} << 20;
  Random random(seed);
  Tensor out(dtype, {rows, columns});
  const std::size_t count = static_cast<std::size_t>(rows * columns);
  const std::size_t distinct = std::min(count, kPeriod);
  for (std::size_t i = 0; i < distinct; ++i) {
    const float value = random.normal();
    if (dtype == DType::f32) {
      out.as<float>()[i] = value;
    } else {
      out.as<std::uint16_t>()[i] = dtype == DType::f16 ? float_to_half(value) : float_to_bf16(value);
    }
  }
  const std::span<std::byte> bytes = out.bytes();
  const std::size_t period = distinct * bytes_of(dtype);
  for (std::size_t at = period; at < bytes.size(); at += period)
    std::memcpy(bytes.data() + at, bytes.data(), std::min(period, bytes.size() - at));
  return out;
}

double gemm_rate(Device& device, DType compute) {
  constexpr int kTries = 5;
  const bool cpu = device.info().kind == DeviceKind::cpu;
  const auto [rows, width, products] = size_for(device.info().kind);
  const LinearKernel& kernel = kernel_named("dense", device.info().kind);
  LinearSite site;
  site.parts = {{"the measurement of dense", width, width, false, std::nullopt}};
  site.compute = compute;
  // On the CPU activations are f32 between sites, on a GPU of the type that is computed in.
  site.x_dtype = site.y_dtype = cpu ? DType::f32 : compute;
  if (!kernel.fit(site, device.info(), rows).ok) return 0;
  const std::unique_ptr<Stream> stream = device.make_stream();
  const Tensor weights = random_matrix(compute, width, width, 1);
  LinearTensors tensors;
  tensors.weight = weights.view();
  const std::unique_ptr<PackedLinear> packed = kernel.pack(site, {&tensors, 1}, device, *stream);
  const Tensor inputs = random_matrix(site.x_dtype, rows, width, 2);
  const std::size_t bytes = inputs.bytes().size();
  const std::unique_ptr<Buffer> x = device.allocate(bytes, "the measurement of dense");
  const std::unique_ptr<Buffer> y = device.allocate(bytes, "the measurement of dense");
  const std::unique_ptr<Buffer> workspace =
      device.allocate(std::max<std::size_t>(1, kernel.workspace(site, rows)), "scratch of dense");
  stream->copy_to_device(x->data(), inputs.bytes().data(), bytes);
  stream->synchronize();
  const MatrixRef out{y->data(), site.y_dtype, rows, width, width};
  LinearArgs args;
  args.rows = rows;
  args.x = {x->data(), site.x_dtype, rows, width, width};
  args.y = {&out, 1};
  args.workspace = workspace->data();
  double best = 0;
  for (int i = 0; i <= kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int product = 0; product < products; ++product) kernel.enqueue(*packed, args, *stream);
    stream->synchronize();
    const double taken = seconds_since(start);
    if (i > 0) best = std::max(best, products * kernel.cost(site, rows).flops / taken);
  }
  return best;
}

}  // namespace

double GemmRates::of(std::string_view dtype) const {
  return dtype == "f32" ? f32 : dtype == "bf16" ? bf16 : dtype == "f16" ? f16 : 0;
}

GemmRates measure_gemm_rates(Device& device) {
  GemmRates out;
  out.f32 = gemm_rate(device, DType::f32);
  out.bf16 = gemm_rate(device, DType::bf16);
  // The CPU has no products of f16.
  if (device.info().kind != DeviceKind::cpu) out.f16 = gemm_rate(device, DType::f16);
  // These products take a GPU to its power cap, and for a while after it keeps its clocks low.
  constexpr std::chrono::milliseconds kRest(500);
  if (device.info().kind != DeviceKind::cpu) std::this_thread::sleep_for(kRest);
  return out;
}

DeviceCeilings measure_ceilings(Device& device) {
  DeviceCeilings out;
  out.memory = device.measure_memory_rate(kMemoryFootprint).value_or(MemoryRate{});
  out.gemm = measure_gemm_rates(device);
  return out;
}

Floor floor_of(const Cost& cost, double bytes_per_second, double flops_per_second) {
  if (bytes_per_second <= 0 || flops_per_second <= 0) return {};
  const double moving = cost.bytes / bytes_per_second;
  const double computing = cost.flops / flops_per_second;
  return computing > moving ? Floor{computing, "compute"} : Floor{moving, "memory"};
}

}  // namespace nibble
