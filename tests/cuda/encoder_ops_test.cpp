// The ops that encoders alone use, on the GPU against float64: every type, odd shapes, rows that take vector accesses
// and rows that do not, poisoned outputs and surroundings, outputs that are inputs.
#include "core/error.h"
#include "cuda/typed_matrix.h"
#include "support/expect_error.h"

#include <algorithm>
#include <array>

namespace nibble::test {
namespace {

struct Layout {
  std::int64_t gap = 0;   // elements between rows
  std::int64_t lead = 0;  // elements before the first
};
constexpr Layout kLayouts[] = {{8, 0}, {3, 5}};
constexpr std::int64_t kWidths[] = {1, 7, 64, 256, 520, 768, 1000, 1024, 1032, 2304};

TypedMatrix make(Stream& stream, DType type, std::int64_t rows, std::int64_t width, const Layout& layout) {
  return TypedMatrix(stream, type, rows, width, layout.gap, layout.lead);
}

std::vector<float> random_values(std::mt19937& random, std::int64_t count) {
  std::uniform_real_distribution<float> uniform(-2, 2);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = uniform(random);
  return out;
}

// Calls body(type, layout, width) until something fails.
template <typename Body>
void everywhere(const Body& body) {
  for (const DType type : kActivationTypes) {
    for (const Layout& layout : kLayouts) {
      for (const std::int64_t width : kWidths) {
        SCOPED_TRACE(std::string(name_of(type)) + ", width " + std::to_string(width) + ", gap " +
                     std::to_string(layout.gap));
        body(type, layout, width);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(CudaEncoderOps, EmbedAddsPositionsAndTypes) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(1);
  const std::vector<std::int32_t> tokens = {3, 0, 10, 7, 3}, positions = {0, 1, 2, -1, 4}, types = {0, 1, 1, 0, 1};
  const OnDevice<std::int32_t> tokens_there(*stream, tokens), positions_there(*stream, positions),
      types_there(*stream, types);
  everywhere([&](DType type, const Layout& layout, std::int64_t width) {
    for (const int which : {1, 2, 3}) {
      // Tables of other types than y's.
      TypedMatrix table = make(*stream, kActivationTypes[(which + 1) % 3], 11, width, layout);
      TypedMatrix of_positions = make(*stream, kActivationTypes[which % 3], 8, width, layout);
      TypedMatrix of_types = make(*stream, type, 2, width, layout);
      table.fill(random);
      of_positions.fill(random);
      of_types.fill(random);
      TypedMatrix y = make(*stream, type, 5, width, layout);
      EmbedArgs args;
      args.map.rows = 5;
      args.map.tokens = tokens_there.data();
      args.map.positions = positions_there.data();
      args.map.types = which == 3 ? nullptr : types_there.data();
      args.table = table.ref();
      args.scale = 2;
      args.y = y.ref();
      if (which != 2) args.positions = of_positions.ref();
      args.position_offset = 2;
      if (which != 1) args.types = of_types.ref();
      gpu().embed(args, *stream);
      y.download();
      y.expect_surroundings_untouched();
      expect_close(
          y,
          [&](std::int64_t r, std::int64_t c) {
            double sum = 2.0 * static_cast<double>(table.at(tokens[r], c));
            if (which != 2) sum += static_cast<double>(of_positions.at(positions[r] + 2, c));
            if (which != 1) sum += static_cast<double>(of_types.at(which == 3 ? 0 : types[r], c));
            return sum;
          },
          1e-6, 1.01 * rounding_of(type));
    }
  });
}

TEST(CudaEncoderOps, ActivationAndMean) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(2);
  const auto reference = [](ActivationKind kind, double x) {
    switch (kind) {
      case ActivationKind::silu:
        return x / (1 + std::exp(-x));
      case ActivationKind::gelu:
        return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
      case ActivationKind::gelu_tanh:
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
      case ActivationKind::relu:
        return std::max(x, 0.0);
      case ActivationKind::quick_gelu:
        return x / (1 + std::exp(-1.702 * x));
      case ActivationKind::tanh:
        return std::tanh(x);
    }
    return x;
  };
  everywhere([&](DType type, const Layout& layout, std::int64_t width) {
    TypedMatrix a = make(*stream, type, 3, width, layout);
    TypedMatrix b = make(*stream, type, 3, width, layout);
    a.fill(random, 2);
    b.fill(random, 2);
    for (const ActivationKind kind : {ActivationKind::silu, ActivationKind::gelu, ActivationKind::gelu_tanh,
                                      ActivationKind::relu, ActivationKind::quick_gelu, ActivationKind::tanh}) {
      TypedMatrix y = make(*stream, type, 3, width, layout);
      gpu().activation(kind, a.ref(), y.ref(), *stream);
      y.download();
      y.expect_surroundings_untouched();
      expect_close(
          y, [&](std::int64_t r, std::int64_t c) { return reference(kind, a.at(r, c)); }, 2e-6,
          1.01 * rounding_of(type));
    }
    const std::vector<float> before = a.values();
    gpu().mean(a.ref(), b.ref(), a.ref(), *stream);
    a.download();
    a.expect_surroundings_untouched();
    expect_close(
        a,
        [&](std::int64_t r, std::int64_t c) {
          return (static_cast<double>(before[static_cast<std::size_t>(r * width + c)]) + b.at(r, c)) / 2;
        },
        1e-6, 1.01 * rounding_of(type));
  });
}

// Both outputs apart; y in the place of a; the sum in the place of a; no weight and no mean; no addend.
void check_norm_of_a_sum(Stream& stream, DType type, const Layout& layout, std::int64_t rows, std::int64_t width,
                         int which) {
  SCOPED_TRACE("form " + std::to_string(which));
  std::mt19937 random(3);
  constexpr float kEps = 1e-5f;
  const std::vector<float> weight = random_values(random, width), bias = random_values(random, width);
  const OnDevice<float> weight_there(stream, weight), bias_there(stream, bias);
  TypedMatrix a = make(stream, type, rows, width, layout);
  TypedMatrix b = make(stream, type, rows, width, layout);
  TypedMatrix y = make(stream, type, rows, width, layout);
  a.fill(random);
  b.fill(random, 3);
  // A row with a large mean: the variance must not be the difference of two large numbers.
  for (std::int64_t i = 0; i < width; ++i) a.set(2, i, a.at(2, i) * 0.5f + 100);
  a.upload();
  const std::vector<float> before = a.values();
  NormArgs args;
  args.kind = which == 3 ? NormKind::rms : NormKind::layer;
  args.x = a.ref();
  if (which != 4) args.addend = b.ref();
  args.weight = which == 3 ? nullptr : weight_there.data();
  args.bias = which == 3 ? nullptr : bias_there.data();
  args.eps = kEps;
  args.y = which == 1 ? a.ref() : y.ref();
  if (which == 2) args.sum = a.ref();
  gpu().norm(args, stream);
  a.download();
  y.download();
  a.expect_surroundings_untouched();
  y.expect_surroundings_untouched();
  const auto sum = [&](std::int64_t r, std::int64_t c) {
    const auto of_a = static_cast<double>(before[static_cast<std::size_t>(r * width + c)]);
    return which == 4 ? of_a : of_a + static_cast<double>(b.at(r, c));
  };
  std::vector<double> mean(static_cast<std::size_t>(rows)), factor(mean.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto at = static_cast<std::size_t>(r);
    double squares = 0;
    if (which != 3) {
      for (std::int64_t c = 0; c < width; ++c) mean[at] += sum(r, c) / static_cast<double>(width);
    }
    for (std::int64_t c = 0; c < width; ++c) squares += std::pow(sum(r, c) - mean[at], 2);
    factor[at] = 1 / std::sqrt(squares / static_cast<double>(width) + static_cast<double>(kEps));
  }
  expect_close(
      which == 1 ? a : y,
      [&](std::int64_t r, std::int64_t c) {
        const double normed = (sum(r, c) - mean[static_cast<std::size_t>(r)]) * factor[static_cast<std::size_t>(r)];
        return which == 3 ? normed : normed * static_cast<double>(weight[c]) + static_cast<double>(bias[c]);
      },
      2e-4, 1.01 * rounding_of(type));
  if (which == 2) expect_close(a, sum, 1e-6, 1.01 * rounding_of(type));
}

TEST(CudaEncoderOps, NormOfASum) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  everywhere([&](DType type, const Layout& layout, std::int64_t width) {
    for (const int which : {0, 1, 2, 3, 4}) check_norm_of_a_sum(*stream, type, layout, 9, width, which);
  });
}

TEST(CudaEncoderOps, NormOfASumOfManyRows) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  for (const DType type : kActivationTypes) {
    for (const std::int64_t width : {40, 384, 768, 1000}) {
      SCOPED_TRACE(std::string(name_of(type)) + ", width " + std::to_string(width));
      for (const int which : {0, 1, 2, 3, 4}) check_norm_of_a_sum(*stream, type, kLayouts[0], 2051, width, which);
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(CudaEncoderOps, PaddingComesBack) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(4);
  const std::vector<std::int32_t> begin = {0, 3, 3, 4, 9};
  const OnDevice<std::int32_t> there(*stream, begin);
  everywhere([&](DType type, const Layout& layout, std::int64_t width) {
    for (const DType to : {type, DType::f32}) {
      TypedMatrix x = make(*stream, type, 9, width, layout);
      x.fill(random);
      TypedMatrix y = make(*stream, to, 4 * 5, width, layout);
      gpu().pad_rows(x.ref(), there.data(), 4, 5, y.ref(), *stream);
      y.download();
      y.expect_surroundings_untouched();
      expect_close(
          y,
          [&](std::int64_t r, std::int64_t c) {
            const std::int64_t from = begin[r / 5] + r % 5;
            return from < begin[r / 5 + 1] ? x.at(from, c) : 0.0f;
          },
          0, 0);
    }
  });
}

TEST(CudaEncoderOps, Images) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(5);
  constexpr std::int64_t kImages = 2, kChannels = 3;
  // Patches of any size, and such as take vectors; pixels are left over.
  for (const auto& [size, patch] : {std::pair<std::int64_t, std::int64_t>{11, 3}, {36, 16}, {20, 8}, {17, 8}}) {
    const std::int64_t side = size / patch;
    const std::int64_t area = patch * patch;
    const std::vector<float> pixels = random_values(random, kImages * kChannels * size * size);
    const OnDevice<float> there(*stream, pixels);
    for (const DType type : kActivationTypes) {
      for (const Layout& layout : kLayouts) {
        SCOPED_TRACE(std::string(name_of(type)) + ", patches of " + std::to_string(patch));
        TypedMatrix y = make(*stream, type, kImages * side * side, kChannels * area, layout);
        gpu().cut_patches({there.data(), kImages, kChannels, size, patch, y.ref()}, *stream);
        y.download();
        y.expect_surroundings_untouched();
        expect_close(
            y,
            [&, size = size, patch = patch](std::int64_t r, std::int64_t c) {
              const std::int64_t image = r / (side * side);
              const std::int64_t row = r % (side * side) / side * patch + c % area / patch;
              const std::int64_t column = r % side * patch + c % patch;
              const std::int64_t at = ((image * kChannels + c / area) * size + row) * size + column;
              return rounded(type, pixels[static_cast<std::size_t>(at)]);
            },
            0, 0);
      }
    }
  }
  everywhere([&](DType type, const Layout& layout, std::int64_t width) {
    for (const std::int64_t leading : {0, 1, 2}) {
      TypedMatrix first = make(*stream, DType::f16, 1, width, {}), second = make(*stream, DType::f32, 1, width, {});
      TypedMatrix positions = make(*stream, DType::bf16, 4 + leading, width, layout);
      TypedMatrix x = make(*stream, type, kImages * 4, width, layout);
      TypedMatrix y = make(*stream, type, kImages * (4 + leading), width, layout);
      first.fill(random);
      second.fill(random);
      positions.fill(random);
      x.fill(random);
      PlaceArgs args;
      args.images = kImages;
      if (leading > 0) args.leading[0] = first.ref();
      if (leading > 1) args.leading[1] = second.ref();
      args.positions = positions.ref();
      args.x = x.ref();
      args.y = y.ref();
      gpu().place_patches(args, *stream);
      y.download();
      y.expect_surroundings_untouched();
      expect_close(
          y,
          [&](std::int64_t r, std::int64_t c) {
            const std::int64_t place = r % (4 + leading), image = r / (4 + leading);
            const float own = place >= leading ? x.at(image * 4 + place - leading, c)
                              : place == 0     ? first.at(0, c)
                                               : second.at(0, c);
            return static_cast<double>(own) + static_cast<double>(positions.at(place, c));
          },
          1e-6, 1.01 * rounding_of(type));
    }
  });
}

}  // namespace
}  // namespace nibble::test
