#include "inputs/fourier.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {

PowerSpectrum::PowerSpectrum(std::int64_t n) {
  const auto size = static_cast<std::size_t>(n);
  std::size_t left = size;
  for (std::size_t prime = 2; left > 1; ++prime) {
    for (; left % prime == 0; left /= prime) factors_.push_back(prime);
  }
  turns_.reserve(size);
  for (std::size_t j = 0; j < size; ++j) {
    const double angle = -2 * std::numbers::pi * static_cast<double>(j) / static_cast<double>(size);
    turns_.emplace_back(std::cos(angle), std::sin(angle));
  }
  in_.resize(size);
  out_.resize(size);
  parts_.resize(factors_.empty() ? 1 : *std::max_element(factors_.begin(), factors_.end()));
}

// The transform of x[0], x[stride], ..., n of them: those of each p-th one, then p of their values at a time together.
void PowerSpectrum::transform(const Value* x, std::size_t stride, std::size_t n, std::size_t factor, Value* out) {
  if (n == 1) {
    *out = *x;
    return;
  }
  const std::size_t p = factors_[factor];
  const std::size_t m = n / p;
  for (std::size_t r = 0; r < p; ++r) transform(x + r * stride, stride * p, m, factor + 1, out + r * m);
  // exp(-2 pi i j / n) is turns_[j * stride], as n * stride is N.
  for (std::size_t k = 0; k < m; ++k) {
    for (std::size_t r = 0; r < p; ++r) parts_[r] = out[r * m + k] * turns_[r * k * stride];
    for (std::size_t q = 0; q < p; ++q) {
      Value sum = parts_[0];
      for (std::size_t r = 1; r < p; ++r) sum += parts_[r] * turns_[r * q % p * m * stride];
      out[q * m + k] = sum;
    }
  }
}

void PowerSpectrum::compute(std::span<const double> x, std::span<double> out) {
  std::copy(x.begin(), x.end(), in_.begin());
  transform(in_.data(), 1, in_.size(), 0, out_.data());
  for (std::size_t k = 0; k < out.size(); ++k) out[k] = std::norm(out_[k]);
}

}  // namespace nibble
