// Each op of the GPU but attention and sampling against float64: every combination of types, odd shapes, rows that take
// vector accesses and rows that do not, poisoned outputs and surroundings, outputs that are inputs.
#include "core/error.h"
#include "cuda/typed_matrix.h"

#include <algorithm>
#include <array>
#include <functional>

namespace nibble::test {
namespace {

struct Layout {
  std::int64_t gap = 0;   // elements between rows
  std::int64_t lead = 0;  // elements before the first
};
// Rows that take vector accesses where their width does, and rows that do not.
constexpr Layout kAligned{8, 0};
constexpr Layout kOdd{3, 5};

struct Shape {
  std::int64_t rows = 0;
  std::int64_t width = 0;
  Layout layout;
};

std::vector<Shape> shapes() {
  std::vector<Shape> out;
  for (const Layout layout : {kAligned, kOdd}) {
    for (const std::int64_t width : {1, 7, 37, 64, 576, 5120, 5121}) {
      for (const std::int64_t rows : {1, 3, 17}) out.push_back({rows, width, layout});
    }
  }
  return out;
}

// Those, and many rows: for a few combinations of types, as the reference takes its time.
std::vector<Shape> shapes_with_many_rows() {
  std::vector<Shape> out = shapes();
  for (const std::int64_t width : {37, 64, 576, 5121}) out.push_back({300, width, kAligned});
  return out;
}

std::vector<float> random_values(std::mt19937& random, std::int64_t count) {
  std::uniform_real_distribution<float> uniform(-2, 2);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = uniform(random);
  return out;
}

std::vector<std::int32_t> random_indices(std::mt19937& random, std::int64_t count, std::int32_t below) {
  std::uniform_int_distribution<std::int32_t> uniform(0, below - 1);
  std::vector<std::int32_t> out(static_cast<std::size_t>(count));
  for (std::int32_t& value : out) value = uniform(random);
  return out;
}

std::string describe(const Shape& shape) {
  return "[" + std::to_string(shape.rows) + ", " + std::to_string(shape.width) + "], gap " +
         std::to_string(shape.layout.gap) + ", lead " + std::to_string(shape.layout.lead);
}

TypedMatrix make(Stream& stream, DType dtype, const Shape& shape) {
  return TypedMatrix(stream, dtype, shape.rows, shape.width, shape.layout.gap, shape.layout.lead);
}

TEST(CudaEmbed, LooksUpScalesAndConverts) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(1);
  constexpr std::int32_t kVocab = 11;
  for (const DType from : kActivationTypes) {
    for (const DType to : kActivationTypes) {
      for (const Shape& shape : from == to ? shapes_with_many_rows() : shapes()) {
        SCOPED_TRACE(describe(shape));
        TypedMatrix table = make(*stream, from, {kVocab, shape.width, shape.layout});
        table.fill(random);
        const std::vector<std::int32_t> tokens = random_indices(random, shape.rows, kVocab);
        const OnDevice<std::int32_t> there(*stream, tokens);
        TypedMatrix y = make(*stream, to, shape);
        RowMap map;
        map.rows = shape.rows;
        map.tokens = there.data();
        gpu().embed({map, table.ref(), 3.0f, y.ref()}, *stream);
        y.download();
        expect_close(
            y, [&](std::int64_t r, std::int64_t c) { return rounded(to, table.at(tokens[r], c) * 3.0f); }, 0, 0);
        y.expect_surroundings_untouched();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(CudaGatherRows, CopiesTheChosenRows) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(2);
  for (const DType from : kActivationTypes) {
    for (const DType to : kActivationTypes) {
      for (const Shape& shape : from == to ? shapes_with_many_rows() : shapes()) {
        SCOPED_TRACE(describe(shape));
        TypedMatrix x = make(*stream, from, {5, shape.width, shape.layout});
        x.fill(random);
        const std::vector<std::int32_t> indices = random_indices(random, shape.rows, 5);
        const OnDevice<std::int32_t> there(*stream, indices);
        TypedMatrix y = make(*stream, to, shape);
        gpu().gather_rows(x.ref(), there.data(), y.ref(), *stream);
        y.download();
        expect_close(y, [&](std::int64_t r, std::int64_t c) { return rounded(to, x.at(indices[r], c)); }, 0, 0);
        y.expect_surroundings_untouched();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

struct NormCase {
  NormKind kind = NormKind::rms;
  std::int64_t groups = 1;
  bool weight = true;
  bool bias = false;
  bool in_place = false;
};

void expect_norm(Stream& stream, std::mt19937& random, const NormCase& c, DType from, DType to, const Shape& shape) {
  SCOPED_TRACE(describe(shape) + ", groups " + std::to_string(c.groups) +
               (c.kind == NormKind::rms ? " rms" : " layer"));
  constexpr float kEps = 1e-5f;
  const Shape whole{shape.rows, shape.width * c.groups, shape.layout};
  TypedMatrix x = make(stream, from, whole);
  x.fill(random);
  if (whole.rows > 2) {
    // One row with a large mean: the variance must not be the difference of two large numbers.
    for (std::int64_t i = 0; i < whole.width; ++i) x.set(2, i, x.at(2, i) * 0.5f + 100);
    x.upload();
  }
  const std::vector<float> before = x.values();
  const std::vector<float> weight = random_values(random, shape.width);
  const std::vector<float> bias = random_values(random, shape.width);
  const OnDevice<float> weight_there(stream, weight);
  const OnDevice<float> bias_there(stream, bias);
  TypedMatrix other = make(stream, to, whole);
  TypedMatrix& y = c.in_place ? x : other;
  gpu().norm({c.kind, x.ref(), c.groups, c.weight ? weight_there.data() : nullptr, c.bias ? bias_there.data() : nullptr,
              kEps, y.ref()},
             stream);
  y.download();
  // The mean and the inverse deviation of each part.
  std::vector<std::array<double, 2>> moments;
  for (std::int64_t part = 0; part < whole.rows * c.groups; ++part) {
    const float* at = before.data() + part * shape.width;
    double mean = 0;
    double squares = 0;
    if (c.kind == NormKind::layer) {
      for (std::int64_t i = 0; i < shape.width; ++i) mean += at[i];
      mean /= static_cast<double>(shape.width);
    }
    for (std::int64_t i = 0; i < shape.width; ++i) squares += (at[i] - mean) * (at[i] - mean);
    moments.push_back({mean, 1 / std::sqrt(squares / static_cast<double>(shape.width) + static_cast<double>(kEps))});
  }
  expect_close(
      y,
      [&](std::int64_t r, std::int64_t column) {
        const auto& [mean, factor] = moments[r * c.groups + column / shape.width];
        const std::int64_t i = column % shape.width;
        return (before[r * whole.width + column] - mean) * factor * (c.weight ? weight[i] : 1) + (c.bias ? bias[i] : 0);
      },
      c.kind == NormKind::layer ? 3e-4 : 1e-6, 1e-5 + 1.01 * rounding_of(to));
  y.expect_surroundings_untouched();
}

TEST(CudaNorm, EachKindAndEachCombinationOfTypes) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(3);
  for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (const DType from : kActivationTypes) {
      for (const DType to : kActivationTypes) {
        for (const Shape& shape : from == to ? shapes_with_many_rows() : shapes()) {
          expect_norm(*stream, random, {kind, 1, true, kind == NormKind::layer, false}, from, to, shape);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(CudaNorm, MayWriteOverItsInput) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(4);
  for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (const DType type : kActivationTypes) {
      for (const Shape& shape : shapes()) {
        expect_norm(*stream, random, {kind, 1, true, false, true}, type, type, shape);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(CudaNorm, PartsOfRows) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(5);
  for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (const DType type : kActivationTypes) {
      for (const Layout layout : {kAligned, kOdd}) {
        for (const std::int64_t width : {1, 37, 64, 128, 256, 512, 520, 1032}) {
          for (const std::int64_t rows : {1, 5, 130}) {
            for (const std::int64_t groups : {3, 8}) {
              expect_norm(*stream, random,
                          {kind, groups, groups == 3, groups == 8 && kind == NormKind::layer, rows == 5}, type, type,
                          {rows, width, layout});
              if (::testing::Test::HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

// Wider than what a block holds in one access of each thread, in both ways of access.
TEST(CudaNorm, WideRows) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(6);
  for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
    for (const std::int64_t width : {8192, 8200, 20000, 33003}) {
      for (const Layout layout : {kAligned, kOdd}) {
        expect_norm(*stream, random, {kind, 1, true, false, false}, DType::f32, DType::bf16, {4, width, layout});
        expect_norm(*stream, random, {kind, 1, true, false, true}, DType::f16, DType::f16, {4, width, layout});
      }
    }
  }
}

TEST(CudaNorm, OfZerosIsFinite) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  TypedMatrix x(*stream, DType::f32, 1, 100);
  for (std::int64_t c = 0; c < 100; ++c) x.set(0, c, 0);
  x.upload();
  TypedMatrix y(*stream, DType::f16, 1, 100);
  gpu().norm({NormKind::rms, x.ref(), 1, nullptr, nullptr, 1e-6f, y.ref()}, *stream);
  y.download();
  expect_close(y, [](std::int64_t, std::int64_t) { return 0.0; }, 0, 0);
}

TEST(CudaRotary, RotatesPairsOfEachHeadAndLeavesTheRest) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(7);
  constexpr std::int32_t kPositions = 50;
  constexpr std::array<std::array<std::int64_t, 3>, 8> kHeads = {
      {{3, 64, 64}, {2, 80, 32}, {1, 6, 6}, {5, 24, 10}, {2, 12, 8}, {40, 128, 128}, {8, 128, 64}, {1, 2, 2}}};
  for (const auto& [heads, head_dim, dims] : kHeads) {
    const std::int64_t pairs = dims / 2;
    std::vector<float> table(static_cast<std::size_t>(kPositions * dims));
    for (std::int64_t p = 0; p < kPositions; ++p) {
      for (std::int64_t i = 0; i < pairs; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(pairs));
        table[p * dims + i] = static_cast<float>(std::cos(angle));
        table[p * dims + pairs + i] = static_cast<float>(std::sin(angle));
      }
    }
    const OnDevice<float> table_there(*stream, table);
    for (const DType type : kActivationTypes) {
      for (const Layout layout : {kAligned, kOdd}) {
        for (const std::int64_t rows : {1, 7, 300}) {
          for (const bool interleaved : {false, true}) {
            const Shape shape{rows, heads * head_dim, layout};
            SCOPED_TRACE(describe(shape) + ", heads of " + std::to_string(head_dim) + ", dims " + std::to_string(dims) +
                         (interleaved ? ", interleaved" : ", halves"));
            TypedMatrix x = make(*stream, type, shape);
            x.fill(random);
            const std::vector<float> before = x.values();
            const std::vector<std::int32_t> positions = random_indices(random, rows, kPositions);
            const OnDevice<std::int32_t> positions_there(*stream, positions);
            RowMap map;
            map.rows = rows;
            map.positions = positions_there.data();
            gpu().rotary({map, x.ref(), heads, head_dim, dims, interleaved, table_there.data()}, *stream);
            x.download();
            expect_close(
                x,
                [&, size = head_dim, rotated = dims](std::int64_t r, std::int64_t c) {
                  const float* row = before.data() + r * shape.width;
                  const std::int64_t head = c / size * size;
                  const std::int64_t d = c % size;
                  if (d >= rotated) return static_cast<double>(row[c]);
                  const std::int64_t pair = interleaved ? d / 2 : d % pairs;
                  const bool second = interleaved ? d % 2 == 1 : d >= pairs;
                  const double a = row[head + (interleaved ? 2 * pair : pair)];
                  const double b = row[head + (interleaved ? 2 * pair + 1 : pair + pairs)];
                  const double cosine = table[positions[r] * rotated + pair];
                  const double sine = table[positions[r] * rotated + pairs + pair];
                  return second ? b * cosine + a * sine : a * cosine - b * sine;
                },
                2e-6, 1e-6 + 1.01 * rounding_of(type));
            x.expect_surroundings_untouched();
            if (::testing::Test::HasFailure()) return;
          }
        }
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

// target: 0 writes to a matrix of its own, 1 over the first operand, 2 over the second.
void expect_gated(Stream& stream, std::mt19937& random, ActivationKind kind, const std::array<DType, 3>& types,
                  const Shape& shape, int target) {
  SCOPED_TRACE(describe(shape) + ", target " + std::to_string(target));
  TypedMatrix gate = make(stream, types[0], shape);
  TypedMatrix up = make(stream, types[1], shape);
  TypedMatrix other = make(stream, types[2], shape);
  gate.fill(random, 3);
  up.fill(random);
  const std::vector<float> gate_before = gate.values();
  const std::vector<float> up_before = up.values();
  TypedMatrix& y = target == 0 ? other : target == 1 ? gate : up;
  gpu().gated_activation(kind, gate.ref(), up.ref(), y.ref(), stream);
  y.download();
  expect_close(
      y,
      [&](std::int64_t r, std::int64_t c) {
        return activation(kind, gate_before[r * shape.width + c]) * up_before[r * shape.width + c];
      },
      2e-6, 2e-6 + 1.01 * rounding_of(y.dtype()));
  y.expect_surroundings_untouched();
}

TEST(CudaGatedActivation, EachCombinationOfTypes) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(8);
  std::size_t turn = 0;  // the kinds take turns over the shapes
  for (const DType gate : kActivationTypes) {
    for (const DType up : kActivationTypes) {
      for (const DType y : kActivationTypes) {
        for (const Shape& shape : gate == up && up == y ? shapes_with_many_rows() : shapes()) {
          expect_gated(*stream, random, kActivations[turn++ % std::size(kActivations)], {gate, up, y}, shape, 0);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(CudaGatedActivation, EachKindAndOverItsInputs) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(9);
  for (const ActivationKind kind : kActivations) {
    for (const DType type : kActivationTypes) {
      for (const Layout layout : {kAligned, kOdd}) {
        for (const int target : {0, 1, 2}) {
          expect_gated(*stream, random, kind, {type, type, type}, {3, 576, layout}, target);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

// Over the whole range in which the functions bend, and far outside of it.
TEST(CudaGatedActivation, ErrorOverTheRange) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::vector<float> inputs;
  for (int i = -24000; i <= 24000; ++i) inputs.push_back(static_cast<float>(i) / 2000);
  for (const float far : {-1e30f, -1e4f, -200.f, -90.f, -50.f, 50.f, 90.f, 200.f, 1e4f, 1e30f}) inputs.push_back(far);
  const auto count = static_cast<std::int64_t>(inputs.size());
  TypedMatrix gate(*stream, DType::f32, 1, count);
  TypedMatrix up(*stream, DType::f32, 1, count);
  for (std::int64_t c = 0; c < count; ++c) {
    gate.set(0, c, inputs[c]);
    up.set(0, c, 1);
  }
  gate.upload();
  up.upload();
  for (const ActivationKind kind : kActivations) {
    TypedMatrix y(*stream, DType::f32, 1, count);
    gpu().gated_activation(kind, gate.ref(), up.ref(), y.ref(), *stream);
    y.download();
    expect_close(y, [&](std::int64_t, std::int64_t c) { return activation(kind, inputs[c]); }, 8e-7, 6e-7);
  }
}

void expect_add(Stream& stream, std::mt19937& random, const std::array<DType, 3>& types, const Shape& shape,
                int target) {
  SCOPED_TRACE(describe(shape) + ", target " + std::to_string(target));
  TypedMatrix a = make(stream, types[0], shape);
  TypedMatrix b = make(stream, types[1], shape);
  TypedMatrix other = make(stream, types[2], shape);
  a.fill(random);
  b.fill(random);
  const std::vector<float> a_before = a.values();
  const std::vector<float> b_before = b.values();
  TypedMatrix& y = target == 0 ? other : target == 1 ? a : b;
  gpu().add(a.ref(), b.ref(), y.ref(), stream);
  y.download();
  expect_close(
      y,
      [&](std::int64_t r, std::int64_t c) {
        return rounded(y.dtype(), a_before[r * shape.width + c] + b_before[r * shape.width + c]);
      },
      0, 0);
  y.expect_surroundings_untouched();
}

TEST(CudaAdd, EachCombinationOfTypesAndOverItsInputs) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(10);
  for (const DType a : kActivationTypes) {
    for (const DType b : kActivationTypes) {
      for (const DType y : kActivationTypes) {
        for (const Shape& shape : a == b && b == y ? shapes_with_many_rows() : shapes()) {
          expect_add(*stream, random, {a, b, y}, shape, 0);
          if (::testing::Test::HasFailure()) return;
        }
      }
      for (const Layout layout : {kAligned, kOdd}) {
        expect_add(*stream, random, {a, b, a}, {17, 5120, layout}, 1);
        expect_add(*stream, random, {a, b, b}, {17, 5120, layout}, 2);
      }
    }
  }
}

// More rows than the second and third dimension of a grid hold.
TEST(CudaOps, TakeManyRows) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(11);
  for (const std::int64_t width : {8, 3}) {
    expect_add(*stream, random, {DType::f16, DType::f16, DType::f16}, {70'001, width, {}}, 0);
    expect_norm(*stream, random, {NormKind::rms, 1, true, false, false}, DType::f32, DType::f16, {70'001, width, {}});
  }
}

TEST(CudaOps, TakeNoRows) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  const MatrixRef none{nullptr, DType::f32, 0, 64, 64};
  gpu().add(none, none, none, *stream);
  gpu().norm({NormKind::rms, none, 1, nullptr, nullptr, 0, none}, *stream);
  gpu().gather_rows(none, nullptr, none, *stream);
  gpu().rotary({{}, none, 1, 64, 64, false, nullptr}, *stream);
  gpu().embed({{}, {nullptr, DType::f32, 4, 64, 64}, 1, none}, *stream);
  gpu().advance({}, *stream);
  stream->synchronize();
}

TEST(CudaOps, RefuseMatricesThatDoNotFit) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  const TypedMatrix owner(*stream, DType::f32, 2, 8);
  const MatrixRef a = owner.ref();
  MatrixRef narrow = a;
  narrow.columns = 7;
  EXPECT_THROW(gpu().add(a, narrow, a, *stream), Error);
  MatrixRef bytes = a;
  bytes.dtype = DType::i8;
  EXPECT_THROW(gpu().add(bytes, a, a, *stream), Error);
  EXPECT_THROW(gpu().gated_activation(ActivationKind::silu, a, bytes, a, *stream), Error);
  MatrixRef overlapping = a;
  overlapping.stride = 4;
  EXPECT_THROW(gpu().add(overlapping, a, a, *stream), Error);
  EXPECT_THROW(gpu().norm({NormKind::rms, a, 3, nullptr, nullptr, 0, a}, *stream), Error);
  RowMap map;
  map.rows = 2;
  EXPECT_THROW(gpu().rotary({map, a, 2, 4, 6, false, nullptr}, *stream), Error);
  EXPECT_THROW(gpu().embed({map, bytes, 1, a}, *stream), Error);
  map.rows = 3;
  EXPECT_THROW(gpu().embed({map, a, 1, a}, *stream), Error);
}

TEST(CudaOps, ReplayOfACaptureIsTheEagerCall) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(12);
  constexpr std::int64_t kRows = 4;
  constexpr std::int64_t kHeads = 10;
  constexpr std::int64_t kHeadDim = 64;
  constexpr std::int64_t kWidth = kHeads * kHeadDim;
  TypedMatrix table(*stream, DType::f16, 20, kWidth);
  table.fill(random);
  const OnDevice<float> weight(*stream, random_values(random, kWidth));
  const OnDevice<float> turns(*stream, random_values(random, 30 * kHeadDim));
  const std::vector<std::int32_t> zeros(kRows, 0);
  const OnDevice<std::int32_t> tokens(*stream, zeros);
  const OnDevice<std::int32_t> positions(*stream, zeros);
  TypedMatrix residual(*stream, DType::f32, kRows, kWidth);
  TypedMatrix branch(*stream, DType::f16, kRows, kWidth);
  TypedMatrix chosen(*stream, DType::f32, kRows, kWidth);
  RowMap map;
  map.rows = kRows;
  map.tokens = tokens.data();
  map.positions = positions.data();
  // Each op reads what the one before it has written.
  const auto enqueue = [&] {
    gpu().embed({map, table.ref(), 1.5f, residual.ref()}, *stream);
    gpu().norm({NormKind::rms, residual.ref(), 1, weight.data(), nullptr, 1e-5f, branch.ref()}, *stream);
    gpu().rotary({map, branch.ref(), kHeads, kHeadDim, kHeadDim, false, turns.data()}, *stream);
    gpu().gated_activation(ActivationKind::silu, branch.ref(), residual.ref(), branch.ref(), *stream);
    gpu().add(residual.ref(), branch.ref(), residual.ref(), *stream);
    gpu().norm({NormKind::layer, branch.ref(), kHeads, weight.data(), nullptr, 1e-5f, branch.ref()}, *stream);
    gpu().add(branch.ref(), residual.ref(), residual.ref(), *stream);
    gpu().gather_rows(residual.ref(), tokens.data(), chosen.ref(), *stream);
  };
  const auto set = [&](std::int32_t step) {
    std::vector<std::int32_t> values;
    values.reserve(static_cast<std::size_t>(kRows));
    for (std::int32_t r = 0; r < kRows; ++r) values.push_back((step + r) % kRows);
    stream->copy_to_device(tokens.data(), values.data(), values.size() * sizeof(std::int32_t));
    for (std::int32_t& value : values) value = (value + 5 * step) % 30;
    stream->copy_to_device(positions.data(), values.data(), values.size() * sizeof(std::int32_t));
    stream->synchronize();
  };
  std::vector<std::vector<float>> eager;
  for (std::int32_t step = 0; step < 5; ++step) {
    set(step);
    enqueue();
    chosen.download();
    eager.push_back(chosen.values());
  }
  stream->begin_capture();
  enqueue();
  const std::unique_ptr<Graph> graph = stream->end_capture();
  for (std::int32_t step = 0; step < 5; ++step) {
    set(step);
    stream->launch(*graph);
    chosen.download();
    EXPECT_EQ(chosen.values(), eager[static_cast<std::size_t>(step)]) << "step " << step;
  }
}

TEST(CudaAdvance, MovesEachSequenceOneStepOn) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  constexpr std::int32_t kSequences = 300;
  constexpr std::int32_t kVocab = 8;
  constexpr std::int32_t kSteps = 4;
  std::mt19937 random(13);
  const std::vector<std::int32_t> next = random_indices(random, kSequences, kVocab);
  const std::vector<std::int32_t> steps = random_indices(random, kSequences, kSteps);
  const std::vector<std::int32_t> positions = random_indices(random, kSequences, 100);
  const OnDevice<std::int32_t> next_there(*stream, next);
  const OnDevice<std::int32_t> tokens(*stream, std::vector<std::int32_t>(kSequences, -1));
  const OnDevice<std::int32_t> positions_there(*stream, positions);
  const OnDevice<std::int32_t> history(*stream, std::vector<std::int32_t>(kSequences * kSteps, -1));
  const OnDevice<std::int32_t> step_of(*stream, steps);
  const OnDevice<std::uint8_t> seen(*stream, std::vector<std::uint8_t>(kSequences * kVocab, 0));
  AdvanceArgs args{kSequences,     next_there.data(), tokens.data(), positions_there.data(), history.data(), kSteps,
                   step_of.data(), seen.data(),       kVocab};
  gpu().advance(args, *stream);
  EXPECT_EQ(tokens.read(), next);
  std::vector<std::int32_t> expected_positions, expected_steps;
  std::vector<std::int32_t> expected_history(kSequences * kSteps, -1);
  std::vector<std::uint8_t> expected_seen(kSequences * kVocab, 0);
  for (std::int32_t i = 0; i < kSequences; ++i) {
    expected_positions.push_back(positions[i] + 1);
    expected_steps.push_back(steps[i] + 1);
    expected_history[i * kSteps + steps[i]] = next[i];
    expected_seen[i * kVocab + next[i]] = 1;
  }
  EXPECT_EQ(positions_there.read(), expected_positions);
  EXPECT_EQ(step_of.read(), expected_steps);
  EXPECT_EQ(history.read(), expected_history);
  EXPECT_EQ(seen.read(), expected_seen);
  // Without a record of seen tokens.
  stream->copy_to_device(step_of.data(), steps.data(), steps.size() * sizeof(std::int32_t));
  args.seen = nullptr;
  gpu().advance(args, *stream);
  EXPECT_EQ(step_of.read(), expected_steps);
  EXPECT_EQ(seen.read(), expected_seen);
}

}  // namespace
}  // namespace nibble::test
