// `--kernel auto`: which kernel is the fastest for a site on this machine, by measuring.
#pragma once

#include "kernels/linear_kernel.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace nibble {

/// $XDG_CACHE_HOME/nibble/autotune.json, or ~/.cache/nibble/autotune.json; empty where neither variable is set.
std::filesystem::path default_autotune_file();

/// Chooses kernels and remembers what it chose, in memory and in a file. The file holds choices of one build (size and
/// time of the program file, and of a GPU's library) on one device; a file of another build or device, or one that
/// cannot be read, is as none.
class Autotuner {
 public:
  /// Reads `file` if it is there; an empty path: remembers in memory only.
  explicit Autotuner(Device& device, std::filesystem::path file = default_autotune_file());

  /// The kernel with the least geometric mean of its times at these numbers of rows (at least one; more than 256 are
  /// measured as 256), among those that take the site up to the most rows, belong to `--kernel all` and do not round
  /// activations to 8 bits. Times within 5% of the least are a tie, which goes to the kernel that keeps fewer bytes,
  /// then to the first by name, so that runs repeat. One candidate is not measured. Measures on random weights of the
  /// site's shape, less than a second for a small model's site. Throws Error, with each kernel's reason, where none
  /// takes the site.
  const LinearKernel& choose(const LinearSite& site, std::span<const std::int64_t> rows);

  /// The same among given kernels; names them in the file, so that a list with others measures anew.
  const LinearKernel& choose(const LinearSite& site, std::span<const std::int64_t> rows,
                             std::span<const LinearKernel* const> candidates);

 private:
  void save() const;

  Device& device_;
  std::filesystem::path file_;
  std::string machine_;
  std::map<std::string, std::string> choices_;  // by description of site, rows and candidates
};

}  // namespace nibble
