#include "quant/calibration.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace nibble {
namespace {

std::vector<std::int32_t> counting(std::size_t n) {
  std::vector<std::int32_t> ids(n);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

TEST(CalibrationTest, EachStretchOfTheTextGivesOneWindow) {
  CalibrationOptions options;
  options.samples = 10;
  options.sequence_length = 50;
  const auto windows = calibration_windows(counting(1049), options);  // 1000 places where a window can start
  ASSERT_EQ(windows.size(), 10U);
  for (std::size_t i = 0; i < windows.size(); ++i) {
    ASSERT_EQ(windows[i].size(), 50U);
    EXPECT_EQ(windows[i][0] / 100, static_cast<std::int32_t>(i));
    EXPECT_EQ(windows[i][49], windows[i][0] + 49);
  }
}

TEST(CalibrationTest, TheSeedAloneDecides) {
  CalibrationOptions options;
  options.samples = 8;
  options.sequence_length = 40;
  const auto ids = counting(5000);
  const auto first = calibration_windows(ids, options);
  EXPECT_EQ(calibration_windows(ids, options), first);
  options.seed = 1;
  EXPECT_NE(calibration_windows(ids, options), first);
}

TEST(CalibrationTest, AShortTextIsOneSequenceAndAVeryShortOneIsRefused) {
  CalibrationOptions options;
  options.sequence_length = 512;
  options.text = "words.txt";
  const auto windows = calibration_windows(counting(300), options);
  ASSERT_EQ(windows.size(), 1U);
  EXPECT_EQ(windows[0].size(), 300U);
  test::expect_error("words.txt has 31 tokens", [&] { calibration_windows(counting(31), options); });
  options.samples = 0;
  test::expect_error("at least 1 sample", [&] { calibration_windows(counting(300), options); });
}

TEST(CalibrationTest, MoreWindowsThanPlacesOverlap) {
  CalibrationOptions options;
  options.samples = 20;
  options.sequence_length = 98;
  for (const auto& window : calibration_windows(counting(100), options)) {
    EXPECT_GE(window.front(), 0);
    EXPECT_LE(window.back(), 99);
  }
}

}  // namespace
}  // namespace nibble
