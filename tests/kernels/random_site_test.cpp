#include "kernels/random_site.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace nibble {
namespace {

// The oracle of all kernel tests reads weights through GptqTensors; here that is held against what was packed.
TEST(RandomSite, TensorsHoldTheWeights) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool act_order : {false, true}) {
      const RandomSite random(
          {.in_features = 100, .out_features = {40, 24}, .gptq = GptqFormat{bits, 32, act_order, false}, .seed = 5});
      for (std::size_t part = 0; part < 2; ++part) {
        const GptqTensors& gptq = *random.tensors()[part].gptq;
        std::vector<float> row(100);
        for (std::int64_t n = 0; n < gptq.out_features; ++n) {
          gptq.dequantize_row(n, row.data());
          EXPECT_TRUE(std::equal(row.begin(), row.end(), random.weights(part).begin() + n * 100))
              << bits << " bits, output " << n;
        }
        EXPECT_EQ(std::is_sorted(gptq.g_idx.begin(), gptq.g_idx.end()), !act_order);
        EXPECT_EQ(gptq.groups, 4);
      }
      EXPECT_EQ(random.tensors()[0].gptq->g_idx, random.tensors()[1].gptq->g_idx);
    }
  }
}

TEST(RandomSite, HoldsExtremes) {
  const RandomSite random({.in_features = 256, .out_features = {64}, .gptq = GptqFormat{4, 32, false, false}});
  const GptqTensors& gptq = *random.tensors()[0].gptq;
  std::vector<std::uint8_t> codes(256 * 64);
  gptq.codes(0, 256, 0, 64, codes.data());
  EXPECT_EQ(std::set<int>(codes.begin(), codes.end()).size(), 16u);
  EXPECT_EQ(std::set<int>(gptq.zeros.begin(), gptq.zeros.end()).size(), 16u);
  const auto [low, high] = std::minmax_element(gptq.scales.begin(), gptq.scales.end());
  EXPECT_GT(*high / *low, 300.0f);
}

TEST(RandomSite, SeedDecides) {
  const RandomSite a({.seed = 1});
  const RandomSite b({.seed = 1});
  const RandomSite c({.seed = 2});
  EXPECT_TRUE(std::equal(a.weights(0).begin(), a.weights(0).end(), b.weights(0).begin()));
  EXPECT_FALSE(std::equal(a.weights(0).begin(), a.weights(0).end(), c.weights(0).begin()));
}

TEST(Random, NormalIsAboutNormal) {
  Random random(3);
  double sum = 0;
  double squares = 0;
  const int count = 100000;
  for (int i = 0; i < count; ++i) {
    const double v = static_cast<double>(random.normal());
    sum += v;
    squares += v * v;
  }
  EXPECT_NEAR(sum / count, 0, 0.02);
  EXPECT_NEAR(squares / count, 1, 0.02);
}

}  // namespace
}  // namespace nibble
