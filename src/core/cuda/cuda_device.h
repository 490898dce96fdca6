// A GPU as a device: memory by cudaMalloc, streams that capture into CUDA graphs, and uploads from mapped files through
// pinned buffers.
#pragma once

#include "core/cuda/cuda_check.h"
#include "core/device.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

class Uploader;

class CudaStream final : public Stream {
 public:
  explicit CudaStream(int device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t handle() const { return stream_; }
  /// Whether kernels may start while the ones before them run (programmatic dependent launch, compute capability 9.0).
  bool overlaps() const { return overlaps_; }

  void copy_to_device(void* to, const void* from, std::size_t bytes) override;
  void copy_to_host(void* to, const void* from, std::size_t bytes) override;
  void synchronize() override;
  std::unique_ptr<Mark> mark() override;
  void begin_capture() override;
  std::unique_ptr<Graph> end_capture() override;
  void launch(const Graph& graph) override;

 private:
  int device_;
  cudaStream_t stream_ = nullptr;
  bool overlaps_ = false;
};

class CudaDevice final : public Device {
 public:
  /// Opens GPU `index` of those that CUDA_VISIBLE_DEVICES leaves; Error where it does not exist or cannot be used.
  explicit CudaDevice(int index);
  ~CudaDevice() override;

  const DeviceInfo& info() const override { return info_; }
  std::unique_ptr<Buffer> allocate(std::size_t bytes, const std::string& purpose) override;
  std::unique_ptr<Buffer> allocate_staging(std::size_t bytes) override;
  std::unique_ptr<Stream> make_stream() override;
  std::optional<MemoryRate> measure_memory_rate(std::size_t footprint) override;

  /// Several threads read into pinned slots, which are sent as they fill.
  void upload(void* to, const void* from, std::size_t bytes, Stream& stream) override;
  double upload_seconds() const override { return upload_seconds_; }

  int multiprocessors() const { return multiprocessors_; }
  /// 90 for compute capability 9.0.
  int capability() const { return capability_; }

  /// Memory of at least this many bytes for tensors on their way into a kernel's layout; the next call may give the
  /// same memory, so what is enqueued on one stream uses it in turn. Kept until trim().
  std::byte* staging(std::size_t bytes);
  void trim() override;

 private:
  int index_;
  DeviceInfo info_;
  int multiprocessors_ = 0;
  int capability_ = 0;
  std::unique_ptr<Uploader> uploader_;
  double upload_seconds_ = 0;
  std::unique_ptr<Buffer> staging_;
};

/// The PCI address of GPU `index` of those that CUDA_VISIBLE_DEVICES leaves, without making a context on it; Error
/// where there is no such GPU.
std::string cuda_bus(int index);

/// The stream, the device as what they must be for a CUDA kernel or op; Error when they belong to another device.
CudaStream& cuda_stream(Stream& stream);
CudaDevice& cuda_device(Device& device);

}  // namespace nibble
