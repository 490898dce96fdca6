#include "bench/bandwidth.h"

#include "bench/read_stream.h"
#include "core/checked.h"
#include "core/cpu.h"
#include "core/cpu_device.h"
#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// A thread's part is a multiple of this many words: what the widest loop reads a turn, and whole cache lines.
constexpr std::size_t kGrainWords = 64;

/// Memory that could be had without pushing anything out, as the system estimates it; 0 where it does not.
std::size_t available_memory() {
  std::ifstream in("/proc/meminfo");
  for (std::string word; in >> word;) {
    std::size_t kib = 0;
    if (word == "MemAvailable:" && in >> kib) return kib * 1024;
  }
  return 0;
}

}  // namespace

std::uint64_t read_stream_scalar(const std::uint64_t* data, std::size_t words) {
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  for (std::size_t i = 0; i + 1 < words; i += 2) {
    a ^= data[i];
    b ^= data[i + 1];
  }
  return a ^ b;
}

ReadBandwidth measure_read_bandwidth(std::size_t footprint, double seconds) {
  ThreadPool& pool = ThreadPool::instance();
  const std::size_t turn = kGrainWords * sizeof(std::uint64_t) * static_cast<std::size_t>(pool.threads());
  footprint = round_up(std::max(footprint, turn), turn);
  const std::unique_ptr<Buffer> buffer = cpu_device().allocate(footprint, "the measurement of the memory's speed");
  auto* words = reinterpret_cast<std::uint64_t*>(buffer->data());
  const auto count = static_cast<std::int64_t>(footprint / sizeof(std::uint64_t));
  const auto grain = static_cast<std::int64_t>(kGrainWords);
  // Each thread writes its part first, so that the pages are there, and near the core that will read them.
  pool.run([&](int thread, int threads) {
    const auto [begin, end] = split_range(count, grain, thread, threads);
    std::memset(words + begin, 1, static_cast<std::size_t>(end - begin) * sizeof(std::uint64_t));
  });

  using Reader = std::uint64_t(const std::uint64_t*, std::size_t);
  Reader* const read = pick<Reader>(
      {{Isa::scalar, read_stream_scalar}, {Isa::avx2, read_stream_avx2}, {Isa::avx512, read_stream_avx512}});
  std::atomic<std::uint64_t> sum{0};
  const auto pass = [&] {
    const auto start = Clock::now();
    pool.run([&](int thread, int threads) {
      const auto [begin, end] = split_range(count, grain, thread, threads);
      sum.fetch_xor(read(words + begin, static_cast<std::size_t>(end - begin)), std::memory_order_relaxed);
    });
    return std::chrono::duration<double>(Clock::now() - start).count();
  };

  ReadBandwidth out;
  out.footprint = footprint;
  out.threads = pool.threads();
  pass();
  constexpr int kLeastPasses = 3;
  double best = 0;
  for (double spent = 0; out.passes < kLeastPasses || spent < seconds; ++out.passes) {
    const double taken = pass();
    spent += taken;
    best = out.passes == 0 ? taken : std::min(best, taken);
  }
  out.bytes_per_second = static_cast<double>(footprint) / best;
  return out;
}

std::size_t memory_footprint() {
  constexpr std::size_t kLeast = std::size_t{256} << 20;
  // Getting more pages from the system takes longer (seconds a GB, on some virtual machines) than measuring with them.
  constexpr std::size_t kMost = std::size_t{1} << 30;
  const std::size_t wanted = std::clamp(8 * last_level_cache_bytes(), kLeast, kMost);
  const std::size_t available = std::min(available_memory(), usable_memory_bytes());
  return std::max(kLeast, std::min(wanted, available / 4));
}

}  // namespace nibble
