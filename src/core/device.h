// A device (the CPU, a GPU) as the modules above see it: memory, an ordered stream of work, capture of a sequence of
// work that is replayed for each token, and time. Nothing above `core`, `kernels` and `ops` knows which device it runs
// on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace nibble {

enum class DeviceKind { cpu, cuda };

struct DeviceInfo {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  std::string name;              // as the system names it
  std::size_t memory_bytes = 0;  // all of it, cut by the limits of this process
  int threads = 0;               // CPU: threads of the pool; GPU: multiprocessors
  std::string isa;               // CPU: the active instruction set; GPU: "sm_90"
  std::string bus;               // GPU: its PCI address, "0000:1b:00.0": tools of the driver know it by that
  std::string library;           // GPU: the file that holds the back end; the CPU's is in the program
};

/// How fast a device moves bytes within its own memory: the limit of a pass that must read every weight.
struct MemoryRate {
  double copy_bytes_per_second = 0;  // copying one buffer to another; bytes read and bytes written both count
  double read_bytes_per_second = 0;  // reading one buffer
  std::size_t footprint = 0;         // bytes of each of the two buffers
};

/// Device memory; freed with the object.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() const = 0;
  virtual std::size_t size() const = 0;
};

/// A captured sequence of work.
class Graph {
 public:
  virtual ~Graph() = default;
};

/// A place in a stream's order of work.
class Mark {
 public:
  virtual ~Mark() = default;
  /// Returns once all that was enqueued before the mark is done; what came after it may be under way.
  virtual void wait() {}
};

/// An ordered queue of work. What is enqueued neither allocates nor waits.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void copy_to_device(void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, std::size_t bytes) = 0;
  /// Waits for everything enqueued so far.
  virtual void synchronize() = 0;
  /// Marks what has been enqueued so far. Where all work is done as it is enqueued, there is nothing to wait for.
  virtual std::unique_ptr<Mark> mark() { return std::make_unique<Mark>(); }

  /// Between these two, work is recorded and not run. The pointers given stay fixed, their contents may change between
  /// replays.
  virtual void begin_capture() = 0;
  virtual std::unique_ptr<Graph> end_capture() = 0;
  virtual void launch(const Graph& graph) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  /// At least `bytes` of uninitialised memory, aligned to 256 bytes; Error naming `purpose` when there is not so much.
  virtual std::unique_ptr<Buffer> allocate(std::size_t bytes, const std::string& purpose) = 0;
  /// At least `bytes` of host memory that streams copy from and to without waiting, and that captured copies may name.
  virtual std::unique_ptr<Buffer> allocate_staging(std::size_t bytes) { return allocate(bytes, "staging"); }
  virtual std::unique_ptr<Stream> make_stream() = 0;
  /// Measures with two buffers of `footprint` bytes each, or of what is free where that is less; the best of several
  /// passes. Nothing on the CPU, whose threads bench/bandwidth.h measures.
  virtual std::optional<MemoryRate> measure_memory_rate(std::size_t footprint) {
    static_cast<void>(footprint);
    return std::nullopt;
  }
  /// Copies weights, `from` being a mapped file perhaps. Ordered before what is enqueued on `stream` after the call;
  /// `from` has been read when it returns.
  virtual void upload(void* to, const void* from, std::size_t bytes, Stream& stream) {
    stream.copy_to_device(to, from, bytes);
    stream.synchronize();
  }
  /// Seconds that upload() has taken of its callers so far; 0 where weights stay in the same memory.
  virtual double upload_seconds() const { return 0; }
  /// Gives back memory that was kept for packing further weights. Nothing may be under way.
  virtual void trim() {}
};

}  // namespace nibble
