#include "ops/cpu/sampling.h"

#include "core/thread_pool.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
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

// Unsigned numbers in the order of the floats; NaN is below all.
std::uint32_t ordered(float x) {
  if (std::isnan(x)) return 0;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x == 0 ? 0.0f : x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Finds where a running total over the values in falling order, of weight(x) for each x, first reaches `target`: the key
// of the value there, and the total of all above it. Looks at 11, 11, then 10 bits of the key, a pass over the row each:
// no sorting, no memory but the bins. When the total never gets there, the key is that of the smallest.
struct Crossing {
  std::uint32_t key = 0;
  double above = 0;
};
template <typename Weight>
Crossing find_crossing(const float* x, std::int64_t n, double target, const Weight& weight) {
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
    // Rounding may leave the total just short of the target: then the crossing is at the smallest value.
    if (!crossed) found.above -= bins[lowest];
    fixed |= lowest << shift;
  }
  found.key = fixed;
  return found;
}

void keep_top_k(float* x, std::int64_t n, std::int32_t k) {
  const Crossing kth = find_crossing(x, n, k, [](float) { return 1.0; });
  // Ties with the k-th largest stay, as in transformers.
  for (std::int64_t i = 0; i < n; ++i) {
    if (ordered(x[i]) < kth.key) x[i] = -std::numeric_limits<float>::infinity();
  }
}

// Keeps the smallest set of largest weights whose sum reaches top_p of the total; of equal weights the first.
void keep_top_p(float* x, std::int64_t n, double target) {
  const Crossing at = find_crossing(x, n, target, [](float w) { return static_cast<double>(w); });
  double sum = at.above;
  bool any = at.above > 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t key = ordered(x[i]);
    if (key > at.key) continue;
    if (key == at.key && (sum < target || !any)) {
      sum += x[i];
      any = true;
    } else {
      x[i] = 0;
    }
  }
}

// Turns the logits of one row into weights and draws one.
std::int32_t draw(float* x, std::int64_t n, const SampleParams& params, std::int64_t position, const Best& best,
                  const OpTable& ops) {
  if (params.top_k > 0 && params.top_k < n) keep_top_k(x, n, params.top_k);
  double total = ops.exp_weights(x, n, best.value, 1 / params.temperature);
  if (params.top_p < 1) keep_top_p(x, n, static_cast<double>(params.top_p) * total);
  // The largest weight is 1, so that a probability below min_p of the largest one is a weight below min_p.
  std::array<double, kSegments> sums{};
  total = 0;
  for (std::int64_t s = 0; s < kSegments; ++s) {
    const auto [begin, end] = segment(n, s);
    for (std::int64_t i = begin; i < end; ++i) {
      if (x[i] < params.min_p) x[i] = 0;
      sums[s] += x[i];
    }
    total += sums[s];
  }
  double rest = sample_uniform(params.seed, position) * total;
  std::int32_t last = best.index;
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

double sample_uniform(std::uint64_t seed, std::int64_t position) {
  const auto mix = [](std::uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  return static_cast<double>(mix(mix(static_cast<std::uint64_t>(position)) ^ seed) >> 11) * 0x1p-53;
}

std::size_t sample_workspace(std::int64_t rows) {
  return static_cast<std::size_t>(rows) * kSegments * sizeof(Best);
}

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
        certain ? top.index : draw(args.logits.f32_row(row), vocab, params, args.positions[row], top, ops);
  }
}

}  // namespace nibble::cpu
