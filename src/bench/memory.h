// What this process holds in memory, as the system counts it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>

namespace nibble {

/// Resident bytes of this process. `anonymous` is what it allocated; `file` are pages of mapped files (the program, its
/// libraries, weights), which the system can take back and read again.
struct ResidentMemory {
  std::size_t resident = 0;
  std::size_t anonymous = 0;
  std::size_t file = 0;
  std::size_t peak_resident = 0;  // the system's own record since the process began (VmHWM)
};

/// Reads /proc/self/status; zeros where the system does not say.
ResidentMemory resident_memory();

/// Watches this process's memory from a thread of its own, every 5 ms, and keeps the largest of each figure. A sample
/// takes some 30 us of one core, so it is stopped before anything is timed.
class MemoryWatch {
 public:
  MemoryWatch();
  ~MemoryWatch();
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;

  /// Ends the sampling; may be called again.
  void stop();
  /// The peaks of all samples so far, one taken now included. To be called by one thread, after stop().
  ResidentMemory peak();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The part of the file's bytes, 0 to 1, that the system already has in memory; nothing where it does not tell (it
/// tells only those who may write the file).
std::optional<double> cached_share(const std::filesystem::path& file);

}  // namespace nibble
