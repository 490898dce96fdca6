// Each op but attention and sampling against float64, over odd shapes, rows that lie apart, poisoned outputs, outputs
// that are inputs, and several numbers of threads.
#include "ops_fixture.h"

#include "core/error.h"
#include "core/float_convert.h"

#include <array>
#include <numeric>

namespace nibble::test {
namespace {

constexpr std::array<std::int64_t, 9> kWidths = {1, 7, 8, 15, 16, 33, 64, 576, 2500};

TEST(Embed, LooksUpAndScalesEachType) {
  std::mt19937 random(1);
  for (const std::int64_t width : kWidths) {
    constexpr std::int64_t kVocab = 11;
    constexpr std::int64_t kGap = 3;
    const std::int64_t stride = width + kGap;
    Matrix values(kVocab, width, kGap);
    values.fill(random);
    std::vector<std::uint16_t> half(static_cast<std::size_t>(kVocab * stride), 0xffff);
    std::vector<std::uint16_t> bf16(half);
    for (std::int64_t r = 0; r < kVocab; ++r) {
      for (std::int64_t c = 0; c < width; ++c) {
        half[r * stride + c] = float_to_half(values.at(r, c));
        bf16[r * stride + c] = float_to_bf16(values.at(r, c));
      }
    }
    Batch batch({{0, 0, 5}});
    batch.tokens = {10, 0, 3, 3, 7};
    const MatrixRef tables[] = {values.ref(),
                                {half.data(), DType::f16, kVocab, width, stride},
                                {bf16.data(), DType::bf16, kVocab, width, stride}};
    for (const MatrixRef& table : tables) {
      for (const int threads : kThreadCounts) {
        Bench bench(threads);
        Matrix y(5, width, 2);
        bench.backend->embed({batch.map(), table, 3.0f, y.ref()}, *bench.stream);
        expect_close(
            y,
            [&](std::int64_t r, std::int64_t c) {
              const std::int64_t at = batch.tokens[r] * stride + c;
              const float stored = table.dtype == DType::f32   ? values.at(batch.tokens[r], c)
                                   : table.dtype == DType::f16 ? half_to_float(half[at])
                                                               : bf16_to_float(bf16[at]);
              return static_cast<double>(stored * 3.0f);
            },
            0, 0);
        y.expect_gaps_untouched();
      }
    }
  }
}

// The mean and the inverse deviation of one group.
struct Moments {
  double mean = 0;
  double factor = 0;
};
Moments moments(const Matrix& x, std::int64_t row, std::int64_t first, std::int64_t width, NormKind kind, float eps) {
  Moments m;
  if (kind == NormKind::layer) {
    for (std::int64_t c = first; c < first + width; ++c) m.mean += x.at(row, c);
    m.mean /= static_cast<double>(width);
  }
  double squares = 0;
  for (std::int64_t c = first; c < first + width; ++c) squares += (x.at(row, c) - m.mean) * (x.at(row, c) - m.mean);
  m.factor = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
  return m;
}

TEST(Norm, RmsAndLayerOverGroups) {
  std::mt19937 random(2);
  for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (const std::int64_t width : kWidths) {
      for (const std::int64_t groups : {1, 3}) {
        Matrix x(4, width * groups, 5);
        x.fill(random);
        // One row with a large mean: the variance must not be the difference of two large numbers.
        for (std::int64_t c = 0; c < x.columns(); ++c) x.at(2, c) = x.at(2, c) * 0.5f + 100;
        Matrix weight(1, width);
        Matrix bias(1, width);
        weight.fill(random);
        bias.fill(random);
        const bool with_bias = kind == NormKind::layer && groups == 1;
        for (const bool in_place : {false, true}) {
          Bench bench(groups == 1 ? 3 : 2);
          Matrix from = x;
          Matrix other(4, width * groups, 1);
          Matrix& y = in_place ? from : other;
          bench.backend->norm({kind, from.ref(), groups, weight.ref().f32_row(0),
                               with_bias ? bias.ref().f32_row(0) : nullptr, 1e-5f, y.ref()},
                              *bench.stream);
          expect_close(
              y,
              [&](std::int64_t r, std::int64_t c) {
                const Moments m = moments(x, r, c / width * width, width, kind, 1e-5f);
                return (x.at(r, c) - m.mean) * m.factor * weight.at(0, c % width) +
                       (with_bias ? bias.at(0, c % width) : 0);
              },
              kind == NormKind::layer ? 1e-4 : 1e-6, 1e-5);
          y.expect_gaps_untouched();
        }
      }
    }
  }
}

TEST(Norm, OfZerosIsFinite) {
  Bench bench(1);
  Matrix x(1, 100);
  for (std::int64_t c = 0; c < 100; ++c) x.at(0, c) = 0;
  Matrix y(1, 100);
  bench.backend->norm({NormKind::rms, x.ref(), 1, nullptr, nullptr, 1e-6f, y.ref()}, *bench.stream);
  expect_close(y, [](std::int64_t, std::int64_t) { return 0.0; }, 0, 0);
}

TEST(Rotary, RotatesPairsOfEachHeadAndLeavesTheRest) {
  std::mt19937 random(3);
  constexpr std::int64_t kPositions = 50;
  const std::array<std::array<std::int64_t, 3>, 5> shapes = {
      {{3, 64, 64}, {2, 80, 32}, {1, 6, 6}, {5, 24, 10}, {2, 128, 128}}};
  for (const auto& [heads, head_dim, dims] : shapes) {
    std::vector<float> table(static_cast<std::size_t>(kPositions * dims));
    for (std::int64_t p = 0; p < kPositions; ++p) {
      for (std::int64_t i = 0; i < dims / 2; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
        table[p * dims + i] = static_cast<float>(std::cos(angle));
        table[p * dims + dims / 2 + i] = static_cast<float>(std::sin(angle));
      }
    }
    const Batch batch({{0, 0, 3}, {1, 40, 4}});
    for (const bool interleaved : {false, true}) {
      for (const int threads : kThreadCounts) {
        Bench bench(threads);
        Matrix x(batch.rows(), heads * head_dim, 4);
        x.fill(random);
        const Matrix before = x;
        bench.backend->rotary({batch.map(), x.ref(), heads, head_dim, dims, interleaved, table.data()}, *bench.stream);
        expect_close(
            x,
            [&, dim = dims, size = head_dim](std::int64_t r, std::int64_t c) {
              const std::int64_t head = c / size * size;
              const std::int64_t d = c % size;
              if (d >= dim) return static_cast<double>(before.at(r, c));
              const std::int64_t pair = interleaved ? d / 2 : d % (dim / 2);
              const bool second = interleaved ? d % 2 == 1 : d >= dim / 2;
              const double a = before.at(r, head + (interleaved ? 2 * pair : pair));
              const double b = before.at(r, head + (interleaved ? 2 * pair + 1 : pair + dim / 2));
              const double cosine = table[batch.positions[r] * dim + pair];
              const double sine = table[batch.positions[r] * dim + dim / 2 + pair];
              return second ? b * cosine + a * sine : a * cosine - b * sine;
            },
            1e-6, 1e-6);
        x.expect_gaps_untouched();
      }
    }
  }
}

double activation(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::silu:
      return x / (1 + std::exp(-x));
    case ActivationKind::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case ActivationKind::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case ActivationKind::relu:
      return std::max(x, 0.0);
    case ActivationKind::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
    case ActivationKind::tanh:
      return std::tanh(x);
  }
  return 0;
}

constexpr ActivationKind kActivations[] = {ActivationKind::silu, ActivationKind::gelu,       ActivationKind::gelu_tanh,
                                           ActivationKind::relu, ActivationKind::quick_gelu, ActivationKind::tanh};

TEST(GatedActivation, MatchesDefinitionsAndMayWriteOverItsInputs) {
  std::mt19937 random(4);
  for (const ActivationKind kind : kActivations) {
    for (const std::int64_t width : kWidths) {
      for (const int target : {0, 1, 2}) {
        Bench bench(1 + target);
        Matrix gate(3, width, 1);
        Matrix up(3, width, 2);
        Matrix other(3, width, 3);
        gate.fill(random, 3);
        up.fill(random);
        const Matrix gate_before = gate;
        const Matrix up_before = up;
        Matrix& y = target == 0 ? other : target == 1 ? gate : up;
        bench.backend->gated_activation(kind, gate.ref(), up.ref(), y.ref(), *bench.stream);
        expect_close(
            y,
            [&](std::int64_t r, std::int64_t c) { return activation(kind, gate_before.at(r, c)) * up_before.at(r, c); },
            2e-6, 2e-6);
        y.expect_gaps_untouched();
      }
    }
  }
}

// Over the whole range in which the functions bend, and far outside of it.
TEST(GatedActivation, ErrorOverTheRange) {
  Bench bench(1);
  std::vector<float> inputs;
  for (int i = -24000; i <= 24000; ++i) inputs.push_back(static_cast<float>(i) / 2000);
  for (const float far : {-1e30f, -1e4f, -200.f, -90.f, -50.f, 50.f, 90.f, 200.f, 1e4f, 1e30f}) inputs.push_back(far);
  const auto count = static_cast<std::int64_t>(inputs.size());
  Matrix gate(1, count);
  Matrix up(1, count);
  for (std::int64_t c = 0; c < count; ++c) {
    gate.at(0, c) = inputs[c];
    up.at(0, c) = 1;
  }
  for (const ActivationKind kind : kActivations) {
    Matrix y(1, count);
    bench.backend->gated_activation(kind, gate.ref(), up.ref(), y.ref(), *bench.stream);
    expect_close(y, [&](std::int64_t, std::int64_t c) { return activation(kind, inputs[c]); }, 6e-7, 4e-7);
  }
}

TEST(Add, MayWriteOverItsInputs) {
  std::mt19937 random(5);
  for (const std::int64_t width : kWidths) {
    for (const int target : {0, 1, 2}) {
      Bench bench(1 + 2 * target);
      Matrix a(2, width, 1);
      Matrix b(2, width, 0);
      Matrix other(2, width, 9);
      a.fill(random);
      b.fill(random);
      const Matrix a_before = a;
      const Matrix b_before = b;
      Matrix& y = target == 0 ? other : target == 1 ? a : b;
      bench.backend->add(a.ref(), b.ref(), y.ref(), *bench.stream);
      expect_close(y, [&](std::int64_t r, std::int64_t c) { return a_before.at(r, c) + b_before.at(r, c); }, 0, 0);
      y.expect_gaps_untouched();
    }
  }
}

TEST(GatherRows, CopiesTheChosenRows) {
  std::mt19937 random(6);
  const std::vector<std::int32_t> indices = {4, 0, 4, 2};
  for (const std::int64_t width : kWidths) {
    for (const int threads : kThreadCounts) {
      Bench bench(threads);
      Matrix x(5, width, 3);
      x.fill(random);
      Matrix y(4, width, 1);
      bench.backend->gather_rows(x.ref(), indices.data(), y.ref(), *bench.stream);
      expect_close(y, [&](std::int64_t r, std::int64_t c) { return x.at(indices[r], c); }, 0, 0);
      y.expect_gaps_untouched();
    }
  }
}

TEST(Ops, GiveTheSameBitsAgainAndOnAnyNumberOfThreads) {
  std::mt19937 random(7);
  Matrix x(3, 2500);
  Matrix weight(1, 2500);
  x.fill(random);
  weight.fill(random);
  std::vector<std::uint32_t> first;
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    Matrix y(3, 2500);
    bench.backend->norm({NormKind::rms, x.ref(), 1, weight.ref().f32_row(0), nullptr, 1e-5f, y.ref()}, *bench.stream);
    bench.backend->gated_activation(ActivationKind::silu, y.ref(), x.ref(), y.ref(), *bench.stream);
    if (first.empty()) first = y.bits();
    EXPECT_EQ(y.bits(), first) << threads << " threads";
  }
}

TEST(Ops, AreRecordedByACapture) {
  Bench bench(2);
  Matrix a(1, 300);
  Matrix b(1, 300);
  Matrix y(1, 300);
  bench.stream->begin_capture();
  bench.backend->add(a.ref(), b.ref(), y.ref(), *bench.stream);
  bench.backend->gated_activation(ActivationKind::relu, y.ref(), b.ref(), y.ref(), *bench.stream);
  const auto graph = bench.stream->end_capture();
  EXPECT_TRUE(std::isnan(y.at(0, 0)));
  std::mt19937 random(8);
  for (int replay = 0; replay < 3; ++replay) {
    a.fill(random);
    b.fill(random);
    bench.stream->launch(*graph);
    expect_close(
        y, [&](std::int64_t, std::int64_t c) { return std::max(a.at(0, c) + b.at(0, c), 0.0f) * b.at(0, c); }, 0, 1e-6);
  }
}

TEST(Ops, RefuseMatricesThatDoNotFit) {
  Bench bench(1);
  Matrix a(2, 8);
  Matrix b(2, 9);
  EXPECT_THROW(bench.backend->add(a.ref(), b.ref(), a.ref(), *bench.stream), Error);
  MatrixRef half = a.ref();
  half.dtype = DType::f16;
  EXPECT_THROW(bench.backend->add(half, a.ref(), a.ref(), *bench.stream), Error);
  MatrixRef overlapping = a.ref();
  overlapping.stride = 4;
  EXPECT_THROW(bench.backend->add(overlapping, a.ref(), a.ref(), *bench.stream), Error);
  EXPECT_THROW(bench.backend->norm({NormKind::rms, a.ref(), 3, nullptr, nullptr, 0, a.ref()}, *bench.stream), Error);
  const Batch batch({{0, 0, 2}});
  EXPECT_THROW(bench.backend->rotary({batch.map(), a.ref(), 2, 4, 6, false, nullptr}, *bench.stream), Error);
  EXPECT_THROW(bench.backend->embed({batch.map(), {nullptr, DType::i8, 1, 8, 8}, 1, a.ref()}, *bench.stream), Error);
}

TEST(Advance, MovesEachSequenceOneStepOn) {
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    std::vector<std::int32_t> next = {5, 2, 7};
    std::vector<std::int32_t> tokens = {0, 0, 0};
    std::vector<std::int32_t> positions = {10, 20, 0};
    std::vector<std::int32_t> history(12, -1);
    std::vector<std::int32_t> step_of = {0, 1, 2};
    std::vector<std::uint8_t> seen(24, 0);
    bench.backend->advance(
        {3, next.data(), tokens.data(), positions.data(), history.data(), 4, step_of.data(), seen.data(), 8},
        *bench.stream);
    EXPECT_EQ(tokens, next);
    EXPECT_EQ(positions, (std::vector<std::int32_t>{11, 21, 1}));
    EXPECT_EQ(history, (std::vector<std::int32_t>{5, -1, -1, -1, -1, 2, -1, -1, -1, -1, 7, -1}));
    EXPECT_EQ(step_of, (std::vector<std::int32_t>{1, 2, 3}));
    EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), 0), 3);
    EXPECT_TRUE(seen[5] && seen[8 + 2] && seen[16 + 7]);
  }
}

}  // namespace
}  // namespace nibble::test
