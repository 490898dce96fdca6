// What encoders of images ask of a back end: patches, their places among a sequence's rows, the mean of two matrices.
#include "core/error.h"
#include "core/float_convert.h"
#include "ops/ops_fixture.h"

#include <gtest/gtest.h>

namespace nibble::test {
namespace {

TEST(CutPatches, TakesEachPatchAsAConvolutionsWeightHasIt) {
  // 2 images of 2 channels, 7 x 7 pixels: 9 patches of 2 x 2, the last row and column of pixels left over.
  std::vector<float> pixels(2 * 2 * 7 * 7);
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(i);
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    Matrix y(18, 8, 3);
    bench.backend->cut_patches({pixels.data(), 2, 2, 7, 2, y.ref()}, *bench.stream);
    for (std::int64_t row = 0; row < 18; ++row) {
      const std::int64_t image = row / 9;
      const std::int64_t top = row % 9 / 3 * 2;
      const std::int64_t left = row % 3 * 2;
      for (std::int64_t c = 0; c < 8; ++c) {
        const std::int64_t channel = c / 4;
        ASSERT_EQ(y.at(row, c), static_cast<float>((image * 2 + channel) * 49 + (top + c / 2 % 2) * 7 + left + c % 2));
      }
    }
    y.expect_gaps_untouched();
  }
}

TEST(PlacePatches, PutsTheLeadingRowsFirstAndAddsPositions) {
  std::mt19937 random(3);
  constexpr std::int64_t kWidth = 37;
  Matrix x(6, kWidth, 2), positions(5, kWidth), second(1, kWidth);
  x.fill(random);
  positions.fill(random);
  second.fill(random);
  std::vector<std::uint16_t> first(kWidth);
  for (std::int64_t c = 0; c < kWidth; ++c) first[static_cast<std::size_t>(c)] = float_to_bf16(static_cast<float>(c));
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    Matrix y(10, kWidth, 4);
    PlaceArgs args;
    args.images = 2;
    args.leading = {MatrixRef{first.data(), DType::bf16, 1, kWidth, kWidth}, second.ref()};
    args.positions = positions.ref();
    args.x = x.ref();
    args.y = y.ref();
    bench.backend->place_patches(args, *bench.stream);
    for (std::int64_t row = 0; row < 10; ++row) {
      const std::int64_t place = row % 5;
      for (std::int64_t c = 0; c < kWidth; ++c) {
        const float before = place == 0   ? static_cast<float>(c)
                             : place == 1 ? second.at(0, c)
                                          : x.at(row / 5 * 3 + place - 2, c);
        ASSERT_EQ(y.at(row, c), before + positions.at(place, c)) << row << " " << c;
      }
    }
    y.expect_gaps_untouched();
    Matrix narrow(10, kWidth - 1);
    args.y = narrow.ref();
    EXPECT_THROW(bench.backend->place_patches(args, *bench.stream), Error);
  }
}

TEST(Mean, IsHalfTheSum) {
  std::mt19937 random(4);
  Matrix a(3, 2100, 5), b(3, 2100);
  a.fill(random);
  b.fill(random);
  for (const int threads : kThreadCounts) {
    Bench bench(threads);
    Matrix y(3, 2100, 1);
    bench.backend->mean(a.ref(), b.ref(), y.ref(), *bench.stream);
    for (std::int64_t row = 0; row < 3; ++row) {
      for (std::int64_t c = 0; c < 2100; ++c) ASSERT_EQ(y.at(row, c), (a.at(row, c) + b.at(row, c)) / 2);
    }
    y.expect_gaps_untouched();
  }
}

}  // namespace
}  // namespace nibble::test
