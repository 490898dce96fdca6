#include "core/checked.h"
#include "core/cuda/launch.cuh"
#include "core/cuda/memory_rate.h"

#include <algorithm>
#include <cstdint>

namespace nibble {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 8;
// Loads in flight a thread: enough to keep the memory busy with the threads above.
constexpr int kUnroll = 4;
constexpr int kPasses = 10;
// Whole steps of a thread block, and the alignment of its loads.
constexpr std::size_t kGrain = sizeof(uint4) * kThreads * kUnroll;
// What the buffers are filled with, and a value that no xor of such bytes gives: so the sum is never stored, and the
// compiler cannot know.
constexpr int kFill = 1;
constexpr std::uint32_t kNever = 0x9e3779b9u;

__device__ __forceinline__ void fold(uint4& sum, const uint4& value) {
  sum.x ^= value.x;
  sum.y ^= value.y;
  sum.z ^= value.z;
  sum.w ^= value.w;
}

__global__ void __launch_bounds__(kThreads) read_all(const uint4* data, std::int64_t steps, uint4* sink) {
  uint4 sum = make_uint4(0, 0, 0, 0);
  for (std::int64_t step = blockIdx.x; step < steps; step += gridDim.x) {
    const uint4* at = data + step * (kThreads * kUnroll) + threadIdx.x;
    uint4 value[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) value[i] = __ldcs(at + i * kThreads);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) fold(sum, value[i]);
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == kNever) *sink = sum;
}

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "creating an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Seconds of the quickest of kPasses calls, after one that is not counted.
template <typename Body>
double best_seconds(const CudaStream& stream, const Body& body) {
  const Event start;
  const Event end;
  float best = 0;
  for (int pass = 0; pass <= kPasses; ++pass) {
    check_cuda(cudaEventRecord(start.get(), stream.handle()), "recording an event");
    body();
    check_cuda(cudaEventRecord(end.get(), stream.handle()), "recording an event");
    check_cuda(cudaEventSynchronize(end.get()), "waiting for the GPU");
    float taken = 0;
    check_cuda(cudaEventElapsedTime(&taken, start.get(), end.get()), "reading the GPU's clock");
    if (pass > 0) best = pass == 1 ? taken : std::min(best, taken);
  }
  return static_cast<double>(best) * 1e-3;
}

}  // namespace

MemoryRate cuda_memory_rate(CudaDevice& device, std::size_t footprint) {
  CudaStream stream(device.info().index);
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
  // Two buffers, and something left for whoever else uses the GPU.
  footprint = std::max(std::min(footprint, free / 3) / kGrain * kGrain, kGrain);
  const std::unique_ptr<Buffer> from = device.allocate(footprint, "the measurement of the GPU's memory");
  const std::unique_ptr<Buffer> to = device.allocate(footprint, "the measurement of the GPU's memory");
  check_cuda(cudaMemsetAsync(from->data(), kFill, footprint, stream.handle()), "filling memory");
  check_cuda(cudaMemsetAsync(to->data(), kFill, footprint, stream.handle()), "filling memory");

  MemoryRate out;
  out.footprint = footprint;
  const double bytes = static_cast<double>(footprint);
  out.copy_bytes_per_second =
      2 * bytes / best_seconds(stream, [&] {
        check_cuda(cudaMemcpyAsync(to->data(), from->data(), footprint, cudaMemcpyDeviceToDevice, stream.handle()),
                   "copying within the GPU");
      });
  const auto steps = static_cast<std::int64_t>(footprint / kGrain);
  const auto blocks = static_cast<unsigned>(
      std::min<std::int64_t>(steps, std::int64_t{kBlocksPerMultiprocessor} * device.multiprocessors()));
  out.read_bytes_per_second =
      bytes / best_seconds(stream, [&] {
        launch(stream, dim3(blocks), dim3(kThreads), 0, Overlap::no, read_all,
               reinterpret_cast<const uint4*>(from->data()), steps, reinterpret_cast<uint4*>(to->data()));
      });
  return out;
}

}  // namespace nibble
