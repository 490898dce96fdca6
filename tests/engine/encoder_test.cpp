// The encoder's engine against transformers: both paths, ragged batches, heads, and what it refuses.
#include "engine/encoder.h"

#include "core/error.h"
#include "support/expect_error.h"
#include "support/golden_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

namespace nibble {
namespace {

using test::GoldenEncoder;

EncoderBatch batch_of(const GoldenEncoder& golden) {
  return {golden.sequences, golden.length, golden.ids, golden.lengths, golden.types};
}

EncoderOptions options_of(EncoderPath path, DType compute = DType::f32, std::int64_t pass_rows = 0) {
  EncoderOptions options;
  options.path = path;
  options.compute = compute;
  options.pass_rows = pass_rows;
  return options;
}

double difference(const GoldenEncoder& golden, const std::vector<float>& a, const std::vector<float>& b) {
  return largest_difference(batch_of(golden), a, b);
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  const std::vector<std::int32_t> one = {1};
  return largest_difference({1, 1, {}, one, {}}, a, b);
}

double head_difference(const GoldenEncoder& golden, const EncoderEngine& engine, const EncoderResult& result) {
  return engine.head_has_rows() ? difference(golden, result.head, golden.head) : difference(result.head, golden.head);
}

// float32 in another order of sums moves these models' values by some 1e-6 of the largest.
constexpr double kTolerance = 1e-4;

class GoldenEncoderModel : public testing::TestWithParam<std::string> {};

TEST_P(GoldenEncoderModel, BothPathsGiveWhatTransformersGives) {
  const GoldenEncoder golden = test::read_golden_encoder(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    SCOPED_TRACE(name_of(path));
    EncoderEngine engine(checkpoint, options_of(path));
    EXPECT_EQ(engine.head_columns() > 0, !golden.head.empty());
    EncoderResult result;
    engine.forward(batch_of(golden), {.hidden = true, .head = !golden.head.empty()}, result);
    EXPECT_LT(difference(golden, result.hidden, golden.hidden), kTolerance);
    if (!golden.head.empty()) {
      EXPECT_LT(head_difference(golden, engine, result), kTolerance);
    }
  }
}

TEST_P(GoldenEncoderModel, SmallPassesAndSequencesAloneGiveTheSame) {
  const GoldenEncoder golden = test::read_golden_encoder(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  EncoderEngine engine(checkpoint, options_of(EncoderPath::fast, DType::f32, golden.length));
  EncoderResult result;
  engine.forward(batch_of(golden), {.hidden = true, .head = !golden.head.empty()}, result);
  EXPECT_LT(difference(golden, result.hidden, golden.hidden), kTolerance);
  if (!golden.head.empty()) {
    EXPECT_LT(head_difference(golden, engine, result), kTolerance);
  }

  const auto width = static_cast<std::size_t>(engine.program().hidden);
  for (std::int64_t s = 0; s < golden.sequences; ++s) {
    const auto length = static_cast<std::size_t>(golden.lengths[static_cast<std::size_t>(s)]);
    const auto first = static_cast<std::size_t>(s * golden.length);
    const std::span ids(golden.ids);
    const std::span types(golden.types);
    EncoderResult alone;
    engine.forward({1, static_cast<std::int64_t>(length), ids.subspan(first, length),
                    std::span(golden.lengths).subspan(static_cast<std::size_t>(s), 1),
                    types.empty() ? types : types.subspan(first, length)},
                   {}, alone);
    const std::vector<float> expected(golden.hidden.begin() + static_cast<std::ptrdiff_t>(first * width),
                                      golden.hidden.begin() + static_cast<std::ptrdiff_t>((first + length) * width));
    EXPECT_LT(difference(alone.hidden, expected), kTolerance) << "sequence " << s;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenEncoderModel, testing::ValuesIn(test::golden_encoder_names()),
                         [](const testing::TestParamInfo<std::string>& param) { return param.param; });

// The rows of a head that are asked for are those that it gives where all are wanted, in one pass or in several.
TEST(EncoderEngine, HeadsRunOnTheRowsAskedFor) {
  for (const std::string name : {"bert_mlm", "bert_token_classification"}) {
    const GoldenEncoder golden = test::read_golden_encoder(name);
    const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
    const auto last = static_cast<std::int32_t>(golden.sequences - 1);
    const std::vector<TokenPlace> places = {
        {0, 0}, {0, golden.lengths[0] - 1}, {last, 0}, {last, golden.lengths[static_cast<std::size_t>(last)] - 1}};
    ASSERT_GT(last, 0);
    for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
      for (const std::int64_t pass_rows : {std::int64_t{0}, golden.length}) {
        SCOPED_TRACE(name + ", " + std::string(name_of(path)));
        EncoderEngine engine(checkpoint, options_of(path, DType::f32, pass_rows));
        EncoderResult some, all;
        engine.forward(batch_of(golden), {.hidden = false, .head = true, .head_rows = places}, some);
        const std::size_t taken = engine.plan().total();
        engine.forward(batch_of(golden), {.hidden = false, .head = true}, all);
        EXPECT_GE(engine.plan().total(), taken);
        // On this path logits of all rows are the most that is alive at once.
        if (name == "bert_mlm" && path == EncoderPath::eager) {
          EXPECT_GT(engine.plan().total(), taken);
        }
        const auto columns = static_cast<std::size_t>(engine.head_columns());
        ASSERT_EQ(some.head.size(), places.size() * columns);
        for (std::size_t i = 0; i < places.size(); ++i) {
          const auto first = static_cast<std::size_t>(places[i].sequence * golden.length + places[i].position);
          const std::vector<float> one(some.head.begin() + static_cast<std::ptrdiff_t>(i * columns),
                                       some.head.begin() + static_cast<std::ptrdiff_t>((i + 1) * columns));
          const std::vector<float> expected(all.head.begin() + static_cast<std::ptrdiff_t>(first * columns),
                                            all.head.begin() + static_cast<std::ptrdiff_t>((first + 1) * columns));
          EXPECT_LT(difference(one, expected), kTolerance) << "row " << i;
        }
        // A sequence without a row among others that have one.
        const std::vector<TokenPlace> one = {{last, 0}};
        engine.forward(batch_of(golden), {.hidden = true, .head = true, .head_rows = one}, some);
        EXPECT_EQ(some.head.size(), columns);
        EXPECT_LT(difference(golden, some.hidden, golden.hidden), kTolerance);
      }
    }
  }
}

TEST(EncoderEngine, RefusesRowsOfAHeadThatThereAreNot) {
  const GoldenEncoder golden = test::read_golden_encoder("bert_mlm");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast));
  const auto run = [&](std::vector<TokenPlace> places, bool head = true) {
    EncoderResult result;
    engine.forward(batch_of(golden), {.hidden = false, .head = head, .head_rows = places}, result);
  };
  const auto sequences = static_cast<std::int32_t>(golden.sequences);
  test::expect_error("token -1 of sequence 0 was asked for", [&] { run({{0, -1}}); });
  test::expect_error("of sequence -1 was asked for", [&] { run({{-1, 0}}); });
  test::expect_error("which the batch does not have", [&] { run({{sequences, 0}}); });
  test::expect_error("which the batch does not have", [&] { run({{0, golden.lengths[0]}}); });
  test::expect_error("behind that of token 1 of sequence 0", [&] { run({{0, 1}, {0, 1}}); });
  test::expect_error("in the order of the batch", [&] { run({{1, 0}, {0, 1}}); });
  test::expect_error("but not what the head gives", [&] { run({{0, 0}}, false); });
  const GoldenEncoder other = test::read_golden_encoder("bert_sequence_classification");
  EncoderEngine classifier(std::make_shared<const Checkpoint>(other.folder), options_of(EncoderPath::fast));
  const std::vector<TokenPlace> first = {{0, 0}};
  EncoderResult result;
  test::expect_error("gives one for each sequence", [&] {
    classifier.forward(batch_of(other), {.hidden = false, .head = true, .head_rows = first}, result);
  });
}

TEST(EncoderEngine, PaddingComesBackAsZerosOnTheFastPath) {
  const GoldenEncoder golden = test::read_golden_encoder("bert");
  EncoderEngine engine(std::make_shared<const Checkpoint>(golden.folder), options_of(EncoderPath::fast));
  EncoderResult result;
  result.hidden.assign(golden.hidden.size(), NAN);
  engine.forward(batch_of(golden), {}, result);
  const auto width = static_cast<std::size_t>(engine.program().hidden);
  for (std::size_t i = 0; i < result.hidden.size(); ++i) {
    const std::size_t cell = i / width;
    const auto length = static_cast<std::size_t>(golden.length);
    if (cell % length >= static_cast<std::size_t>(golden.lengths[cell / length])) {
      ASSERT_EQ(result.hidden[i], 0.0F);
    }
  }
}

TEST(EncoderEngine, PathsAgreeOnRaggedBatches) {
  const auto checkpoint = std::make_shared<const Checkpoint>(test::golden_encoders() / "bert");
  EncoderEngine eager(checkpoint, options_of(EncoderPath::eager));
  EncoderEngine fast(checkpoint, options_of(EncoderPath::fast));
  const std::int64_t longest = fast.max_length();
  const auto vocab = static_cast<std::int32_t>(fast.program().vocab);
  // One sequence; length 1; all full; one very long among short.
  for (const std::vector<std::int32_t>& lengths :
       {std::vector<std::int32_t>{static_cast<std::int32_t>(longest)}, std::vector<std::int32_t>{1, 1, 1},
        std::vector<std::int32_t>(3, static_cast<std::int32_t>(longest)),
        std::vector<std::int32_t>{2, 1, static_cast<std::int32_t>(longest), 3, 1}}) {
    GoldenEncoder batch;
    batch.sequences = static_cast<std::int64_t>(lengths.size());
    batch.length = longest;
    batch.lengths = lengths;
    for (std::int64_t i = 0; i < batch.sequences * longest; ++i)
      batch.ids.push_back(static_cast<std::int32_t>(i * 7 % vocab));
    EncoderResult a, b;
    eager.forward(batch_of(batch), {}, a);
    fast.forward(batch_of(batch), {}, b);
    EXPECT_LT(difference(batch, b.hidden, a.hidden), kTolerance);
  }
}

TEST(EncoderEngine, Bf16StaysCloseToFloat) {
  const GoldenEncoder golden = test::read_golden_encoder("bert");
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
    EncoderEngine engine(checkpoint, options_of(path, DType::bf16));
    EncoderResult result;
    engine.forward(batch_of(golden), {}, result);
    const double d = difference(golden, result.hidden, golden.hidden);
    EXPECT_LT(d, 0.2);   // bf16 rounds an operand by up to 0.4%, which this model of large random weights amplifies
    EXPECT_GT(d, 1e-5);  // and it really is bf16
  }
}

TEST(EncoderEngine, SharedBlocksAreKeptOnce) {
  const auto checkpoint = std::make_shared<const Checkpoint>(test::golden_encoders() / "albert");
  const EncoderEngine engine(checkpoint, options_of(EncoderPath::fast));
  // All blocks have the weights of one.
  EXPECT_LT(engine.plan().weights, checkpoint->total_bytes() + 64 * 1024);
}

TEST(EncoderEngine, RefusesWithASentence) {
  const auto checkpoint = std::make_shared<const Checkpoint>(test::golden_encoders() / "bert");
  EncoderEngine engine(checkpoint, options_of(EncoderPath::fast));
  const std::vector<std::int32_t> ids(6, 1), lengths = {3, 2};
  EncoderResult result;
  const auto run = [&](std::span<const std::int32_t> id, std::span<const std::int32_t> length,
                       std::span<const std::int32_t> types = {}) {
    engine.forward({2, 3, id, length, types}, {}, result);
  };
  run(ids, lengths);
  const std::vector<std::int32_t> outside(6, 100000), zero = {3, 0}, long_one = {3, 4}, types(6, 9);
  test::expect_error("token id 100000", [&] { run(outside, lengths); });
  test::expect_error("length of 0; expected 1 to 3", [&] { run(ids, zero); });
  test::expect_error("length of 4", [&] { run(ids, long_one); });
  test::expect_error("token type 9", [&] { run(ids, lengths, types); });
  test::expect_error("positions that", [&] { engine.reserve(1, 100000); });
  test::expect_error("encoders are bert", [&] {
    EncoderEngine(std::make_shared<const Checkpoint>(test::golden_folder() / "llama_mha"), EncoderOptions{});
  });
  test::expect_error("which generates no text", [&] { Engine(checkpoint, EngineOptions{}); });
  test::expect_error("has no head", [&] {
    EncoderOptions without;
    without.head = false;
    EncoderEngine headless(checkpoint, without);
    headless.forward({2, 3, ids, lengths, {}}, {.hidden = false, .head = true}, result);
  });
}

}  // namespace
}  // namespace nibble
