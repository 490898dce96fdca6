// Spectra of short runs of real numbers.
#pragma once

#include <complex>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

/// |X[k]|^2 of X[k] = sum over n of x[n] exp(-2 pi i k n / N), by Cooley and Tukey's division into N's prime factors.
class PowerSpectrum {
 public:
  /// N at least 1. Time grows with N times the sum of N's prime factors.
  explicit PowerSpectrum(std::int64_t n);

  /// x [N], out [N / 2 + 1].
  void compute(std::span<const double> x, std::span<double> out);

 private:
  using Value = std::complex<double>;
  void transform(const Value* x, std::size_t stride, std::size_t n, std::size_t factor, Value* out);

  std::vector<std::size_t> factors_;
  std::vector<Value> turns_;  // exp(-2 pi i j / N)
  std::vector<Value> in_, out_, parts_;
};

}  // namespace nibble
