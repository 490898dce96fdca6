#include "ops/cpu/sampling.h"

#include "core/thread_pool.h"
#include "ops/sample_uniform.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace nibble::cpu {
namespace {

// A row is searched in this many parts, whatever the number of threads: 3 KiB each of a vocabulary of 49152.
constexpr std::int64_t kSegments = 64;

struct Best {
  float value;
  std::int32_t index;  // -1: nothing but NaN
};

std::pair<std::int64_t, std::int64_t> segment(std::int64_t vocab, std::int64_t index) {
  // In multiples of 16 floats, so that no two threads write to one cache line.
  return split_range(vocab, 16, static_cast<int>(index), static_cast<int>(kSegments));
}

// Unsigned numbers in the order of the floats, of which none is NaN and none -0.
std::uint32_t ordered(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
float from_ordered(std::uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Where a running total over values in falling order first reaches a target, and the total of all above that value.
struct Crossing {
  float value = 0;
  double above = 0;
};

// The total is of weight(x) for each x. Looks at 11, 11, then 10 bits of the ordered value, a pass each: no sorting, no
// memory but the bins. When the total never gets there, the crossing is at the smallest value.
template <typename Weight>
Crossing crossing_of_all(const float* x, std::int64_t n, double target, const Weight& weight) {
  constexpr std::array kShifts = {21, 10, 0};
  constexpr std::array kBits = {11, 11, 10};
  Crossing found;
  std::uint32_t fixed = 0;  // the bits of the key that are known
  for (std::size_t pass = 0; pass < kShifts.size(); ++pass) {
    const int shift = kShifts[pass];
    const int known = shift + kBits[pass];
    std::array<double, 2048> bins{};
    std::array<bool, 2048> used{};
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint32_t key = ordered(x[i]);
      if (known < 32 && (key >> known) != (fixed >> known)) continue;
      const std::uint32_t bin = (key >> shift) & ((1u << kBits[pass]) - 1);
      bins[bin] += weight(x[i]);
      used[bin] = true;
    }
    std::uint32_t lowest = 0;
    bool crossed = false;
    for (std::uint32_t bin = 1u << kBits[pass]; bin-- > 0;) {
      if (!used[bin]) continue;
      lowest = bin;
      if (found.above + bins[bin] >= target) {
        crossed = true;
        break;
      }
      found.above += bins[bin];
    }
    if (!crossed) found.above -= bins[lowest];
    fixed |= lowest << shift;
  }
  found.value = from_ordered(fixed);
  return found;
}

// The same where the crossing is known to be at `bound` or above: mostly few values are, and only those are looked at.
template <typename Weight>
Crossing crossing(const float* x, std::int64_t n, float bound, double target, const Weight& weight) {
  std::array<float, 4096> some;
  std::size_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (x[i] < bound) continue;
    if (count == some.size()) return crossing_of_all(x, n, target, weight);
    some[count++] = x[i];
  }
  return crossing_of_all(some.data(), static_cast<std::int64_t>(count), target, weight);
}

// best: the largest of each segment.
void keep_top_k(float* x, std::int64_t n, std::int32_t k, const Best* best) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < n; ++i) x[i] = std::isnan(x[i]) ? kNone : x[i] + 0.0f;  // and -0 becomes 0
  float bound = kNone;
  if (k <= kSegments) {
    // k segments whose largest is the k-th largest of them or more hold k such values.
    std::array<float, kSegments> largest;
    for (std::int64_t s = 0; s < kSegments; ++s) largest[s] = best[s].index < 0 ? kNone : best[s].value;
    std::nth_element(largest.begin(), largest.begin() + (k - 1), largest.end(), std::greater<>());
    bound = largest[k - 1];
  }
  const float kth = crossing(x, n, bound, k, [](float) { return 1.0; }).value;
  // Ties with the k-th largest stay, as in transformers.
  for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] < kth ? kNone : x[i];
}

// Keeps the smallest set of largest weights whose sum reaches top_p of the total; of equal weights the first.
void keep_top_p(float* x, std::int64_t n, double top_p, double total) {
  const double target = top_p * total;
  // All weights below this together are less than what may be left out.
  const auto bound = static_cast<float>((1 - top_p) * total / static_cast<double>(n) * 0.5);
  const Crossing at = crossing(x, n, bound, target, [](float w) { return static_cast<double>(w); });
  double sum = at.above;
  bool any = at.above > 0;
  for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] < at.value ? 0 : x[i];
  for (std::int64_t i = 0; i < n; ++i) {
    if (x[i] != at.value) continue;
    if (sum < target || !any) {
      sum += x[i];
      any = true;
    } else {
      x[i] = 0;
    }
  }
}

// The sum of the weights, four chains so that an addition need not wait for the one before; those below `least` become
// 0.
double sum_weights(float* x, std::int64_t n, float least) {
  std::array<double, 4> sums{};
  for (std::int64_t i = 0; i < n; ++i) {
    x[i] = x[i] < least ? 0 : x[i];
    sums[i % 4] += x[i];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Turns the logits of one row into weights and draws one. best: the largest of each segment; top: of all.
std::int32_t draw(float* x, std::int64_t n, const SampleParams& params, std::int64_t position, const Best* best,
                  const Best& top, const OpTable& ops) {
  if (params.top_k > 0 && params.top_k < n) keep_top_k(x, n, params.top_k, best);
  const double all = ops.exp_weights(x, n, top.value, 1 / params.temperature);
  if (params.top_p < 1) keep_top_p(x, n, params.top_p, all);
  // The largest weight is 1, so that a probability below min_p of the largest one is a weight below min_p.
  std::array<double, kSegments> sums{};
  double total = 0;
  for (std::int64_t s = 0; s < kSegments; ++s) {
    const auto [begin, end] = segment(n, s);
    sums[s] = sum_weights(x + begin, end - begin, params.min_p);
    total += sums[s];
  }
  double rest = sample_uniform(params.seed, position) * total;
  std::int32_t last = top.index;
  for (std::int64_t s = 0; s < kSegments; ++s) {
    if (rest >= sums[s]) {
      rest -= sums[s];
      continue;
    }
    const auto [begin, end] = segment(n, s);
    for (std::int64_t i = begin; i < end; ++i) {
      if (x[i] <= 0) continue;
      last = static_cast<std::int32_t>(i);
      if (rest < x[i]) return last;
      rest -= x[i];
    }
    return last;  // rounding carried the draw past the end of its segment
  }
  return last;
}

}  // namespace

std::size_t sample_workspace(std::int64_t rows) { return static_cast<std::size_t>(rows) * kSegments * sizeof(Best); }

void sample_task(const SampleArgs& args, const OpTable& ops, int thread, int threads) {
  auto* best = reinterpret_cast<Best*>(args.workspace);
  const std::int64_t vocab = args.logits.columns;
  const auto [first, last] = split_range(args.logits.rows * kSegments, 1, thread, threads);
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t row = unit / kSegments;
    const auto [begin, end] = segment(vocab, unit % kSegments);
    float* x = args.logits.f32_row(row);
    const float penalty = args.params[row].repetition_penalty;
    if (penalty != 1 && args.seen != nullptr) {
      const std::uint8_t* seen = args.seen + row * vocab;
      for (std::int64_t i = begin; i < end; ++i) {
        if (seen[i] != 0) x[i] = x[i] > 0 ? x[i] / penalty : x[i] * penalty;
      }
    }
    Best& found = best[unit];
    const std::int64_t index = end > begin ? ops.argmax(x + begin, end - begin, &found.value) : -1;
    found.index = index < 0 ? -1 : static_cast<std::int32_t>(begin + index);
  }
  if (threads > 1) ThreadPool::instance().barrier();
  const auto [first_row, last_row] = split_range(args.logits.rows, 1, thread, threads);
  for (std::int64_t row = first_row; row < last_row; ++row) {
    Best top{-std::numeric_limits<float>::infinity(), -1};
    for (std::int64_t s = 0; s < kSegments; ++s) {
      const Best& one = best[row * kSegments + s];
      if (one.index >= 0 && (top.index < 0 || one.value > top.value)) top = one;
    }
    if (top.index < 0) top.index = 0;  // all NaN: still a token, so that the run can go on and be seen to be wrong
    const SampleParams& params = args.params[row];
    const bool certain = params.temperature <= 0 || !std::isfinite(top.value);
    args.next[row] =
        certain ? top.index
                : draw(args.logits.f32_row(row), vocab, params, args.positions[row], best + row * kSegments, top, ops);
  }
}

}  // namespace nibble::cpu
