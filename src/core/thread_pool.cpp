#include "core/thread_pool.h"

#include "core/cpu.h"

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <exception>
#include <mutex>

namespace nibble {

ThreadPool& ThreadPool::instance() {
  static ThreadPool pool;
  return pool;
}

ThreadPool::ThreadPool() : threads_(usable_cpus()) { omp_set_num_threads(threads_); }

void ThreadPool::set_threads(int threads) {
  threads_ = std::max(1, threads);
  omp_set_num_threads(threads_);
}

void ThreadPool::run(const std::function<void(int, int)>& body) {
  if (threads_ == 1 || omp_in_parallel()) {
    body(0, 1);
    return;
  }
  std::exception_ptr error;
  std::mutex mutex;
#pragma omp parallel num_threads(threads_)
  {
    try {
      body(omp_get_thread_num(), omp_get_num_threads());
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::barrier() {
  const int n = omp_get_num_threads();
  if (n <= 1) return;
  const std::uint32_t generation = generation_.value.load(std::memory_order_acquire);
  if (arrived_.value.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(n)) {
    arrived_.value.store(0, std::memory_order_relaxed);
    generation_.value.store(generation + 1, std::memory_order_release);
    generation_.value.notify_all();
    return;
  }
  // A pause takes 10 to 140 cycles, by processor; 1000 of them are some 20 us. Past that another process has the core
  // that the last thread needs: sleep, and leave it this one.
  constexpr int kSpins = 1000;
  for (int spin = 0; spin < kSpins; ++spin) {
    if (generation_.value.load(std::memory_order_acquire) != generation) return;
    _mm_pause();
  }
  generation_.value.wait(generation, std::memory_order_acquire);
}

}  // namespace nibble
