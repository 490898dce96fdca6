// What encoders of audio ask of the GPU, against float64: convolutions of every kind in every type, norms over time and
// trims; odd shapes, rows with gaps, poisoned outputs.
#include "core/error.h"
#include "cuda/typed_matrix.h"
#include "support/expect_error.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace nibble::test {
namespace {

struct Case {
  ConvolutionShape shape;
  std::vector<std::int64_t> rows;  // of each sequence of x
  std::int64_t behind = 0;         // frames of padding behind the last one
  bool aligned = false;            // y begins where x does, divided by the stride
};

std::vector<std::int64_t> bounds(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> out(lengths.size() + 1);
  std::partial_sum(lengths.begin(), lengths.end(), out.begin() + 1);
  return out;
}

std::vector<std::int32_t> narrowed(const std::vector<std::int64_t>& values) { return {values.begin(), values.end()}; }

std::vector<float> random_values(std::int64_t count, float sigma, DType type, std::mt19937& random) {
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = rounded(type, normal(random));
  return out;
}

ConvolutionShape shape(std::int64_t inputs, std::int64_t outputs, std::int64_t kernel, std::int64_t stride,
                       std::int64_t padding, std::int64_t groups, bool bias, bool active = false) {
  ConvolutionShape s{inputs, outputs, kernel, stride, padding, groups, bias};
  if (active) s.activation = ActivationKind::gelu;
  return s;
}

// Many sequences: more than a launch takes.
std::vector<std::int64_t> many() {
  std::vector<std::int64_t> out;
  constexpr std::int64_t kSequences = 130;
  out.reserve(kSequences);
  for (std::int64_t i = 0; i < kSequences; ++i) out.push_back(3 + i * 7 % 20);
  return out;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {shape(1, 20, 10, 5, 0, 1, false), {700, 10, 333}},
      {shape(1, 512, 10, 5, 0, 1, true, true), {1500, 640}, 0, true},
      {shape(3, 37, 5, 2, 2, 1, true, true), {61, 3, 8}, 2},
      {shape(2, 600, 8, 32, 0, 1, false), {4000}},
      {shape(20, 37, 3, 2, 0, 1, true, true), {61, 3, 8}},
      {shape(64, 40, 3, 2, 0, 1, true, true), {61, 3, 300}},
      {shape(64, 512, 3, 2, 0, 1, false, true), {1600, 320, 64, 640}, 0, true},
      {shape(512, 512, 2, 2, 0, 1, false, true), {162, 30}},
      {shape(72, 136, 3, 1, 0, 1, true), many()},
      {shape(10, 24, 3, 1, 1, 1, true), {28, 1}, 1},
      {shape(80, 384, 3, 1, 1, 1, true, true), {300, 300}, 1},
      {shape(24, 24, 3, 2, 1, 1, true, true), {28, 27, 1}, 1},
      {shape(24, 32, 8, 1, 4, 4, true, true), {34, 7, 1}, 3},
      {shape(6, 6, 5, 1, 2, 6, false), {40}, 2},
      {shape(21, 28, 4, 3, 2, 7, true), {500, 3}, 5},
      {shape(96, 96, 128, 1, 64, 2, true, true), {400, 1, 131}, 63},
      {shape(128, 128, 16, 1, 8, 1, true), {150, 70}, 7},
      {shape(160, 160, 19, 1, 9, 2, true), many(), 9},
      {shape(128, 128, 9, 1, 4, 2, true, true), {150, 3, 70}, 4},
      {shape(384, 384, 16, 1, 8, 8, true), {1500, 700}, 7},
      {shape(512, 512, 3, 1, 1, 8, false), {1500, 700}, 1},
      {shape(256, 320, 6, 1, 3, 16, true), {700, 900}, 3},
      {shape(64, 64, 9, 1, 4, 1, true, true), {90, 2, 5}, 4},
      {shape(16, 16, 300, 1, 150, 1, true), {1500, 20}, 150},
      {shape(70, 8, 3, 70, 1, 1, true), {1000}, 1},
      {shape(24, 16, 40, 20, 3, 2, true), {2000, 41}, 3},
  };
  return all;
}

// One output by the formula of ConvolutionShape.
double expected(const ConvolutionShape& s, const TypedMatrix& x, std::int64_t first, std::int64_t rows, std::int64_t t,
                std::int64_t n, const std::vector<float>& weight, const std::vector<float>& bias) {
  const std::int64_t width = s.inputs / s.groups;
  const std::int64_t group = n / (s.outputs / s.groups);
  double sum = s.bias ? static_cast<double>(bias[static_cast<std::size_t>(n)]) : 0;
  for (std::int64_t k = 0; k < s.kernel; ++k) {
    const std::int64_t row = t * s.stride + k - s.padding;
    if (row < 0 || row >= rows) continue;
    for (std::int64_t ch = 0; ch < width; ++ch) {
      sum += static_cast<double>(weight[static_cast<std::size_t>((n * width + ch) * s.kernel + k)]) *
             static_cast<double>(x.at(first + row, group * width + ch));
    }
  }
  return s.activation ? 0.5 * sum * std::erfc(-sum * std::sqrt(0.5)) : sum;
}

void check_case(const Case& c, DType type, DType x_type, std::int64_t gap, std::mt19937& random) {
  ConvolutionShape s = c.shape;
  s.compute = type;
  std::vector<std::int64_t> frames, made;
  for (const std::int64_t rows : c.rows) {
    frames.push_back(std::max<std::int64_t>(0, (rows + s.padding + c.behind - s.kernel) / s.stride + 1));
    made.push_back(c.aligned ? rows / s.stride : frames.back());
  }
  const std::vector<std::int64_t> from = bounds(c.rows);
  const std::vector<std::int64_t> to = bounds(made);
  const float sigma = 1 / std::sqrt(static_cast<float>(s.window()));
  const std::vector<float> weight = random_values(s.outputs * s.window(), sigma, type, random);
  const std::vector<float> bias = random_values(s.bias ? s.outputs : 0, 1, type, random);
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  TypedMatrix x(*stream, x_type, from.back(), s.inputs, gap);
  x.fill(random);
  // The kernels round inputs of f32 to the type that they compute in.
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    for (std::int64_t i = 0; i < x.columns(); ++i) x.set(r, i, rounded(type, x.at(r, i)));
  }
  x.upload();
  TypedMatrix y(*stream, type, to.back(), s.outputs, gap);
  const std::unique_ptr<PackedConvolution> packed = gpu().pack_convolution(s, weight, bias, *stream);
  const std::unique_ptr<Buffer> workspace = gpu().device().allocate(gpu().convolution_workspace(s) + 256, "a test");
  gpu().convolve(*packed, {x.ref(), from, y.ref(), to, workspace->data()}, *stream);
  y.download();
  y.expect_surroundings_untouched();
  // Sums of as many terms as a window has values, whose size is about 1 all together. A tensor core cuts a sum off at
  // f32's last digit, 2^-23, at every 16 terms.
  const double absolute = type == DType::f32 ? 4e-6 + 3e-9 * static_cast<double>(s.window())
                                             : 2e-5 + 7.5e-9 * static_cast<double>(s.window());
  const double relative = 1.01 * rounding_of(type) + (type == DType::f32 ? 1e-5 : 2e-5);
  for (std::size_t q = 0; q < c.rows.size(); ++q) {
    for (std::int64_t t = 0; t < std::min(frames[q], made[q]); ++t) {
      for (std::int64_t n = 0; n < s.outputs; n += 1 + s.outputs / 40) {
        const double want = expected(s, x, from[q], c.rows[q], t, n, weight, bias);
        const double error = std::abs(static_cast<double>(y.at(to[q] + t, n)) - want);
        ASSERT_TRUE(error <= absolute + relative * std::abs(want))
            << "sequence " << q << ", frame " << t << ", output " << n << " is " << y.at(to[q] + t, n) << ", expected "
            << want;
      }
    }
  }
  // The same bits every time.
  TypedMatrix again(*stream, type, to.back(), s.outputs, gap);
  const OnDevice<std::int32_t> begin(*stream, narrowed(from));
  ConvolveArgs args{x.ref(), from, again.ref(), to, workspace->data()};
  // As tokens are convolved, whose bounds are read from the device's memory: by the kernels that take all shapes.
  const bool looks = from == to && s.groups > 1;
  if (looks) args.begin = begin.data();
  gpu().convolve(*packed, args, *stream);
  again.download();
  again.expect_surroundings_untouched();
  for (std::size_t q = 0; q < c.rows.size(); ++q) {
    for (std::int64_t t = 0; t < std::min(frames[q], made[q]); ++t) {
      for (std::int64_t n = 0; n < s.outputs; ++n) ASSERT_EQ(again.at(to[q] + t, n), y.at(to[q] + t, n));
    }
  }
}

TEST(CudaConvolve, GivesTheSumsOfItsFormula) {
  NIBBLE_NEEDS_GPU();
  std::mt19937 random(5);
  for (const Case& c : cases()) {
    for (const DType type : kActivationTypes) {
      for (const DType x_type : {type, DType::f32}) {
        for (const std::int64_t gap : {0, 8, 3}) {
          SCOPED_TRACE(testing::Message()
                       << c.shape.inputs << " to " << c.shape.outputs << ", kernel " << c.shape.kernel << ", stride "
                       << c.shape.stride << ", groups " << c.shape.groups << ", " << name_of(type) << " of "
                       << name_of(x_type) << ", gap " << gap);
          check_case(c, type, x_type, gap, random);
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(CudaConvolve, RefusesWhatIsNoConvolution) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  const std::vector<float> few(5);
  expect_error("are no convolution", [&] { gpu().pack_convolution(shape(4, 6, 3, 1, 0, 4, false), few, {}, *stream); });
  expect_error("weights and", [&] { gpu().pack_convolution(shape(4, 6, 3, 1, 0, 1, false), few, {}, *stream); });
}

TEST(CudaInstanceNorm, NormsEachChannelOfEachSequence) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(7);
  std::vector<std::int64_t> lengths = {1, 5, 4000, 130};
  for (int i = 0; i < 70; ++i) lengths.push_back(3);
  const std::vector<std::int64_t> begin = bounds(lengths);
  std::vector<std::int64_t> there = lengths;
  there[1] = 3;
  there[2] = 3999;
  for (const DType type : kActivationTypes) {
    for (const std::int64_t columns : {7, 40, 512}) {
      for (const bool active : {false, true}) {
        for (const bool in_place : {false, true}) {
          SCOPED_TRACE(testing::Message() << name_of(type) << ", " << columns << " columns");
          const std::int64_t gap = columns == 40 ? 3 : 8;
          TypedMatrix x(*stream, type, begin.back(), columns, gap);
          x.fill(random);
          // Far from 0: the mean must not drown the variance.
          for (std::int64_t r = 0; r < x.rows(); ++r) x.set(r, 0, x.at(r, 0) + 30);
          x.upload();
          TypedMatrix y(*stream, type, begin.back(), columns, gap);
          const std::vector<float> weight = random_values(columns, 1, DType::f32, random);
          const std::vector<float> bias = random_values(columns, 1, DType::f32, random);
          const OnDevice<float> weight_there(*stream, weight), bias_there(*stream, bias);
          TypedMatrix& out = in_place ? x : y;
          const std::vector<float> before = x.values();
          InstanceNormArgs args{x.ref(), begin, weight_there.data(), bias_there.data(), 1e-5F, out.ref(), there};
          if (active) args.activation = ActivationKind::gelu;
          gpu().instance_norm(args, *stream);
          out.download();
          out.expect_surroundings_untouched();
          for (std::size_t s = 0; s < lengths.size(); ++s) {
            for (std::int64_t c = 0; c < columns; ++c) {
              const auto value = [&](std::int64_t r) {
                return static_cast<double>(before[static_cast<std::size_t>((begin[s] + r) * columns + c)]);
              };
              double mean = 0;
              double variance = 0;
              for (std::int64_t r = 0; r < there[s]; ++r) mean += value(r);
              mean /= static_cast<double>(there[s]);
              for (std::int64_t r = 0; r < there[s]; ++r) variance += std::pow(value(r) - mean, 2);
              variance /= static_cast<double>(there[s]);
              const auto at = static_cast<std::size_t>(c);
              for (std::int64_t r = 0; r < there[s]; ++r) {
                double want = (value(r) - mean) / std::sqrt(variance + 1e-5) * static_cast<double>(weight[at]) +
                              static_cast<double>(bias[at]);
                if (active) want = 0.5 * want * std::erfc(-want * std::sqrt(0.5));
                const double error = std::abs(static_cast<double>(out.at(begin[s] + r, c)) - want);
                ASSERT_TRUE(error <= 3e-5 + (rounding_of(type) + 1e-5) * std::abs(want))
                    << "sequence " << s << ", row " << r << ", column " << c << " is " << out.at(begin[s] + r, c)
                    << ", expected " << want;
              }
            }
          }
        }
      }
    }
  }
}

TEST(CudaTranspose, SwapsRowsAndColumns) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(10);
  for (const DType type : kActivationTypes) {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {80, 3000}, {7, 33}, {130, 31}}) {
      TypedMatrix x(*stream, DType::f32, rows, columns, 5);
      x.fill(random);
      TypedMatrix y(*stream, type, columns, rows, 3);
      gpu().transpose(x.ref(), y.ref(), *stream);
      y.download();
      y.expect_surroundings_untouched();
      expect_close(
          y, [&](std::int64_t r, std::int64_t c) { return static_cast<double>(rounded(type, x.at(c, r))); }, 0, 0);
    }
  }
  TypedMatrix x(*stream, DType::f32, 4, 5), y(*stream, DType::f32, 4, 5);
  expect_error("transpose: x is [4, 5], expected [5, 4]", [&] { gpu().transpose(x.ref(), y.ref(), *stream); });
}

TEST(CudaTrimFrames, KeepsTheFirstRowsAndZeroesTheOthers) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(9);
  std::vector<std::int64_t> of_x = {5, 1, 300, 4}, of_y = {4, 3, 299, 0};
  std::vector<std::int32_t> kept = {3, 1, 200, 0};
  for (int i = 0; i < 70; ++i) {
    of_x.push_back(2);
    of_y.push_back(2);
    kept.push_back(2);
  }
  const std::vector<std::int64_t> x_begin = bounds(of_x), y_begin = bounds(of_y);
  const OnDevice<std::int32_t> x_there(*stream, narrowed(x_begin)), y_there(*stream, narrowed(y_begin)),
      kept_there(*stream, kept);
  for (const DType type : kActivationTypes) {
    TypedMatrix x(*stream, type, x_begin.back(), 37, 3);
    x.fill(random);
    constexpr std::int64_t kBehind = 3;  // rows of no sequence
    TypedMatrix y(*stream, type, y_begin.back() + kBehind, 37, 3);
    gpu().trim_frames(
        {x.ref(), x_there.data(), kept_there.data(), y.ref(), y_there.data(), static_cast<std::int64_t>(kept.size())},
        *stream);
    y.download();
    y.expect_surroundings_untouched();
    std::size_t s = 0;
    expect_close(
        y,
        [&](std::int64_t row, std::int64_t column) {
          if (row == 0) s = 0;
          while (s < kept.size() && row >= y_begin[s + 1]) ++s;
          if (s == kept.size()) return 0.0;
          const std::int64_t own = row - y_begin[s];
          return own < kept[s] ? static_cast<double>(x.at(x_begin[s] + own, column)) : 0.0;
        },
        0, 0);
  }
}

}  // namespace
}  // namespace nibble::test
