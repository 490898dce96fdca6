// The one thread pool of the process. It stands on OpenMP, so that it and the GEMM library share the same threads and
// never compete for the cores. Work is split statically: the same build, threads and shapes give bitwise the same
// result.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

namespace nibble {

class ThreadPool {
 public:
  /// The process's pool, sized by usable_cpus() until set_threads().
  static ThreadPool& instance();

  int threads() const { return threads_; }
  /// Takes effect at the next run(); at least 1. Not to be called from inside run().
  void set_threads(int threads);

  /// Runs body(thread, threads) on every thread and returns when all are done. The first exception thrown is rethrown.
  /// Inside of run(), a nested run() executes body(0, 1) on the calling thread.
  void run(const std::function<void(int thread, int threads)>& body);

  /// Inside of run(): waits for all threads. Spins about 20 us, then sleeps: a decode step meets one every 20 to 100
  /// us.
  void barrier();

 private:
  ThreadPool();
  int threads_;
  struct alignas(64) Line {
    std::atomic<std::uint32_t> value{0};
  };
  Line arrived_;
  Line generation_;
};

/// The part [begin, end) of `count` items that `thread` of `threads` gets, in multiples of `grain`.
inline std::pair<std::int64_t, std::int64_t> split_range(std::int64_t count, std::int64_t grain, int thread,
                                                         int threads) {
  const std::int64_t blocks = (count + grain - 1) / grain;
  const std::int64_t begin = blocks * thread / threads * grain;
  const std::int64_t end = blocks * (thread + 1) / threads * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace nibble
