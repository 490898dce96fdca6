#include "core/cuda/cuda_device.h"

#include "core/clock.h"
#include "core/cuda/memory_rate.h"
#include "core/cuda/uploader.h"
#include "core/error.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <string>

namespace nibble {
namespace {

// The first architecture with the asynchronous copies and bf16 products that every kernel here counts on.
constexpr int kLeastCapability = 80;

class CudaBuffer final : public Buffer {
 public:
  CudaBuffer(void* data, std::size_t size) : data_(static_cast<std::byte*>(data)), size_(size) {}
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;
  // Nothing to report from a destructor: a failed free means that the context is gone, memory included.
  ~CudaBuffer() override { cudaFree(data_); }
  std::byte* data() const override { return data_; }
  std::size_t size() const override { return size_; }

 private:
  std::byte* data_;
  std::size_t size_;
};

class PinnedBuffer final : public Buffer {
 public:
  PinnedBuffer(void* data, std::size_t size) : data_(static_cast<std::byte*>(data)), size_(size) {}
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() override { cudaFreeHost(data_); }
  std::byte* data() const override { return data_; }
  std::size_t size() const override { return size_; }

 private:
  std::byte* data_;
  std::size_t size_;
};

class CudaMark final : public Mark {
 public:
  explicit CudaMark(cudaStream_t stream) {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
    check_cuda(cudaEventRecord(event_, stream), "marking a place in a stream");
  }
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;
  ~CudaMark() override { cudaEventDestroy(event_); }
  void wait() override { check_cuda(cudaEventSynchronize(event_), "waiting for the GPU"); }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t exec) : exec_(exec) {}
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() override { cudaGraphExecDestroy(exec_); }
  cudaGraphExec_t exec() const { return exec_; }

 private:
  cudaGraphExec_t exec_;
};

// The file that this code was loaded from; empty where the loader does not say.
std::string own_file() {
  Dl_info info{};
  return ::dladdr(reinterpret_cast<const void*>(&check_cuda), &info) != 0 && info.dli_fname != nullptr ? info.dli_fname
                                                                                                       : "";
}

void check_index(int index) {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "looking for GPUs");
  if (index < 0 || index >= count) {
    fail("there is no GPU {}: CUDA sees {} (CUDA_VISIBLE_DEVICES chooses among them); use --device cuda:0 or cpu",
         index, count);
  }
}

}  // namespace

void check_cuda(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  // A sticky error stays with the context, one of a launch is cleared here, so that it is reported once.
  cudaGetLastError();
  fail("CUDA: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

CudaStream::CudaStream(int device) : device_(device) {
  check_cuda(cudaSetDevice(device_), "choosing the GPU");
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "asking for the GPU's age");
  overlaps_ = major >= 9;
}

CudaStream::~CudaStream() { cudaStreamDestroy(stream_); }

void CudaStream::copy_to_device(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copying to the GPU");
}

void CudaStream::copy_to_host(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "copying from the GPU");
}

void CudaStream::synchronize() { check_cuda(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

std::unique_ptr<Mark> CudaStream::mark() { return std::make_unique<CudaMark>(stream_); }

void CudaStream::begin_capture() {
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "beginning to capture a graph");
}

std::unique_ptr<Graph> CudaStream::end_capture() {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(stream_, &graph), "capturing a graph");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "instantiating a graph");
  return std::make_unique<CudaGraph>(exec);
}

void CudaStream::launch(const Graph& graph) {
  check_cuda(cudaGraphLaunch(static_cast<const CudaGraph&>(graph).exec(), stream_), "launching a graph");
}

std::string cuda_bus(int index) {
  check_index(index);
  char text[64] = {};
  check_cuda(cudaDeviceGetPCIBusId(text, static_cast<int>(sizeof text), index), "asking for the GPU's PCI address");
  return text;
}

CudaDevice::CudaDevice(int index) : index_(index) {
  check_index(index);
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
  capability_ = properties.major * 10 + properties.minor;
  if (capability_ < kLeastCapability) {
    fail("the GPU {} has compute capability {}.{}; nibble needs 8.0 or later: use --device cpu", properties.name,
         properties.major, properties.minor);
  }
  check_cuda(cudaSetDevice(index), "choosing the GPU");
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
  multiprocessors_ = properties.multiProcessorCount;
  info_.kind = DeviceKind::cuda;
  info_.index = index;
  info_.name = properties.name;
  info_.memory_bytes = free;
  info_.threads = multiprocessors_;
  info_.isa = "sm_" + std::to_string(capability_);
  info_.bus = cuda_bus(index);
  info_.library = own_file();
}

CudaDevice::~CudaDevice() = default;

std::unique_ptr<Buffer> CudaDevice::allocate(std::size_t bytes, const std::string& purpose) {
  check_cuda(cudaSetDevice(index_), "choosing the GPU");
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, std::max<std::size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&free, &total);
    if (bytes > free) {
      fail("no GPU memory for {}: it needs {} bytes, {} more than the {} that are free on {}", purpose, bytes,
           bytes - free, free, info_.name);
    }
    fail("no GPU memory for {}: {} has {} bytes free, but not the {} that it needs in one piece", purpose, info_.name,
         free, bytes);
  }
  check_cuda(status, "allocating memory for " + purpose);
  return std::make_unique<CudaBuffer>(data, bytes);
}

std::unique_ptr<Buffer> CudaDevice::allocate_staging(std::size_t bytes) {
  check_cuda(cudaSetDevice(index_), "choosing the GPU");
  void* data = nullptr;
  check_cuda(cudaMallocHost(&data, std::max<std::size_t>(bytes, 1)), "allocating pinned memory");
  return std::make_unique<PinnedBuffer>(data, bytes);
}

std::unique_ptr<Stream> CudaDevice::make_stream() { return std::make_unique<CudaStream>(index_); }

std::optional<MemoryRate> CudaDevice::measure_memory_rate(std::size_t footprint) {
  return cuda_memory_rate(*this, footprint);
}

void CudaDevice::upload(void* to, const void* from, std::size_t bytes, Stream& stream) {
  const auto start = std::chrono::steady_clock::now();
  if (!uploader_) uploader_ = std::make_unique<Uploader>(index_);
  uploader_->copy(to, from, bytes, cuda_stream(stream).handle());
  upload_seconds_ += seconds_since(start);
}

std::byte* CudaDevice::staging(std::size_t bytes) {
  if (!staging_ || staging_->size() < bytes) {
    // Freeing waits for what still uses it.
    staging_.reset();
    staging_ = allocate(bytes, "weights on their way into a kernel's layout");
  }
  return staging_->data();
}

void CudaDevice::trim() {
  staging_.reset();
  uploader_.reset();
}

CudaStream& cuda_stream(Stream& stream) {
  auto* cuda = dynamic_cast<CudaStream*>(&stream);
  if (cuda == nullptr) fail("a CUDA kernel was given the stream of another device");
  return *cuda;
}

CudaDevice& cuda_device(Device& device) {
  auto* cuda = dynamic_cast<CudaDevice*>(&device);
  if (cuda == nullptr) fail("a CUDA kernel was given another device");
  return *cuda;
}

}  // namespace nibble
