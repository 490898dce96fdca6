// The CPU as a device. Its stream runs tasks on the process's thread pool; a captured sequence of tasks is replayed
// inside one parallel region, with a barrier between tasks instead of a fork and join each.
#pragma once

#include "core/device.h"

#include <functional>
#include <vector>

namespace nibble {

/// One piece of work: called on every thread of the pool, which divide it among themselves by their number.
using CpuTask = std::function<void(int thread, int threads)>;

class CpuStream final : public Stream {
 public:
  /// Runs on all threads; the next task starts when all are done. `task` keeps by value what it needs.
  void parallel(CpuTask task);
  /// Runs on the calling thread alone, outside of any parallel region: for libraries that use the pool's threads
  /// themselves.
  void serial(std::function<void()> task);

  void copy_to_device(void* to, const void* from, std::size_t bytes) override;
  void copy_to_host(void* to, const void* from, std::size_t bytes) override;
  void synchronize() override {}
  void begin_capture() override;
  std::unique_ptr<Graph> end_capture() override;
  void launch(const Graph& graph) override;

 private:
  struct Step {
    CpuTask parallel;
    std::function<void()> serial;
  };
  class CpuGraph;
  bool capturing_ = false;
  std::vector<Step> recorded_;
};

/// The stream as what it must be for a CPU kernel or op; Error when it belongs to another device.
CpuStream& cpu_stream(Stream& stream);

/// The CPU device; there is one.
Device& cpu_device();

}  // namespace nibble
