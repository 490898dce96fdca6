#include "bench/memory.h"

#include "core/file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace nibble {

ResidentMemory resident_memory() {
  ResidentMemory out;
  std::ifstream in("/proc/self/status");
  for (std::string word; in >> word;) {
    std::size_t* field = word == "VmRSS:"     ? &out.resident
                         : word == "VmHWM:"   ? &out.peak_resident
                         : word == "RssAnon:" ? &out.anonymous
                         : word == "RssFile:" ? &out.file
                                              : nullptr;
    std::size_t kib = 0;
    if (field != nullptr && in >> kib) *field = kib * 1024;
  }
  return out;
}

struct MemoryWatch::State {
  std::mutex mutex;
  std::condition_variable wake;
  bool stopping = false;
  ResidentMemory peak;
  std::thread thread;

  void sample() {
    const ResidentMemory now = resident_memory();
    peak.resident = std::max(peak.resident, now.resident);
    peak.anonymous = std::max(peak.anonymous, now.anonymous);
    peak.file = std::max(peak.file, now.file);
    peak.peak_resident = std::max({peak.peak_resident, now.peak_resident, now.resident});
  }
};

MemoryWatch::MemoryWatch() : state_(std::make_unique<State>()) {
  state_->thread = std::thread([state = state_.get()] {
    std::unique_lock lock(state->mutex);
    do {
      state->sample();
    } while (!state->wake.wait_for(lock, std::chrono::milliseconds(5), [state] { return state->stopping; }));
  });
}

MemoryWatch::~MemoryWatch() { stop(); }

void MemoryWatch::stop() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
  if (state_->thread.joinable()) state_->thread.join();
}

ResidentMemory MemoryWatch::peak() {
  const std::lock_guard lock(state_->mutex);
  state_->sample();
  return state_->peak;
}

std::optional<double> cached_share(const std::filesystem::path& file) {
  // mincore() calls every page of a file resident that the caller may not write.
  if (::access(file.c_str(), W_OK) != 0) return std::nullopt;
  const MappedFile mapped(file);
  if (mapped.bytes().empty()) return std::nullopt;
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((mapped.bytes().size() + page - 1) / page);
  void* address = const_cast<std::byte*>(mapped.bytes().data());
  if (::mincore(address, mapped.bytes().size(), resident.data()) != 0) return std::nullopt;
  const auto count =
      std::count_if(resident.begin(), resident.end(), [](unsigned char flags) { return (flags & 1) != 0; });
  return static_cast<double>(count) / static_cast<double>(resident.size());
}

}  // namespace nibble
