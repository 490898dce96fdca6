#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace nibble {
namespace {

double percentile(std::span<const double> sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

Statistics statistics_of(std::span<const double> samples) {
  Statistics out;
  out.count = samples.size();
  if (samples.empty()) return out;
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const double n = static_cast<double>(sorted.size());
  out.mean = std::accumulate(sorted.begin(), sorted.end(), 0.0) / n;
  out.median = percentile(sorted, 0.5);
  out.p95 = percentile(sorted, 0.95);
  out.min = sorted.front();
  out.max = sorted.back();
  if (sorted.size() > 1) {
    double squares = 0;
    for (const double value : sorted) squares += (value - out.mean) * (value - out.mean);
    out.stddev = std::sqrt(squares / (n - 1));
  }
  return out;
}

}  // namespace nibble
