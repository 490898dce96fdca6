// What encoders of audio ask of a back end, against sums in double: convolutions over time, norms over time, trims.
#include "core/error.h"
#include "ops/ops_fixture.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>

namespace nibble::test {
namespace {

struct Case {
  ConvolutionShape shape;
  std::vector<std::int64_t> frames;  // of each sequence of x
  std::int64_t behind = 0;           // frames of padding behind the last one
};

std::vector<std::int64_t> bounds(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> out(lengths.size() + 1);
  std::partial_sum(lengths.begin(), lengths.end(), out.begin() + 1);
  return out;
}

std::vector<float> random_values(std::int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = normal(random);
  return out;
}

// One output by the formula of ConvolutionShape.
double expected(const Case& c, const Matrix& x, std::int64_t first, std::int64_t frames, std::int64_t t, std::int64_t n,
                const std::vector<float>& weight, const std::vector<float>& bias) {
  const ConvolutionShape& s = c.shape;
  const std::int64_t width = s.inputs / s.groups;
  const std::int64_t group = n / (s.outputs / s.groups);
  double sum = s.bias ? static_cast<double>(bias[static_cast<std::size_t>(n)]) : 0;
  for (std::int64_t k = 0; k < s.kernel; ++k) {
    const std::int64_t row = t * s.stride + k - s.padding;
    if (row < 0 || row >= frames) continue;
    for (std::int64_t ch = 0; ch < width; ++ch) {
      sum += static_cast<double>(weight[static_cast<std::size_t>((n * width + ch) * s.kernel + k)]) *
             static_cast<double>(x.at(first + row, group * width + ch));
    }
  }
  return s.activation ? std::max(sum, 0.0) : sum;
}

ConvolutionShape shape(std::int64_t inputs, std::int64_t outputs, std::int64_t kernel, std::int64_t stride,
                       std::int64_t padding, std::int64_t groups, bool bias, bool active = false) {
  ConvolutionShape s{inputs, outputs, kernel, stride, padding, groups, bias};
  if (active) s.activation = ActivationKind::relu;
  return s;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {shape(1, 20, 10, 5, 0, 1, false), {700, 10, 333}, 0},
      {shape(20, 37, 3, 2, 0, 1, true, true), {61, 3, 8}, 0},
      {shape(7, 5, 2, 2, 0, 1, false, true), {9, 2}, 0},
      {shape(10, 24, 3, 1, 1, 1, true), {28, 1}, 1},
      {shape(24, 24, 3, 2, 1, 1, true, true), {28, 27, 1}, 1},
      {shape(24, 32, 8, 1, 4, 4, true, true), {34, 7, 1}, 3},
      {shape(6, 6, 5, 1, 2, 6, false), {40}, 2},
      {shape(3, 40, 4, 3, 2, 1, true), {5000}, 5},  // more rows than are made at a time
      {shape(8, 8, 128, 1, 64, 2, true), {1500, 20}, 63},
  };
  return all;
}

TEST(Convolve, GivesTheSumsOfItsFormula) {
  std::mt19937 random(5);
  for (const Case& c : cases()) {
    const ConvolutionShape& s = c.shape;
    SCOPED_TRACE(testing::Message() << s.inputs << " to " << s.outputs << ", kernel " << s.kernel << ", stride "
                                    << s.stride << ", groups " << s.groups);
    std::vector<std::int64_t> out;
    out.reserve(c.frames.size());
    for (const std::int64_t frames : c.frames) out.push_back((frames + s.padding + c.behind - s.kernel) / s.stride + 1);
    const std::vector<std::int64_t> from = bounds(c.frames);
    const std::vector<std::int64_t> to = bounds(out);
    const std::vector<float> weight = random_values(s.outputs * s.window(), random);
    const std::vector<float> bias = random_values(s.bias ? s.outputs : 0, random);
    for (const std::int64_t gap : {0, 3}) {
      Matrix x(from.back(), s.inputs, gap);
      x.fill(random);
      for (const int threads : kThreadCounts) {
        Bench bench(threads);
        Matrix y(to.back(), s.outputs, gap);
        const auto packed = bench.backend->pack_convolution(s, weight, bias, *bench.stream);
        std::vector<std::byte> workspace(bench.backend->convolution_workspace(s) + 64, std::byte{0xFF});
        const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(workspace.data()) % 64;
        bench.backend->convolve(*packed, {x.ref(), from, y.ref(), to, workspace.data() + (64 - misaligned) % 64},
                                *bench.stream);
        std::size_t sequence = 0;
        const double scale = std::sqrt(static_cast<double>(s.window()));
        expect_close(
            y,
            [&](std::int64_t row, std::int64_t n) {
              if (row == 0) sequence = 0;
              while (row >= to[sequence + 1]) ++sequence;
              return expected(c, x, from[sequence], c.frames[sequence], row - to[sequence], n, weight, bias);
            },
            2e-6 * scale, 1e-5);
        y.expect_gaps_untouched();
      }
    }
  }
}

TEST(Convolve, InBf16StaysCloseToTheSums) {
  std::mt19937 random(6);
  const Case c{shape(24, 32, 8, 1, 4, 4, true), {1100}, 3};
  const std::vector<std::int64_t> bounds_of = {0, 1100};
  const std::vector<float> weight = random_values(32 * c.shape.window(), random);
  const std::vector<float> bias = random_values(32, random);
  ConvolutionShape rounded = c.shape;
  rounded.compute = DType::bf16;
  Matrix x(1100, 24), y(1100, 32);
  x.fill(random);
  Bench bench(2);
  const auto packed = bench.backend->pack_convolution(rounded, weight, bias, *bench.stream);
  std::vector<std::byte> workspace(bench.backend->convolution_workspace(rounded) + 64);
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(workspace.data()) % 64;
  bench.backend->convolve(*packed, {x.ref(), bounds_of, y.ref(), bounds_of, workspace.data() + (64 - misaligned) % 64},
                          *bench.stream);
  // Both operands rounded by up to 2^-9: 48 products of about 1 differ by some hundredths.
  expect_close(
      y, [&](std::int64_t row, std::int64_t n) { return expected(c, x, 0, 1100, row, n, weight, bias); }, 0.12, 0.01);
}

TEST(Convolve, RefusesWhatDoesNotFit) {
  Bench bench(1);
  test::expect_error("are no convolution", [&] {
    (void)bench.backend->pack_convolution(shape(6, 6, 3, 1, 1, 4, false), {}, {}, *bench.stream);
  });
  const std::vector<float> weight(6 * 18 - 1);
  test::expect_error("107 weights and 0 biases", [&] {
    (void)bench.backend->pack_convolution(shape(6, 6, 3, 1, 1, 1, false), weight, {}, *bench.stream);
  });
  const std::vector<float> whole(6 * 18);
  const auto packed = bench.backend->pack_convolution(shape(6, 6, 3, 1, 1, 1, false), whole, {}, *bench.stream);
  Matrix x(4, 6), y(4, 6);
  const std::vector<std::int64_t> bounds_of = {0, 5};
  test::expect_error("x [4, 6] and y [4, 6]", [&] {
    bench.backend->convolve(*packed, {x.ref(), bounds_of, y.ref(), bounds_of, nullptr}, *bench.stream);
  });
  test::expect_error("0 and 0 bounds",
                     [&] { bench.backend->convolve(*packed, {x.ref(), {}, y.ref(), {}, nullptr}, *bench.stream); });
}

TEST(InstanceNorm, NormsEachChannelOverItsSequence) {
  std::mt19937 random(7);
  const std::vector<std::int64_t> begin = {0, 50, 51, 400};
  constexpr std::int64_t kColumns = 131;
  Matrix x(400, kColumns, 2);
  x.fill(random, 3);
  for (std::int64_t r = 0; r < 400; ++r) x.at(r, 7) += 100;  // a mean far from 0
  const std::vector<float> weight = random_values(kColumns, random);
  const std::vector<float> bias = random_values(kColumns, random);
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    Matrix y(400, kColumns, 1);
    bench.backend->instance_norm({x.ref(), begin, weight.data(), bias.data(), 1e-5F, y.ref()}, *bench.stream);
    for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
      const double rows = static_cast<double>(begin[s + 1] - begin[s]);
      for (std::int64_t c = 0; c < kColumns; ++c) {
        double mean = 0, variance = 0;
        for (std::int64_t r = begin[s]; r < begin[s + 1]; ++r) mean += static_cast<double>(x.at(r, c)) / rows;
        for (std::int64_t r = begin[s]; r < begin[s + 1]; ++r)
          variance += std::pow(static_cast<double>(x.at(r, c)) - mean, 2) / rows;
        for (std::int64_t r = begin[s]; r < begin[s + 1]; ++r) {
          const auto at = static_cast<std::size_t>(c);
          const double want =
              (static_cast<double>(x.at(r, c)) - mean) / std::sqrt(variance + 1e-5) * static_cast<double>(weight[at]) +
              static_cast<double>(bias[at]);
          ASSERT_NEAR(static_cast<double>(y.at(r, c)), want, 1e-4) << s << " " << r << " " << c;
        }
      }
    }
    y.expect_gaps_untouched();
  }
}

TEST(InstanceNorm, LooksAtTheRowsThatThereAre) {
  std::mt19937 random(9);
  const std::vector<std::int64_t> all = {0, 20, 45};
  const std::vector<std::int64_t> rows = {20, 7};
  const std::vector<std::int64_t> cut = {0, 20, 27};
  Matrix x(45, 9), y(45, 9), z(27, 9);
  x.fill(random);
  // What lies behind them must not count.
  for (std::int64_t r = 27; r < 45; ++r) x.at(r, 0) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> weight = random_values(9, random);
  const std::vector<float> bias = random_values(9, random);
  Bench bench(2);
  bench.backend->instance_norm({x.ref(), all, weight.data(), bias.data(), 1e-5F, y.ref(), rows}, *bench.stream);
  bench.backend->instance_norm({x.ref(), cut, weight.data(), bias.data(), 1e-5F, z.ref()}, *bench.stream);
  for (std::int64_t r = 0; r < 27; ++r) {
    for (std::int64_t c = 0; c < 9; ++c) ASSERT_EQ(y.at(r, c), z.at(r, c)) << r << " " << c;
  }
}

TEST(Transpose, SwapsRowsAndColumns) {
  std::mt19937 random(10);
  Matrix x(7, 33, 2), y(33, 7, 1), wrong(7, 33);
  x.fill(random);
  Bench bench(2);
  bench.backend->transpose(x.ref(), y.ref(), *bench.stream);
  for (std::int64_t r = 0; r < 33; ++r) {
    for (std::int64_t c = 0; c < 7; ++c) ASSERT_EQ(y.at(r, c), x.at(c, r));
  }
  y.expect_gaps_untouched();
  test::expect_error("transpose: x is [7, 33] and y [7, 33]",
                     [&] { bench.backend->transpose(x.ref(), wrong.ref(), *bench.stream); });
}

TEST(TrimFrames, KeepsTheFirstRowsAndFillsUpWithZeros) {
  std::mt19937 random(8);
  const std::vector<std::int32_t> from = {0, 9};
  const std::vector<std::int32_t> to = {0, 4, 10};
  const std::vector<std::int32_t> kept = {4, 3};
  Matrix x(14, 5, 1);
  x.fill(random);
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    Matrix y(12, 5, 2);
    bench.backend->trim_frames({x.ref(), from.data(), kept.data(), y.ref(), to.data(), 2}, *bench.stream);
    for (std::int64_t c = 0; c < 5; ++c) {
      for (std::int64_t r = 0; r < 4; ++r) ASSERT_EQ(y.at(r, c), x.at(r, c));
      for (std::int64_t r = 0; r < 3; ++r) ASSERT_EQ(y.at(4 + r, c), x.at(9 + r, c));
      for (std::int64_t r = 7; r < 12; ++r) ASSERT_EQ(y.at(r, c), 0);
    }
    y.expect_gaps_untouched();
    const auto refused = [&](const std::vector<std::int32_t>& more, const MatrixRef& into) {
      bench.backend->trim_frames({x.ref(), from.data(), more.data(), into, to.data(), 2}, *bench.stream);
    };
    test::expect_error("5 rows are kept of 14 for 4 of sequence 0", [&] { refused({5, 3}, y.ref()); });
    Matrix small(9, 5);
    test::expect_error("10 rows were given, but y has 9", [&] { refused(kept, small.ref()); });
  }
}

}  // namespace
}  // namespace nibble::test
