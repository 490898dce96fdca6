#include "inputs/resize.h"

#include "core/error.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace nibble {
namespace {

// Weights are integers of this many fractional bits: 8 bits of a pixel and 2 of overshoot fit beside them.
constexpr int kBits = 22;

double reach_of(Resample resample) { return resample == Resample::bilinear ? 1 : 2; }

double weight_at(Resample resample, double distance) {
  const double x = std::abs(distance);
  if (resample == Resample::bilinear) return std::max(0.0, 1 - x);
  // Keys' cubic with a slope of -1/2 at 1.
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

// One side's convolution: pixel i of the result is the sum of weights[i * stride + j] * pixel (first[i] + j), j <
// count[i].
struct Filter {
  std::vector<std::int64_t> first, count;
  std::vector<std::int32_t> weights;
  std::int64_t stride = 0;
};

Filter make_filter(std::int64_t from, std::int64_t to, Resample resample) {
  const double ratio = static_cast<double>(from) / static_cast<double>(to);
  const double widening = std::max(ratio, 1.0);
  const double reach = reach_of(resample) * widening;
  Filter filter;
  filter.stride = 2 * static_cast<std::int64_t>(std::ceil(reach)) + 1;
  filter.weights.resize(static_cast<std::size_t>(to * filter.stride));
  std::vector<double> exact;
  for (std::int64_t i = 0; i < to; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * ratio;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(std::floor(center - reach + 0.5)));
    const auto last = std::min(from, static_cast<std::int64_t>(std::floor(center + reach + 0.5)));
    exact.clear();
    double sum = 0;
    for (std::int64_t j = first; j < last; ++j) {
      exact.push_back(weight_at(resample, (static_cast<double>(j) - center + 0.5) / widening));
      sum += exact.back();
    }
    std::int32_t* weights = &filter.weights[static_cast<std::size_t>(i * filter.stride)];
    for (const double weight : exact)
      *weights++ = static_cast<std::int32_t>(std::lround(weight / sum * static_cast<double>(1 << kBits)));
    filter.first.push_back(first);
    filter.count.push_back(last - first);
  }
  return filter;
}

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kBits, std::int32_t{0}, std::int32_t{255}));
}

// Of RGB pixels that stand in a row.
void along_rows(const Filter& filter, const Image& image, Image& out) {
  for (std::int64_t y = 0; y < out.height; ++y) {
    const std::uint8_t* row = &image.rgb[static_cast<std::size_t>(y * image.width * 3)];
    std::uint8_t* to = &out.rgb[static_cast<std::size_t>(y * out.width * 3)];
    for (std::int64_t x = 0; x < out.width; ++x, to += 3) {
      const auto at = static_cast<std::size_t>(x);
      const std::int32_t* weights = &filter.weights[at * static_cast<std::size_t>(filter.stride)];
      const std::uint8_t* from = row + filter.first[at] * 3;
      std::int32_t r = 1 << (kBits - 1), g = r, b = r;
      for (std::int64_t j = 0; j < filter.count[at]; ++j, from += 3) {
        r += weights[j] * from[0];
        g += weights[j] * from[1];
        b += weights[j] * from[2];
      }
      to[0] = rounded(r);
      to[1] = rounded(g);
      to[2] = rounded(b);
    }
  }
}

void along_columns(const Filter& filter, const Image& image, Image& out) {
  const auto width = static_cast<std::size_t>(out.width * 3);
  std::vector<std::int32_t> sums(width);
  for (std::int64_t y = 0; y < out.height; ++y) {
    const auto at = static_cast<std::size_t>(y);
    std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
    for (std::int64_t j = 0; j < filter.count[at]; ++j) {
      const std::int32_t weight =
          filter.weights[at * static_cast<std::size_t>(filter.stride) + static_cast<std::size_t>(j)];
      const std::uint8_t* from = &image.rgb[static_cast<std::size_t>(filter.first[at] + j) * width];
      for (std::size_t x = 0; x < width; ++x) sums[x] += weight * from[x];
    }
    std::transform(sums.begin(), sums.end(), &out.rgb[at * width], rounded);
  }
}

Image blank(std::int64_t width, std::int64_t height) {
  if (width < 1 || height < 1 || width > kMaxImagePixels || height > kMaxImagePixels / width) {
    fail("an image cannot be resized to {} x {} pixels; expected at least 1 x 1 and at most {} pixels", width, height,
         kMaxImagePixels);
  }
  return {width, height, std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3))};
}

}  // namespace

Image resize(const Image& image, std::int64_t width, std::int64_t height, Resample resample) {
  Image out = blank(width, height);
  const Filter rows = make_filter(image.width, width, resample);
  const Filter columns = make_filter(image.height, height, resample);
  const std::int64_t shorter = image.height - height;
  if (shorter > 0 && shorter > 2 * (image.width - width)) {
    Image between = blank(image.width, height);
    along_columns(columns, image, between);
    along_rows(rows, between, out);
  } else {
    Image between = blank(width, image.height);
    along_rows(rows, image, between);
    along_columns(columns, between, out);
  }
  return out;
}

}  // namespace nibble
