#include "bench/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace nibble {
namespace {

TEST(Statistics, OfFiveNumbers) {
  const std::vector<double> samples = {5, 1, 4, 2, 3};
  const Statistics s = statistics_of(samples);
  EXPECT_EQ(s.count, 5u);
  EXPECT_DOUBLE_EQ(s.mean, 3);
  EXPECT_DOUBLE_EQ(s.median, 3);
  EXPECT_DOUBLE_EQ(s.stddev, std::sqrt(2.5));
  EXPECT_DOUBLE_EQ(s.p95, 4.8);  // numpy.percentile([1, 2, 3, 4, 5], 95)
  EXPECT_DOUBLE_EQ(s.min, 1);
  EXPECT_DOUBLE_EQ(s.max, 5);
}

TEST(Statistics, TheMedianOfAnEvenCountLiesBetween) {
  const std::vector<double> samples = {10, 1, 2, 3};
  EXPECT_DOUBLE_EQ(statistics_of(samples).median, 2.5);
}

TEST(Statistics, OfOneAndOfNone) {
  const std::vector<double> one = {7};
  const Statistics s = statistics_of(one);
  EXPECT_DOUBLE_EQ(s.mean, 7);
  EXPECT_DOUBLE_EQ(s.p95, 7);
  EXPECT_DOUBLE_EQ(s.stddev, 0);
  EXPECT_EQ(statistics_of({}).count, 0u);
}

}  // namespace
}  // namespace nibble
