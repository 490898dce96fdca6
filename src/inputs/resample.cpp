#include "core/checked.h"
#include "core/error.h"
#include "inputs/sound.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace nibble {
namespace {

constexpr double kBeta = 0.1102 * (100 - 8.7);
constexpr double kCutoff = 0.475;
constexpr double kCrossings = 64;

// The weights of samples around one point between them.
struct Phase {
  std::int64_t first = 0;  // of the samples, from the one at or before the point on
  std::vector<float> weights;
};

// `fraction` is where the point lies behind its sample, of [0, 1).
Phase make_phase(double fraction, double cutoff, double reach) {
  Phase phase;
  phase.first = static_cast<std::int64_t>(std::ceil(fraction - reach));
  const auto last = static_cast<std::int64_t>(std::floor(fraction + reach));
  std::vector<double> weights;
  weights.reserve(static_cast<std::size_t>(last - phase.first + 1));
  for (std::int64_t k = phase.first; k <= last; ++k) {
    const double t = fraction - static_cast<double>(k);
    const double angle = 2 * std::numbers::pi * cutoff * t;
    const double sinc = angle == 0 ? 1 : std::sin(angle) / angle;
    const double inside = std::max(0.0, 1 - t / reach * (t / reach));
    weights.push_back(sinc * std::cyl_bessel_i(0.0, kBeta * std::sqrt(inside)));
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  phase.weights.reserve(weights.size());
  for (const double weight : weights) phase.weights.push_back(static_cast<float>(weight / sum));
  return phase;
}

}  // namespace

Sound resample(const Sound& sound, std::int64_t rate) {
  if (rate == sound.rate) return sound;
  if (rate < kMinSampleRate || rate > kMaxSampleRate || sound.rate < kMinSampleRate || sound.rate > kMaxSampleRate) {
    fail("{} samples a second were asked for of {}; expected {} to {}", rate, sound.rate, kMinSampleRate,
         kMaxSampleRate);
  }
  const std::int64_t divisor = std::gcd(rate, sound.rate);
  const std::int64_t up = rate / divisor;
  const std::int64_t down = sound.rate / divisor;
  const auto count = static_cast<std::int64_t>(sound.samples.size());
  const std::int64_t outputs = ceil_div(checked_mul(count, up, "a sound"), down);
  if (outputs > kMaxSamples) {
    fail("{} samples at {} a second become {} at {}; expected at most {}: split the file", count, sound.rate, outputs,
         rate, kMaxSamples);
  }
  const double ratio = static_cast<double>(up) / static_cast<double>(down);
  const double cutoff = kCutoff * std::min(1.0, ratio);
  const double reach = kCrossings * std::max(1.0, 1 / ratio);
  // Output n lies at n * down / up, so that weights repeat after `up` of them.
  std::vector<Phase> phases(static_cast<std::size_t>(std::min(up, outputs)));
  for (std::size_t i = 0; i < phases.size(); ++i) {
    const std::int64_t part = static_cast<std::int64_t>(i) * down % up;
    phases[i] = make_phase(static_cast<double>(part) / static_cast<double>(up), cutoff, reach);
  }
  Sound out;
  out.rate = rate;
  out.samples.reserve(static_cast<std::size_t>(outputs));
  for (std::int64_t n = 0; n < outputs; ++n) {
    const Phase& phase = phases[static_cast<std::size_t>(n % up)];
    const std::int64_t first = n * down / up + phase.first;
    const std::int64_t begin = std::max(std::int64_t{0}, -first);
    const std::int64_t end = std::min(static_cast<std::int64_t>(phase.weights.size()), count - first);
    float sum = 0;
    for (std::int64_t i = begin; i < end; ++i)
      sum += phase.weights[static_cast<std::size_t>(i)] * sound.samples[static_cast<std::size_t>(first + i)];
    out.samples.push_back(sum);
  }
  return out;
}

}  // namespace nibble
