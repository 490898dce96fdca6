// The choice of the next token, by the definition of ops/cpu/sampling.cpp, in two launches: many blocks a row find the
// largest logit of its parts (and lower the logits of seen tokens on the way), then one block a row takes the largest
// of those, and is done, or draws. What a row wants is read on the device: one captured step serves all parameters. A
// draw keeps no sorted copy of the row: thresholds are found by bisection of the ordered bits of its values, over the
// few values that can matter. All sums are in double and in a fixed order.
#include "core/cuda/launch.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/op_checks.h"
#include "ops/sample_uniform.h"

#include <limits>

namespace nibble::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;  // the lanes of a warp
constexpr int kWarp = 32;
// Parts of a row in the search, a block each: two for each lane of the warp that puts them together, and for a single
// row enough for half the multiprocessors of an H100, with ten rounds of 256 threads each over 152064 logits.
constexpr int kParts = 64;
constexpr int kSearchThreads = 256;
constexpr int kDrawThreads = 1024;
constexpr int kDrawWarps = kDrawThreads / kWarp;
static_assert(kDrawWarps == kWarp, "one lane reads the sum of one warp");
// Values that are looked at again and again: 16 KiB of shared memory. Rarely more are near enough to the largest to
// matter; where there are, the row itself is read instead.
constexpr int kCandidates = 4096;

// Rounds of a loop over warps or lanes that are unrolled: all of them would take more registers than 1024 threads have.
constexpr int kFew = 4;

constexpr float kNone = -std::numeric_limits<float>::infinity();

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / kWarp); }

// Unsigned numbers in the order of the floats, of which none is NaN and none -0.
__device__ __forceinline__ std::uint32_t ordered(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
// NaN is as good as no value, and -0 becomes 0.
__device__ __forceinline__ float cleaned(float x) { return isnan(x) ? kNone : x + 0.0f; }

// A logit and its index in one number that is larger for a larger logit, then for a smaller index; 0 for NaN.
__device__ __forceinline__ std::uint64_t entry(float logit, std::int32_t index) {
  if (isnan(logit)) return 0;
  return static_cast<std::uint64_t>(ordered(logit + 0.0f)) << 32 | (kAll - static_cast<std::uint32_t>(index));
}
__device__ __forceinline__ float logit_of(std::uint64_t entry) {
  return from_ordered(static_cast<std::uint32_t>(entry >> 32));
}
__device__ __forceinline__ std::int32_t index_of(std::uint64_t entry) {
  return static_cast<std::int32_t>(kAll - static_cast<std::uint32_t>(entry));
}

__device__ __forceinline__ std::uint64_t larger(std::uint64_t a, std::uint64_t b) { return a > b ? a : b; }
__device__ __forceinline__ std::uint64_t warp_largest(std::uint64_t value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = larger(value, __shfl_xor_sync(kAll, value, offset));
  return value;
}

__device__ __forceinline__ double warp_total(double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

struct Logits {
  float* data;
  std::int64_t stride;
  std::int32_t vocab;
};

// largest: [rows, kParts] entries.
__global__ void __launch_bounds__(kSearchThreads)
    find_largest(Logits logits, const SampleParams* params, const std::uint8_t* seen, std::uint64_t* largest) {
  pdl_wait();
  pdl_launch();
  __shared__ std::uint64_t of_warps[kSearchThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  const std::int32_t share = (logits.vocab + kParts - 1) / kParts;
  const std::int32_t begin = static_cast<std::int32_t>(blockIdx.y) * share;
  const std::int32_t end = min(begin + share, logits.vocab);
  float* x = logits.data + row * logits.stride;
  const float penalty = seen != nullptr ? params[row].repetition_penalty : 1.0f;
  std::uint64_t best = 0;
  if (penalty == 1) {
    // Loads of several rounds are under way at a time: there are ten rounds, and little else to wait for.
#pragma unroll 4
    for (std::int32_t i = begin + static_cast<std::int32_t>(threadIdx.x); i < end; i += kSearchThreads)
      best = larger(best, entry(x[i], i));
  } else {
    const std::uint8_t* seen_of_row = seen + row * logits.vocab;
    for (std::int32_t i = begin + static_cast<std::int32_t>(threadIdx.x); i < end; i += kSearchThreads) {
      float value = x[i];
      if (seen_of_row[i] != 0) {
        value = value > 0 ? value / penalty : value * penalty;
        x[i] = value;
      }
      best = larger(best, entry(value, i));
    }
  }
  best = warp_largest(best);
  const int lane = lane_index();
  if (lane == 0) of_warps[warp_index()] = best;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  best = warp_largest(lane < kSearchThreads / kWarp ? of_warps[lane] : 0);
  if (lane == 0) largest[row * kParts + blockIdx.y] = best;
}

struct Scratch {
  float candidates[kCandidates];
  double sums[3][kDrawWarps];
  std::int32_t counts[kDrawWarps];
};

// Each thread's values summed over the block, in every thread.
template <int kCount>
__device__ __forceinline__ void block_totals(double (&values)[kCount], Scratch& scratch) {
  static_assert(kCount <= 3);
  const int lane = lane_index();
  const int warp = warp_index();
#pragma unroll
  for (double& value : values) value = warp_total(value);
  __syncthreads();  // all have read the sums of the call before
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch.sums[i][warp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_total(scratch.sums[i][lane]);
}

// Values that a threshold is looked for in: in shared memory, or the row.
struct Values {
  const float* data;
  std::int32_t count;
};

// The values of a row at `bound` or above, in an order that is the same each time; all of the row if they are too many.
__device__ Values at_or_above(const float* x, std::int32_t n, float bound, Scratch& scratch) {
  const int lane = lane_index();
  const int warp = warp_index();
  std::int32_t count = 0;
#pragma unroll 4
  for (std::int32_t i = threadIdx.x; i < n; i += kDrawThreads) count += cleaned(x[i]) >= bound ? 1 : 0;
  std::int32_t up_to_here = count;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const std::int32_t before = __shfl_up_sync(kAll, up_to_here, offset);
    if (lane >= offset) up_to_here += before;
  }
  __syncthreads();  // all have read the counts of an earlier use
  if (lane == kWarp - 1) scratch.counts[warp] = up_to_here;
  __syncthreads();
  std::int32_t at = up_to_here - count;
  std::int32_t total = 0;
#pragma unroll kFew
  for (int w = 0; w < kDrawWarps; ++w) {
    if (w < warp) at += scratch.counts[w];
    total += scratch.counts[w];
  }
  if (total > kCandidates) return {x, n};
  if (count > 0) {
    for (std::int32_t i = threadIdx.x; i < n; i += kDrawThreads) {
      const float value = cleaned(x[i]);
      if (value >= bound) scratch.candidates[at++] = value;
    }
  }
  __syncthreads();
  return {scratch.candidates, total};
}

// The largest value such that the total of weight(v) over it and all larger ones reaches `target` > 0; two bits of the
// ordered value a pass. Below all values when the total never gets there.
template <typename Weight>
__device__ float crossing(const Values& values, double target, const Weight& weight, Scratch& scratch) {
  std::uint32_t found = 0;
  for (int shift = 30; shift >= 0; shift -= 2) {
    const std::uint32_t step = 1u << shift;
    double totals[3] = {};
#pragma unroll 2
    for (std::int32_t i = threadIdx.x; i < values.count; i += kDrawThreads) {
      const float value = cleaned(values.data[i]);
      const std::uint32_t key = ordered(value);
      const double w = weight(value);
      if (key >= found + step) totals[0] += w;
      if (key >= found + 2 * step) totals[1] += w;
      if (key >= found + 3 * step) totals[2] += w;
    }
    block_totals(totals, scratch);
    // The totals fall from one to the next: adding less in the same order gives no more.
    found += totals[2] >= target ? 3 * step : totals[1] >= target ? 2 * step : totals[0] >= target ? step : 0;
  }
  return from_ordered(found);
}

// The k-th largest (k <= kParts) of the largest logits of a row's parts: as many logits are at least that. a and b: the
// two entries of each lane. The same in every warp.
__device__ float kth_of_parts(std::uint64_t a, std::uint64_t b, std::int32_t k) {
  std::int32_t above_a = 0;
  std::int32_t above_b = 0;
#pragma unroll kFew
  for (int lane = 0; lane < kWarp; ++lane) {
    const std::uint64_t other_a = __shfl_sync(kAll, a, lane);
    const std::uint64_t other_b = __shfl_sync(kAll, b, lane);
    above_a += (other_a > a ? 1 : 0) + (other_b > a ? 1 : 0);
    above_b += (other_a > b ? 1 : 0) + (other_b > b ? 1 : 0);
  }
  // Entries are all different but for those of parts without a number, which are 0.
  const unsigned is_a = __ballot_sync(kAll, a != 0 && above_a == k - 1);
  const unsigned is_b = __ballot_sync(kAll, b != 0 && above_b == k - 1);
  if (is_a != 0) return logit_of(__shfl_sync(kAll, a, __ffs(is_a) - 1));
  if (is_b != 0) return logit_of(__shfl_sync(kAll, b, __ffs(is_b) - 1));
  return kNone;
}

// The smallest set of largest weights whose sum reaches top_p of the total: those above `least`, and the first `ties`
// of those that equal it.
struct Nucleus {
  float least = kNone;
  std::int32_t ties = 0;
  bool some_ties = false;  // there are more of those, which must be counted to be told apart
};

__device__ Nucleus nucleus(const float* x, std::int32_t n, double top_p, double total, Scratch& scratch) {
  // Never 0, so that the first largest stays even where top_p is.
  const double target = fmax(top_p * total, std::numeric_limits<double>::min());
  // All weights below this together are less than what may be left out.
  const auto bound = static_cast<float>((1 - top_p) * total / static_cast<double>(n) * 0.5);
  const Values values = at_or_above(x, n, bound, scratch);
  Nucleus found;
  found.least = crossing(values, target, [](float w) { return static_cast<double>(w); }, scratch);
  double above_and_equal[2] = {};
  for (std::int32_t i = threadIdx.x; i < values.count; i += kDrawThreads) {
    const float w = values.data[i];
    if (w > found.least) above_and_equal[0] += w;
    if (w == found.least) above_and_equal[1] += 1;
  }
  block_totals(above_and_equal, scratch);
  const double wanted = fmax(ceil((target - above_and_equal[0]) / found.least), 1.0);
  found.some_ties = wanted < above_and_equal[1];
  found.ties = found.some_ties ? static_cast<std::int32_t>(wanted) : 0;
  return found;
}

// A range divided among the warps of the block: so much for each, in whole rounds of its lanes.
__device__ __forceinline__ std::int32_t share_of_warp(std::int32_t count) {
  const std::int32_t each = (count + kDrawWarps - 1) / kDrawWarps;
  return (each + kWarp - 1) / kWarp * kWarp;
}

// The sum of each warp's values to scratch.sums[0].
__device__ __forceinline__ void share_sums(double sum, Scratch& scratch) {
  sum = warp_total(sum);
  __syncthreads();  // all have read the sums of an earlier use
  if (lane_index() == 0) scratch.sums[0][warp_index()] = sum;
  __syncthreads();
}

// The warp in whose sum a running total first exceeds `rest`, which loses the sums of those before it. Where rounding
// carried it past the end: the last one that has any, and a rest without end; -1 where none has.
__device__ __forceinline__ int warp_of(double& rest, const Scratch& scratch) {
  int last = -1;
#pragma unroll kFew
  for (int warp = 0; warp < kDrawWarps; ++warp) {
    const double sum = scratch.sums[0][warp];
    if (rest < sum) return warp;
    rest -= sum;
    if (sum > 0) last = warp;
  }
  rest = std::numeric_limits<double>::infinity();
  return last;
}

// Sets what the filters leave out to 0 and draws one of the rest; `top` where nothing is left.
__device__ std::int32_t draw(float* x, std::int32_t n, const Nucleus& kept, float min_p, double uniform,
                             std::int32_t top, Scratch& scratch) {
  const int lane = lane_index();
  const int warp = warp_index();
  std::int32_t share = share_of_warp(n);
  std::int32_t begin = min(warp * share, n);
  std::int32_t end = min(begin + share, n);
  std::int32_t tie = 0;  // of those that equal the least weight, the number of this round's first
  if (kept.some_ties) {
    std::int32_t count = 0;
    for (std::int32_t i = begin + lane; i < end; i += kWarp) count += x[i] == kept.least ? 1 : 0;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) count += __shfl_xor_sync(kAll, count, offset);
    __syncthreads();  // all have read the counts of an earlier use
    if (lane == 0) scratch.counts[warp] = count;
    __syncthreads();
#pragma unroll kFew
    for (int w = 0; w < warp; ++w) tie += scratch.counts[w];
  }
  double sum = 0;
#pragma unroll 2
  for (std::int32_t i = begin + lane; i - lane < end; i += kWarp) {
    float w = i < end ? x[i] : 0;
    // The largest weight is 1, so that a probability below min_p of the largest one is a weight below min_p.
    bool out = w < kept.least || w < min_p;
    if (kept.some_ties) {
      const bool equal = i < end && w == kept.least;
      const unsigned equals = __ballot_sync(kAll, equal);
      const unsigned before = equals & ((1u << lane) - 1);
      out = out || (equal && tie + __popc(before) >= kept.ties);
      tie += __popc(equals);
    }
    if (out) w = 0;
    if (i < end) x[i] = w;
    sum += w;
  }
  share_sums(sum, scratch);
  double total = 0;
#pragma unroll kFew
  for (int w = 0; w < kDrawWarps; ++w) total += scratch.sums[0][w];
  double rest = uniform * total;
  int chosen = warp_of(rest, scratch);
  if (chosen < 0) return top;
  begin = chosen * share;
  end = min(begin + share, n);
  // The range of the chosen warp is divided among all warps again, until it is one round of a warp.
  while (end - begin > kWarp) {
    share = share_of_warp(end - begin);
    sum = 0;
    const std::int32_t first = begin + warp * share;
    const std::int32_t last = min(first + share, end);
    for (std::int32_t i = first + lane; i < last; i += kWarp) sum += x[i];
    share_sums(sum, scratch);
    chosen = warp_of(rest, scratch);
    begin += chosen * share;
    end = min(begin + share, end);
  }
  const std::int32_t i = begin + lane;
  const float w = i < end ? x[i] : 0;
  double reached = w;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double before = __shfl_up_sync(kAll, reached, offset);
    if (lane >= offset) reached += before;
  }
  const unsigned beyond = __ballot_sync(kAll, w > 0 && rest < reached);
  const unsigned positive = __ballot_sync(kAll, w > 0);
  return static_cast<std::int32_t>(begin + (beyond != 0 ? __ffs(beyond) - 1 : kWarp - 1 - __clz(positive)));
}

__global__ void __launch_bounds__(kDrawThreads)
    choose(Logits logits, const SampleParams* params, const std::int32_t* positions, const std::uint64_t* largest,
           std::int32_t* next) {
  pdl_wait();
  pdl_launch();
  __shared__ Scratch scratch;
  const std::int64_t row = blockIdx.x;
  const std::int32_t n = logits.vocab;
  // Every warp puts the parts together for itself, so that a greedy row meets at no barrier.
  const int lane = lane_index();
  const std::uint64_t first = largest[row * kParts + lane];
  const std::uint64_t second = largest[row * kParts + kWarp + lane];
  const std::uint64_t best = warp_largest(larger(first, second));
  // All NaN: still a token, so that the run can go on and be seen to be wrong.
  const std::int32_t top = best != 0 ? index_of(best) : 0;
  const float max = best != 0 ? logit_of(best) : kNone;
  const SampleParams wanted = params[row];
  if (wanted.temperature <= 0 || !isfinite(max)) {
    if (threadIdx.x == 0) next[row] = top;
    return;
  }

  float* x = logits.data + row * logits.stride;
  float kth = kNone;  // ties with the k-th largest stay, as in transformers
  if (wanted.top_k > 0 && wanted.top_k < n) {
    const float bound = wanted.top_k <= kParts ? kth_of_parts(first, second, wanted.top_k) : kNone;
    const Values values = at_or_above(x, n, bound, scratch);
    kth = crossing(values, wanted.top_k, [](float) { return 1.0; }, scratch);
  }
  const float inverse_temperature = 1 / wanted.temperature;
  double total[1] = {};
#pragma unroll 4
  for (std::int32_t i = threadIdx.x; i < n; i += kDrawThreads) {
    const float value = cleaned(x[i]);
    float weight = value == max ? 1 : expf((value - max) * inverse_temperature);
    // NaN where an infinite temperature meets a logit of -inf.
    if (value < kth || isnan(weight)) weight = 0;
    x[i] = weight;
    total[0] += weight;
  }
  block_totals(total, scratch);
  Nucleus kept;
  if (wanted.top_p < 1) kept = nucleus(x, n, wanted.top_p, total[0], scratch);
  const double uniform = sample_uniform(wanted.seed, positions[row]);
  const std::int32_t token = draw(x, n, kept, wanted.min_p, uniform, top, scratch);
  if (threadIdx.x == 0) next[row] = token;
}

}  // namespace

std::size_t sample_workspace(std::int64_t rows, std::int64_t /*vocab*/) {
  return static_cast<std::size_t>(rows) * kParts * sizeof(std::uint64_t);
}

void sample(const SampleArgs& args, CudaStream& stream) {
  check_activation(args.logits, "sample", "logits");
  if (args.logits.dtype != DType::f32) {
    fail("sample: the logits are {}, but a choice of tokens is made from f32", name_of(args.logits.dtype));
  }
  // Indices of 32 bits, with room for a step past the end.
  constexpr std::int64_t kMaxVocab = std::int64_t{1} << 30;
  if (args.logits.columns <= 0 || args.logits.columns > kMaxVocab) {
    fail("sample: a choice among {} tokens is not supported on the GPU; expected 1 to {}", args.logits.columns,
         kMaxVocab);
  }
  if (args.logits.rows == 0) return;
  const Logits logits{static_cast<float*>(args.logits.data), args.logits.stride,
                      static_cast<std::int32_t>(args.logits.columns)};
  auto* largest = reinterpret_cast<std::uint64_t*>(args.workspace);
  const auto rows = static_cast<unsigned>(args.logits.rows);
  launch(stream, dim3(rows, kParts), dim3(kSearchThreads), 0, Overlap::yes, find_largest, logits, args.params,
         args.seen, largest);
  launch(stream, dim3(rows), dim3(kDrawThreads), 0, Overlap::yes, choose, logits, args.params, args.positions, largest,
         args.next);
}

}  // namespace nibble::cuda
