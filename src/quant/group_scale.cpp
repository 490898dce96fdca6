#include "quant/group_scale.h"

#include "core/float_convert.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble {
namespace {

// The grid of the search for the scale of least error: 1.00, 0.99 ... 0.21 of the full range.
constexpr int kGridSteps = 80;
constexpr float kGridStep = 0.01F;

// fp16's largest value and its smallest one above 0: a stored scale is neither infinite nor 0.
constexpr float kLargestScale = 65504.0F;
constexpr float kSmallestScale = 0x1p-24F;

float stored_scale(float scale) {
  return std::clamp(half_to_float(float_to_half(std::min(scale, kLargestScale))), kSmallestScale, kLargestScale);
}

/// To the nearest integer, halves to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. Unlike
/// std::nearbyint it needs no instruction beyond SSE2, and so becomes vector code in a baseline build.
inline float round_even(float x) {
  constexpr float kShift = 12582912.0F;
  return (x + kShift) - kShift;
}

inline float clamp_to(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

/// x^power for finite x >= 0 to about 4 digits, in operations that vectorise; 0 gives almost 0. It only ranks
/// candidates.
inline float approximate_power(float x, float power) {
  const auto bits = std::bit_cast<std::int32_t>(x);
  const auto exponent = static_cast<float>((bits >> 23) - 127);
  const float m = std::bit_cast<float>((bits & 0x007fffff) | 0x3f800000) - 1.0F;
  // log2(1 + m) on [0, 1], exact at both ends; the largest error is 1.2e-4.
  const float log2 = exponent + m * (1.438726F + m * (-0.677784F + m * (0.321189F + m * -0.082131F)));
  const float y = power * log2;
  const float whole = static_cast<float>(static_cast<std::int32_t>(y + 127.0F)) - 127.0F;  // floor, as y + 127 >= 0
  const float f = y - whole;
  // 2^f on [0, 1], exact at both ends; the largest error is 1.5e-4.
  const float fraction = 1.0F + f * (0.695896F + f * (0.224865F + f * 0.079239F));
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(fraction) + (static_cast<std::int32_t>(whole) << 23));
}

struct Range {
  float low[kOutputs];
  float high[kOutputs];
};

void scales_of_range(const Range& range, float shrink, std::int64_t outputs, const ScaleOptions& options, float* scale,
                     float* zero) {
  const auto levels = static_cast<float>((1 << options.bits) - 1);
  for (std::int64_t n = 0; n < outputs; ++n) {
    const float low = shrink * range.low[n];
    const float high = shrink * range.high[n];
    scale[n] = stored_scale((high - low) / levels);
    if (options.symmetric) {
      zero[n] = static_cast<float>(1 << (options.bits - 1));
      continue;
    }
    zero[n] = clamp_to(round_even(clamp_to(-low / scale[n], 0, levels)), 0, levels);
    const auto least = static_cast<float>(options.least_zero);
    if (zero[n] < least) {
      zero[n] = least;
      scale[n] = stored_scale(high / (levels - least));
    }
  }
}

}  // namespace

void round_weights(const float* weights, std::int64_t outputs, int bits, const float* scale, const float* zero,
                   std::uint8_t* code, float* rounded) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  for (std::int64_t n = 0; n < outputs; ++n) {
    // Clamped before it is rounded, which is the same, as the limits are integers, and keeps round_even in its range.
    const float steps = round_even(clamp_to(weights[n] / scale[n], -zero[n], levels - zero[n]));
    rounded[n] = scale[n] * steps;
    code[n] = static_cast<std::uint8_t>(static_cast<std::int32_t>(steps + zero[n]));
  }
}

void find_group_scales(const float* weights, std::int64_t rows, std::int64_t stride, std::int64_t outputs,
                       const ScaleOptions& options, float* scale, float* zero) {
  Range range{};
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* w = weights + r * stride;
    for (std::int64_t n = 0; n < outputs; ++n) {
      range.low[n] = w[n] < range.low[n] ? w[n] : range.low[n];
      range.high[n] = w[n] > range.high[n] ? w[n] : range.high[n];
    }
  }
  for (std::int64_t n = 0; n < outputs; ++n) {
    if (options.symmetric) {
      range.high[n] = std::max(range.high[n], -range.low[n]);
      range.low[n] = -range.high[n];
    }
    if (range.low[n] == 0 && range.high[n] == 0) {
      range.low[n] = -1;
      range.high[n] = 1;
    }
  }
  scales_of_range(range, 1, outputs, options, scale, zero);
  if (options.mse <= 0) return;

  const auto levels = static_cast<float>((1 << options.bits) - 1);
  const auto power = static_cast<float>(options.mse);
  // Differences are counted in steps of the full range's scale, which is the same for all candidates; a small floor
  // keeps powers of exact ones above 2^-120.
  const float floor = std::exp2(-120.0F / power);
  float step_inverse[kOutputs];
  for (std::int64_t n = 0; n < outputs; ++n) step_inverse[n] = 1.0F / scale[n];
  float least[kOutputs];
  std::fill_n(least, kOutputs, INFINITY);
  for (int step = 0; step < kGridSteps; ++step) {
    float s[kOutputs];
    float z[kOutputs];
    float error[kOutputs] = {};
    float difference[kOutputs];
    scales_of_range(range, 1.0F - kGridStep * static_cast<float>(step), outputs, options, s, z);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* w = weights + r * stride;
      for (std::int64_t n = 0; n < outputs; ++n) {
        const float steps = round_even(clamp_to(w[n] / s[n], -z[n], levels - z[n]));
        difference[n] = std::fabs(s[n] * steps - w[n]) * step_inverse[n] + floor;
      }
      for (std::int64_t n = 0; n < outputs; ++n) error[n] += approximate_power(difference[n], power);
    }
    for (std::int64_t n = 0; n < outputs; ++n) {
      if (error[n] < least[n]) {
        least[n] = error[n];
        scale[n] = s[n];
        zero[n] = z[n];
      }
    }
  }
}

}  // namespace nibble
