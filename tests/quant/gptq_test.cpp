#include "quant/gptq.h"

#include "core/float_convert.h"
#include "core/thread_pool.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace nibble {
namespace {

using test::expect_error;

/// A layer with correlated inputs, as activations are: a few directions and a few features dominate.
struct Layer {
  std::int64_t outputs, inputs, rows;
  std::vector<float> weight;  // [outputs, inputs]
  std::vector<float> x;       // [rows, inputs]

  Layer(std::int64_t n, std::int64_t k, std::int64_t t, unsigned seed) : outputs(n), inputs(k), rows(t) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    weight.resize(static_cast<std::size_t>(n * k));
    for (float& w : weight) w = 0.05F * normal(random);
    const std::int64_t directions = std::max<std::int64_t>(4, k / 8);
    std::vector<float> mix(static_cast<std::size_t>(directions * k));
    for (float& m : mix) m = normal(random);
    std::vector<float> feature(static_cast<std::size_t>(k));
    for (float& f : feature) f = std::exp(0.7F * normal(random));
    x.resize(static_cast<std::size_t>(t * k));
    std::vector<float> latent(static_cast<std::size_t>(directions));
    for (std::int64_t r = 0; r < t; ++r) {
      for (float& l : latent) l = normal(random);
      for (std::int64_t i = 0; i < k; ++i) {
        float v = 0.3F * normal(random);
        for (std::int64_t d = 0; d < directions; ++d) {
          v += latent[static_cast<std::size_t>(d)] * mix[static_cast<std::size_t>(d * k + i)] /
               std::sqrt(static_cast<float>(directions));
        }
        x[static_cast<std::size_t>(r * k + i)] = v * feature[static_cast<std::size_t>(i)];
      }
    }
  }

  MatrixRef inputs_ref() { return {x.data(), DType::f32, rows, inputs, inputs}; }
  Hessian hessian() {
    Hessian h(inputs);
    h.add(inputs_ref());
    return h;
  }
  /// The mean square of x (W - Q)^T over x's rows.
  double output_error(const QuantizedLinear& q) const {
    std::vector<float> rounded(weight.size());
    q.dequantize(rounded);
    double sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t n = 0; n < outputs; ++n) {
        double e = 0;
        for (std::int64_t k = 0; k < inputs; ++k) {
          const auto at = static_cast<std::size_t>(n * inputs + k);
          e += static_cast<double>(x[static_cast<std::size_t>(r * inputs + k)]) * (weight[at] - rounded[at]);
        }
        sum += e * e;
      }
    }
    return sum / static_cast<double>(rows * outputs);
  }
};

using MatrixD = std::vector<std::vector<double>>;

/// Inverse of a positive definite matrix by Gauss-Jordan.
MatrixD inverse(MatrixD a) {
  const std::size_t n = a.size();
  MatrixD b(n, std::vector<double>(n, 0.0));
  for (std::size_t i = 0; i < n; ++i) b[i][i] = 1;
  for (std::size_t c = 0; c < n; ++c) {
    const double pivot = a[c][c];
    for (std::size_t j = 0; j < n; ++j) {
      a[c][j] /= pivot;
      b[c][j] /= pivot;
    }
    for (std::size_t r = 0; r < n; ++r) {
      const double f = a[r][c];
      if (r == c || f == 0) continue;
      for (std::size_t j = 0; j < n; ++j) {
        a[r][j] -= f * a[c][j];
        b[r][j] -= f * b[c][j];
      }
    }
  }
  return b;
}

struct Plain {
  std::vector<std::uint8_t> codes;  // [K, N]
  std::vector<double> scales;       // [G, N]
  std::vector<int> zeros;           // [G, N]
  std::vector<std::int32_t> g_idx;
};

/// H of a layer's inputs with dead columns and 1% damping handled, and its inverse.
struct PlainHessian {
  std::vector<double> diagonal;  // before damping
  std::vector<bool> dead;
  MatrixD inverse_of_damped;

  explicit PlainHessian(const Layer& layer) {
    const auto k_in = static_cast<std::size_t>(layer.inputs);
    MatrixD h(k_in, std::vector<double>(k_in, 0.0));
    for (std::int64_t r = 0; r < layer.rows; ++r) {
      const float* x = layer.x.data() + r * layer.inputs;
      for (std::size_t i = 0; i < k_in; ++i) {
        for (std::size_t j = 0; j < k_in; ++j) h[i][j] += 2.0 * x[i] * x[j] / static_cast<double>(layer.rows);
      }
    }
    double mean = 0;
    for (std::size_t k = 0; k < k_in; ++k) {
      dead.push_back(h[k][k] == 0);
      if (dead[k]) h[k][k] = 1;
      diagonal.push_back(h[k][k]);
      mean += h[k][k] / static_cast<double>(k_in);
    }
    for (std::size_t k = 0; k < k_in; ++k) h[k][k] += 0.01 * mean;
    inverse_of_damped = inverse(std::move(h));
  }
};

/// The published algorithm without blocks and factors, in double: after each column, optimal brain surgeon's update of
/// all the others, and the inverse shrunk by that column.
Plain plain_gptq(const Layer& layer, const PlainHessian& hessian, const GptqOptions& o) {
  const auto n_out = static_cast<std::size_t>(layer.outputs);
  const auto k_in = static_cast<std::size_t>(layer.inputs);
  std::vector<std::size_t> order(k_in);
  std::iota(order.begin(), order.end(), 0U);
  MatrixD w(n_out, std::vector<double>(k_in));
  for (std::size_t n = 0; n < n_out; ++n) {
    for (std::size_t k = 0; k < k_in; ++k) w[n][k] = hessian.dead[k] ? 0.0 : layer.weight[n * k_in + k];
  }
  const std::size_t gs = o.group_size > 0 ? static_cast<std::size_t>(o.group_size) : k_in;
  const std::size_t groups = (k_in + gs - 1) / gs;
  const auto falling = [&](std::size_t a, std::size_t b) { return hessian.diagonal[a] > hessian.diagonal[b]; };
  if (o.order == ColumnOrder::activation) std::stable_sort(order.begin(), order.end(), falling);
  if (o.order == ColumnOrder::group_aware) {
    std::vector<std::vector<std::size_t>> parts;
    for (std::size_t g = 0; g + 1 <= k_in / gs; ++g) {
      parts.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(g * gs),
                         order.begin() + static_cast<std::ptrdiff_t>((g + 1) * gs));
      std::stable_sort(parts.back().begin(), parts.back().end(), falling);
    }
    std::stable_sort(parts.begin(), parts.end(), [&](const auto& a, const auto& b) { return falling(a[0], b[0]); });
    std::size_t at = 0;
    for (const auto& part : parts) {
      for (const std::size_t k : part) order[at++] = k;
    }
  }

  Plain out;
  out.codes.resize(n_out * k_in);
  out.scales.resize(groups * n_out);
  out.zeros.resize(groups * n_out);
  out.g_idx.resize(k_in);
  const bool by_rank = o.order == ColumnOrder::activation && !o.static_groups;
  for (std::size_t i = 0; i < k_in; ++i) out.g_idx[order[i]] = static_cast<std::int32_t>((by_rank ? i : order[i]) / gs);
  const int levels = (1 << o.bits) - 1;
  const auto scale_group = [&](std::size_t g) {
    for (std::size_t n = 0; n < n_out; ++n) {
      double low = 0;
      double high = 0;
      for (std::size_t k = 0; k < k_in; ++k) {
        if (static_cast<std::size_t>(out.g_idx[k]) != g) continue;
        low = std::min(low, w[n][k]);
        high = std::max(high, w[n][k]);
      }
      if (o.symmetric) {
        high = std::max(high, -low);
        low = -high;
      }
      if (low == 0 && high == 0) {
        low = -1;
        high = 1;
      }
      const double s = half_to_float(float_to_half(static_cast<float>((high - low) / levels)));
      out.scales[g * n_out + n] = s;
      out.zeros[g * n_out + n] = o.symmetric ? 1 << (o.bits - 1) : static_cast<int>(std::nearbyint(-low / s));
    }
  };
  if (o.static_groups) {
    for (std::size_t g = 0; g < groups; ++g) scale_group(g);
  }
  MatrixD inv = hessian.inverse_of_damped;
  std::vector<bool> done(groups, o.static_groups);
  for (const std::size_t c : order) {
    const auto g = static_cast<std::size_t>(out.g_idx[c]);
    if (!done[g]) scale_group(g);
    done[g] = true;
    for (std::size_t n = 0; n < n_out; ++n) {
      const double s = out.scales[g * n_out + n];
      const int z = out.zeros[g * n_out + n];
      const int code = std::clamp(static_cast<int>(std::nearbyint(w[n][c] / s)) + z, 0, levels);
      out.codes[c * n_out + n] = static_cast<std::uint8_t>(code);
      const double error = (w[n][c] - s * (code - z)) / inv[c][c];
      for (std::size_t j = 0; j < k_in; ++j) w[n][j] -= error * inv[c][j];
    }
    const double pivot = inv[c][c];
    const std::vector<double> row = inv[c];
    for (std::size_t i = 0; i < k_in; ++i) {
      for (std::size_t j = 0; j < k_in; ++j) inv[i][j] -= row[i] * row[j] / pivot;
    }
    for (std::size_t j = 0; j < k_in; ++j) inv[c][j] = inv[j][c] = 0;
    inv[c][c] = 1;  // never used again
  }
  return out;
}

std::string describe(const GptqOptions& o) {
  return "bits " + std::to_string(o.bits) + ", group " + std::to_string(o.group_size) +
         (o.symmetric ? ", sym" : ", asym") + ", order " + std::to_string(static_cast<int>(o.order)) +
         (o.static_groups ? ", static" : "");
}

std::vector<GptqOptions> all_options() {
  std::vector<GptqOptions> all;
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::int64_t group : {-1, 32, 48}) {  // 32 does not divide the 144 inputs, 48 not the block of 128
      for (const bool symmetric : {true, false}) {
        for (const ColumnOrder order : {ColumnOrder::original, ColumnOrder::activation, ColumnOrder::group_aware}) {
          for (const bool fixed : {false, true}) {
            if (fixed && order == ColumnOrder::group_aware) continue;
            GptqOptions o;
            o.bits = bits;
            o.group_size = group;
            o.symmetric = symmetric;
            o.order = order;
            o.static_groups = fixed;
            all.push_back(o);
          }
        }
      }
    }
  }
  return all;
}

/// The share of codes that differ, where all that follows a rounding tie decided otherwise differs a little too.
double different_codes(const QuantizedLinear& a, const Plain& b) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < b.codes.size(); ++i) n += a.codes[i] != b.codes[i] ? 1 : 0;
  return static_cast<double>(n) / static_cast<double>(b.codes.size());
}

TEST(GptqTest, AgreesWithThePlainAlgorithmInDouble) {
  Layer layer(16, 144, 250, 7);
  const Hessian hessian = layer.hessian();
  const PlainHessian plain_hessian(layer);
  for (const GptqOptions& o : all_options()) {
    const QuantizedLinear fast = quantize_layer(layer.weight, layer.outputs, hessian, o);
    const Plain plain = plain_gptq(layer, plain_hessian, o);
    EXPECT_FALSE(fast.fell_back);
    EXPECT_EQ(fast.g_idx, plain.g_idx) << describe(o);
    // An error of float puts a weight across a rounding boundary with a chance of some 1e-4, more with 8 bits' fine
    // steps; it moves what follows in its row.
    EXPECT_LT(different_codes(fast, plain), o.bits == 8 ? 0.02 : 0.005) << describe(o);
    std::size_t other_scales = 0;
    for (std::size_t i = 0; i < plain.scales.size(); ++i) {
      if (std::fabs(fast.scales[i] - plain.scales[i]) > 2e-3 * plain.scales[i]) ++other_scales;
    }
    EXPECT_LE(other_scales, plain.scales.size() / 20) << describe(o);
  }
}

TEST(GptqTest, BeatsRoundToNearestByAFifthOnCorrelatedInputs) {
  Layer layer(16, 144, 250, 11);
  const Hessian hessian = layer.hessian();
  for (const GptqOptions& o : all_options()) {
    const double plain = layer.output_error(round_to_nearest(layer.weight, layer.outputs, layer.inputs, o));
    const double gptq = layer.output_error(quantize_layer(layer.weight, layer.outputs, hessian, o));
    EXPECT_LT(gptq, 0.8 * plain) << describe(o);
  }
}

TEST(GptqTest, LossIsTheErrorOnTheCalibrationInputs) {
  Layer layer(16, 96, 300, 3);
  GptqOptions o;
  o.group_size = 32;
  o.damp_percent = 1e-6;
  const QuantizedLinear q = quantize_layer(layer.weight, layer.outputs, layer.hessian(), o);
  // sum e^2/2 = tr(dW H dW^T) / 2 with H = 2/rows X^T X: the summed square error a row of x.
  EXPECT_NEAR(q.loss, layer.output_error(q) * static_cast<double>(layer.outputs), 1e-2 * q.loss);
}

TEST(GptqTest, TheResultDependsOnNeitherBlockSizeNorThreads) {
  Layer layer(200, 160, 300, 5);
  const HessianFactor factor = factor_hessian(layer.hessian(), FactorOptions{});
  GptqOptions o;
  o.group_size = 32;
  const QuantizedLinear base = quantize_layer(layer.weight, layer.outputs, factor, o);
  o.block_size = 32;
  const QuantizedLinear narrow = quantize_layer(layer.weight, layer.outputs, factor, o);
  std::size_t different = 0;
  for (std::size_t i = 0; i < base.codes.size(); ++i) different += base.codes[i] != narrow.codes[i] ? 1 : 0;
  EXPECT_LT(different, base.codes.size() / 200);

  o.block_size = 128;
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  for (const int threads : {1, 2, 3}) {
    pool.set_threads(threads);
    const QuantizedLinear again = quantize_layer(layer.weight, layer.outputs, factor, o);
    EXPECT_EQ(again.codes, base.codes) << threads;
    EXPECT_EQ(again.scales, base.scales) << threads;
  }
  pool.set_threads(before);
}

TEST(GptqTest, WeightsOfDeadInputsBecomeZero) {
  Layer layer(16, 64, 200, 9);
  for (std::int64_t r = 0; r < layer.rows; ++r) {
    layer.x[static_cast<std::size_t>(r * 64 + 3)] = 0;
    layer.x[static_cast<std::size_t>(r * 64 + 40)] = 0;
  }
  for (const ColumnOrder order : {ColumnOrder::original, ColumnOrder::activation}) {
    GptqOptions o;
    o.group_size = 32;
    o.order = order;
    const QuantizedLinear q = quantize_layer(layer.weight, layer.outputs, layer.hessian(), o);
    std::vector<float> w(layer.weight.size());
    q.dequantize(w);
    for (std::int64_t n = 0; n < layer.outputs; ++n) {
      EXPECT_EQ(w[static_cast<std::size_t>(n * 64 + 3)], 0.0F);
      EXPECT_EQ(w[static_cast<std::size_t>(n * 64 + 40)], 0.0F);
    }
    EXPECT_LT(different_codes(q, plain_gptq(layer, PlainHessian(layer), o)), 0.005);
  }
}

TEST(GptqTest, ASingularHessianIsDampedUntilItFactors) {
  // Two rows for 64 inputs: rank 2, and a damping so small that float cannot tell it from 0.
  Layer layer(8, 64, 2, 13);
  const Hessian hessian = layer.hessian();
  FactorOptions tiny;
  tiny.damp_percent = 1e-12;
  const HessianFactor factor = factor_hessian(hessian, tiny);
  ASSERT_FALSE(factor.upper.empty());
  EXPECT_GT(factor.damp_percent, 0.005);
  EXPECT_LT(factor.damp_percent, 0.05);
  // Without increments the diagonal's floor helps.
  tiny.damp_increment = 0;
  EXPECT_FALSE(factor_hessian(hessian, tiny).upper.empty());
}

TEST(GptqTest, AFactorThatFailedMeansRoundToNearest) {
  Layer layer(8, 64, 20, 13);
  HessianFactor factor;
  factor.in_features = 64;
  factor.order.resize(64);
  std::iota(factor.order.begin(), factor.order.end(), 0);
  factor.dead.assign(64, 0);
  GptqOptions o;
  o.group_size = 32;
  const QuantizedLinear q = quantize_layer(layer.weight, layer.outputs, factor, o);
  EXPECT_TRUE(q.fell_back);
  EXPECT_EQ(q.codes, round_to_nearest(layer.weight, layer.outputs, layer.inputs, o).codes);
}

TEST(GptqTest, TheFactorInvertsTheDampedHessian) {
  // More columns than two blocks, so that every part of the blocked factorisation takes part.
  Layer layer(1, 300, 700, 17);
  const Hessian hessian = layer.hessian();
  for (const ColumnOrder order : {ColumnOrder::original, ColumnOrder::activation}) {
    FactorOptions o;
    o.order = order;
    const HessianFactor f = factor_hessian(hessian, o);
    double mean = 0;
    for (const float d : hessian.diagonal()) mean += d / 300.0;
    // U^T U (H + damp I) = I, checked on some columns.
    for (const std::size_t c : {0U, 127U, 128U, 299U}) {
      std::vector<double> h(300);
      for (std::size_t i = 0; i < 300; ++i) h[i] = hessian.at(f.order[i], f.order[c]) + (i == c ? 0.01 * mean : 0.0);
      std::vector<double> uh(300, 0.0);
      for (std::size_t i = 0; i < 300; ++i) {
        for (std::size_t j = i; j < 300; ++j) uh[i] += static_cast<double>(f.upper[i * 300 + j]) * h[j];
      }
      for (std::size_t i = 0; i < 300; ++i) {
        double v = 0;
        for (std::size_t j = 0; j <= i; ++j) v += static_cast<double>(f.upper[j * 300 + i]) * uh[j];
        EXPECT_NEAR(v, i == c ? 1.0 : 0.0, 2e-3) << i << " " << c;
      }
    }
  }
}

TEST(GptqTest, SearchedScalesLowerTheErrorOfOutliers) {
  Layer layer(32, 64, 200, 19);
  for (std::size_t n = 0; n < 32; ++n) layer.weight[n * 64 + 5] = 0.4F;
  GptqOptions o;
  o.bits = 3;
  o.group_size = 64;
  const auto weight_error = [&](const QuantizedLinear& q) {
    std::vector<float> w(layer.weight.size());
    q.dequantize(w);
    double sum = 0;
    for (std::size_t i = 0; i < w.size(); ++i) sum += std::pow(std::fabs(w[i] - layer.weight[i]), 2.4);
    return sum;
  };
  for (const bool symmetric : {true, false}) {
    o.symmetric = symmetric;
    o.mse = 0;
    const double plain = weight_error(round_to_nearest(layer.weight, 32, 64, o));
    o.mse = 2.4;
    EXPECT_LT(weight_error(round_to_nearest(layer.weight, 32, 64, o)), 0.9 * plain);
  }
}

TEST(GptqTest, ZeroPointsAvoidWhatTheFormatCannotStore) {
  std::vector<float> weight(32 * 4);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = 0.01F * static_cast<float>(i % 32);  // no negative weight
  GptqOptions o;
  o.group_size = 32;
  o.symmetric = false;
  EXPECT_EQ(round_to_nearest(weight, 4, 32, o).zeros[0], 0);
  o.least_zero = 1;
  const QuantizedLinear q = round_to_nearest(weight, 4, 32, o);
  EXPECT_EQ(q.zeros[0], 1);
  std::vector<float> w(weight.size());
  q.dequantize(w);
  for (std::size_t i = 0; i < w.size(); ++i) EXPECT_NEAR(w[i], weight[i], 0.51F * q.scales[0]);
}

TEST(GptqTest, AGroupOfZerosStaysZeroAndTinyWeightsHaveAScale) {
  std::vector<float> weight(64, 0.0F);
  std::fill_n(weight.begin() + 32, 32, 1e-9F);
  GptqOptions o;
  o.group_size = 32;
  const QuantizedLinear q = round_to_nearest(weight, 2, 32, o);
  EXPECT_GT(q.scales[1], 0.0F);
  std::vector<float> w(64);
  q.dequantize(w);
  for (const float v : w) EXPECT_NEAR(v, 0.0F, 1e-8F);
}

TEST(GptqTest, RefusesWhatCannotBeQuantised) {
  Layer layer(4, 32, 50, 1);
  GptqOptions o;
  o.bits = 5;
  expect_error("2, 3, 4 or 8", [&] { quantize_layer(layer.weight, 4, layer.hessian(), o); });
  o.bits = 4;
  for (const double damping : {0.0, 1.0, std::nan("")}) {
    o.damp_percent = damping;
    expect_error("damping", [&] { quantize_layer(layer.weight, 4, layer.hessian(), o); });
  }
  o.damp_percent = 0.01;
  o.mse = NAN;
  expect_error("an error exponent of nan", [&] { round_to_nearest(layer.weight, 4, 32, o); });
  o.mse = 0;
  expect_error("has seen none", [&] { quantize_layer(layer.weight, 4, Hessian(32), o); });
  expect_error("4 outputs and 16 inputs", [&] { round_to_nearest(layer.weight, 4, 16, o); });
  layer.weight[40] = NAN;
  expect_error("output 1 and input 8 is not finite", [&] { quantize_layer(layer.weight, 4, layer.hessian(), o); });
  layer.x[5] = INFINITY;
  expect_error("feature 5 are not finite", [&] {
    layer.hessian();
    factor_hessian(layer.hessian(), FactorOptions{});
  });
}

}  // namespace
}  // namespace nibble
