// The encoder benchmark's batches, and that it measures only what agrees.
#include "bench/encoder_bench.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <set>

namespace nibble {
namespace {

std::filesystem::path model() { return std::filesystem::path(NIBBLE_TEST_DATA) / "golden_encoders" / "bert"; }

TEST(DrawLengths, WithoutPaddingAllAreFull) {
  EXPECT_EQ(draw_lengths(3, 64, 0, 10, 1), (std::vector<std::int32_t>{64, 64, 64}));
}

TEST(DrawLengths, FollowTheNormalAndItsLimits) {
  const std::vector<std::int32_t> many = draw_lengths(10000, 256, 0.5, 10, 7);
  const double mean = std::accumulate(many.begin(), many.end(), 0.0) / 10000;
  // Cutting to whole numbers takes half a token.
  EXPECT_NEAR(mean, 127.5, 0.5);
  double squares = 0;
  for (const std::int32_t n : many) squares += (n - mean) * (n - mean);
  EXPECT_NEAR(std::sqrt(squares / 10000), 10, 0.3);
  EXPECT_EQ(many, draw_lengths(10000, 256, 0.5, 10, 7));
  EXPECT_NE(many, draw_lengths(10000, 256, 0.5, 10, 8));

  const std::vector<std::int32_t> cut = draw_lengths(1000, 16, 0.75, 20, 1);
  EXPECT_EQ(*std::min_element(cut.begin(), cut.end()), 1);
  EXPECT_EQ(*std::max_element(cut.begin(), cut.end()), 16);
}

TEST(EncoderCell, CountsItsTokens) {
  const EncoderCell cell{2, 10, 0.5, {4, 6}};
  EXPECT_EQ(cell.tokens(), 10);
  EXPECT_DOUBLE_EQ(cell.padded_share(), 0.5);
}

class Lengths : public testing::Test {
 protected:
  LengthsFile read(const std::string& text) {
    const auto file = folder_.path() / "lengths";
    std::ofstream(file) << text;
    return LengthsFile(file);
  }
  test::TempFolder folder_;
};

TEST_F(Lengths, OfTextsAreDrawnAndCut) {
  const LengthsFile file = read("3\n70\r\n\n12\n");
  EXPECT_TRUE(file.cells().empty());
  const std::vector<std::int32_t> drawn = file.draw(200, 64, 1);
  for (const std::int32_t n : drawn) EXPECT_TRUE(n == 3 || n == 12 || n == 64) << n;
  EXPECT_EQ(std::set<std::int32_t>(drawn.begin(), drawn.end()).size(), 3u);
}

TEST_F(Lengths, OfBatchesAreThose) {
  const LengthsFile file = read("batch_size,seqlen,padding,lengths\n2,64,0.5,30 34\n1,8,0,8\n");
  ASSERT_EQ(file.cells().size(), 2u);
  EXPECT_EQ(file.cells()[0].lengths, (std::vector<std::int32_t>{30, 34}));
  EXPECT_EQ(file.cells()[1].batch, 1);
  EXPECT_DOUBLE_EQ(file.cells()[0].padding, 0.5);
}

TEST_F(Lengths, ThatAreNoneAreRefused) {
  test::expect_error("line 2: \"x\" is no number", [&] { read("5\nx\n"); });
  test::expect_error("a length of 0", [&] { read("0\n"); });
  test::expect_error("a length of 99999999", [&] { read("99999999\n"); });
  test::expect_error("holds no lengths", [&] { read("\n\n"); });
  test::expect_error("expected 4 fields", [&] { read("batch_size,seqlen,padding,lengths\n1,2\n"); });
  test::expect_error("expected 2 lengths of at most 8",
                     [&] { read("batch_size,seqlen,padding,lengths\n2,8,0,9 1\n"); });
}

TEST(EncoderBenchTest, TimesBothPathsOnOneBatch) {
  EncoderBenchOptions options;
  options.compute = DType::f32;
  options.num_batches = 4;
  EncoderBench bench(std::make_shared<const Checkpoint>(model()), options);
  double last = 0;
  const EncoderCell cell{3, 16, 0.5, {1, 16, 7}};
  const EncoderCellResult result = bench.run(cell, [&](double share) { last = share; });
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(result.fast.seconds.size(), 4u);
  EXPECT_EQ(result.eager.seconds.size(), 4u);
  EXPECT_DOUBLE_EQ(last, 1);
  EXPECT_LT(result.difference, 1e-4);
  EXPECT_GT(result.cost.flops, 0);
  EXPECT_GE(result.fast.peak_memory, bench.fast().plan().weights);
  EXPECT_GT(result.eager.planned_memory, bench.fast().plan().weights);
  EXPECT_FALSE(result.copy.has_value());
}

TEST(EncoderBenchTest, TimesRecordings) {
  EncoderBenchOptions options;
  options.compute = DType::f32;
  options.num_batches = 2;
  for (const char* name : {"wav2vec2", "wav2vec2_stable", "whisper_encoder"}) {
    SCOPED_TRACE(name);
    EncoderBench bench(std::make_shared<const Checkpoint>(model().parent_path() / name), options);
    const bool fixed = std::string(name) == "whisper_encoder";
    const std::int64_t steps = fixed ? 28 : 700;
    const EncoderCell drawn{2, steps, 0.25,
                            fixed ? std::vector<std::int32_t>{28, 28} : std::vector<std::int32_t>{1, 700}};
    const EncoderCell cell = audio_cell(bench.fast(), drawn);
    EXPECT_EQ(cell.steps, steps);
    EXPECT_EQ(cell.length, bench.fast().frames(steps));
    EXPECT_EQ(cell.lengths[1], cell.length);
    // The first of the others is as short as can be.
    EXPECT_EQ(cell.lengths[0], fixed ? cell.length : 1);
    const EncoderCellResult result = bench.run(cell, [](double) {});
    EXPECT_EQ(result.error, "");
    EXPECT_EQ(result.eager.seconds.size(), 2u);
    EXPECT_LT(result.difference, 1e-4);
    EXPECT_FALSE(bench.profile(cell).empty());
    // The operations of the convolutions count: those of the last one alone are 2 * window * channels for each row.
    EXPECT_GT(result.cost.flops, 2.0 * 40 * 20 * static_cast<double>(cell.tokens()));
    EncoderCell wrong = drawn;
    wrong.length = fixed ? 27 : 29;
    test::expect_error("recordings of", [&] { audio_cell(bench.fast(), wrong); });
  }
}

TEST(EncoderBenchTest, ACellThatCannotRunIsARow) {
  EncoderBenchOptions options;
  options.eager = false;
  EncoderBench bench(std::make_shared<const Checkpoint>(model()), options);
  const EncoderCellResult result = bench.run({1, 100000, 0, {100000}}, [](double) {});
  EXPECT_NE(result.error.find("positions"), std::string::npos) << result.error;
  EXPECT_TRUE(result.fast.seconds.empty());
}

}  // namespace
}  // namespace nibble
