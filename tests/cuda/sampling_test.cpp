// The choice of tokens on the GPU against the CPU's, whose own tests hold it against the definition: greedy with its
// ties and its NaNs, every filter and their combinations, their edges, rows of different wishes in one call, and
// replays.
#include "core/error.h"
#include "cuda/typed_matrix.h"
#include "ops/ops_fixture.h"

#include <algorithm>
#include <iterator>

namespace nibble::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Row {
  std::vector<float> logits;
  SampleParams params;
  std::int32_t position = 0;
  std::vector<std::uint8_t> seen = {};
};

// What both back ends are given, apart from the logits.
struct Wishes {
  std::vector<SampleParams> params;
  std::vector<std::int32_t> positions;
  std::vector<std::uint8_t> seen;

  explicit Wishes(const std::vector<Row>& rows) {
    for (const Row& row : rows) {
      params.push_back(row.params);
      positions.push_back(row.position);
      seen.insert(seen.end(), row.seen.begin(), row.seen.end());
    }
  }
};

std::vector<std::int32_t> on_cpu(const std::vector<Row>& rows) {
  Bench bench(2);
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto vocab = static_cast<std::int64_t>(rows[0].logits.size());
  Matrix logits(n, vocab);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < vocab; ++c) logits.at(r, c) = rows[r].logits[c];
  }
  const Wishes wishes(rows);
  std::vector<std::int32_t> next(rows.size(), -1);
  const auto workspace = cpu_device().allocate(bench.backend->sample_workspace(n, vocab), "workspace");
  bench.backend->sample({logits.ref(), wishes.params.data(), wishes.seen.empty() ? nullptr : wishes.seen.data(),
                         wishes.positions.data(), next.data(), workspace->data()},
                        *bench.stream);
  return next;
}

// The same call on the GPU, over poisoned scratch and with gaps between the rows; eager, or captured and replayed.
std::vector<std::int32_t> on_gpu(const std::vector<Row>& rows, bool captured = false) {
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto vocab = static_cast<std::int64_t>(rows[0].logits.size());
  TypedMatrix logits(*stream, DType::f32, n, vocab, 3, 1);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < vocab; ++c) logits.set(r, c, rows[r].logits[c]);
  }
  logits.upload();
  const Wishes wishes(rows);
  const OnDevice<SampleParams> params(*stream, wishes.params);
  const OnDevice<std::int32_t> positions(*stream, wishes.positions);
  const OnDevice<std::uint8_t> seen(*stream, wishes.seen);
  const OnDevice<std::int32_t> next(*stream, std::vector<std::int32_t>(rows.size(), -1));
  const OnDevice<std::uint8_t> workspace(*stream, std::vector<std::uint8_t>(gpu().sample_workspace(n, vocab), 0xff));
  const auto enqueue = [&] {
    gpu().sample({logits.ref(), params.data(), wishes.seen.empty() ? nullptr : seen.data(), positions.data(),
                  next.data(), reinterpret_cast<std::byte*>(workspace.data())},
                 *stream);
  };
  if (captured) {
    stream->begin_capture();
    enqueue();
    const std::unique_ptr<Graph> graph = stream->end_capture();
    for (int replay = 0; replay < 2; ++replay) {
      logits.upload();  // a draw changes them
      stream->launch(*graph);
    }
    stream->synchronize();
  } else {
    enqueue();
  }
  std::vector<std::int32_t> out = next.read();
  logits.download();
  logits.expect_surroundings_untouched();
  return out;
}

std::int32_t greedy(std::vector<float> logits) { return on_gpu({{std::move(logits), {}, 0}})[0]; }

TEST(CudaGreedy, TakesTheFirstLargest) {
  NIBBLE_NEEDS_GPU();
  EXPECT_EQ(greedy({1, 3, 2, 3}), 1);
  EXPECT_EQ(greedy({-5, -2, -2}), 1);
  EXPECT_EQ(greedy({7}), 0);
  EXPECT_EQ(greedy({-0.0f, 0.0f}), 0);
  EXPECT_EQ(greedy({0.0f, -0.0f}), 0);
  std::mt19937 random(1);
  std::uniform_int_distribution<int> coarse(0, 300);
  for (const std::int64_t vocab : {2, 17, 63, 64, 65, 100, 1000, 5003, 32000, 151'936, 152'065}) {
    std::vector<Row> rows(3);
    std::vector<std::int32_t> expected;
    for (Row& row : rows) {
      for (std::int64_t i = 0; i < vocab; ++i) row.logits.push_back(static_cast<float>(coarse(random)));
      expected.push_back(
          static_cast<std::int32_t>(std::max_element(row.logits.begin(), row.logits.end()) - row.logits.begin()));
    }
    EXPECT_EQ(on_gpu(rows), expected) << vocab << " logits";
    EXPECT_EQ(on_gpu(rows, true), expected) << vocab << " logits, replayed";
  }
}

// The only largest logit at every place where a part, a warp or a round of threads begins or ends.
TEST(CudaGreedy, FindsItAnywhere) {
  NIBBLE_NEEDS_GPU();
  constexpr std::int32_t kVocab = 32'003;
  std::vector<Row> rows;
  std::vector<std::int32_t> expected;
  for (const std::int32_t at : {0, 1, 31, 32, 255, 256, 257, 500, 501, 502, 1001, 1002, 16'000, 31'499, 31'500, 31'501,
                                31'999, 32'000, 32'002}) {
    Row row;
    row.logits.assign(kVocab, -3);
    row.logits[static_cast<std::size_t>(at)] = -2.5f;
    rows.push_back(row);
    expected.push_back(at);
  }
  EXPECT_EQ(on_gpu(rows), expected);
}

TEST(CudaGreedy, NaNNeverWins) {
  NIBBLE_NEEDS_GPU();
  EXPECT_EQ(greedy({kNaN, 1, kNaN, 2}), 3);
  EXPECT_EQ(greedy({kNaN, -kInf, -kInf}), 1);
  EXPECT_EQ(greedy({kNaN, kNaN}), 0);
  EXPECT_EQ(greedy({-kNaN, -1}), 1);
  EXPECT_EQ(greedy({1, kInf, kNaN, kInf}), 1);
  std::vector<float> long_row(3000, kNaN);
  long_row[2999] = -1e30f;
  EXPECT_EQ(greedy(long_row), 2999);
}

TEST(CudaGreedy, RepetitionPenaltyLowersSeenTokensOfEitherSign) {
  NIBBLE_NEEDS_GPU();
  SampleParams params;
  params.repetition_penalty = 2;
  // 3 / 2 < 2, and -1 * 2 < -1.5.
  EXPECT_EQ(on_gpu({{{3, 2, 0}, params, 0, {1, 0, 0}}})[0], 1);
  EXPECT_EQ(on_gpu({{{-1, -1.5f, -9}, params, 0, {1, 0, 0}}})[0], 1);
  EXPECT_EQ(on_gpu({{{3, 2, 0}, {}, 0, {1, 0, 0}}})[0], 0);
}

Row random_row(std::int64_t vocab, float sigma, std::mt19937& random) {
  Row row;
  std::normal_distribution<float> normal(0, sigma);
  for (std::int64_t i = 0; i < vocab; ++i) row.logits.push_back(normal(random));
  return row;
}

// Wishes of many kinds: each filter alone, all of them, none, and greedy ones between.
std::vector<SampleParams> kinds_of_params() {
  SampleParams plain;
  plain.temperature = 1;
  std::vector<SampleParams> out(12, plain);
  out[1].temperature = 0;
  out[2].temperature = 0.6f;
  out[3].top_k = 5;
  out[4].top_k = 64;
  out[5].top_k = 200;  // more than the parts that a row is searched in
  out[6].top_p = 0.9f;
  out[7].top_p = 0.3f;
  out[8].min_p = 0.1f;
  out[9].repetition_penalty = 1.3f;
  out[10].temperature = 0.7f;
  out[10].top_k = 40;
  out[10].top_p = 0.95f;
  out[10].min_p = 0.02f;
  out[10].repetition_penalty = 1.1f;
  out[11].temperature = 2.5f;
  out[11].top_p = 0.98f;
  return out;
}

// Both back ends round exponentials and sums in ways of their own, so that a draw that falls within some 1e-7 of the
// border between two tokens may go either way: of a thousand draws one or two at most.
void expect_same_draws(const std::vector<Row>& rows, const std::string& what) {
  const std::vector<std::int32_t> expected = on_cpu(rows);
  const std::vector<std::int32_t> found = on_gpu(rows);
  EXPECT_EQ(on_gpu(rows), found) << what << ": a second call gives other tokens";
  EXPECT_EQ(on_gpu(rows, true), found) << what << ": a replay gives other tokens";
  std::size_t different = 0;
  std::string list;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (found[i] == expected[i]) continue;
    ++different;
    list += " row " + std::to_string(i) + ": " + std::to_string(found[i]) + " not " + std::to_string(expected[i]);
  }
  EXPECT_LE(different, rows.size() / 100) << what << ": " << different << " of " << rows.size() << ";" << list;
}

TEST(CudaDraws, AreTheCpus) {
  NIBBLE_NEEDS_GPU();
  std::mt19937 random(3);
  const std::vector<SampleParams> kinds = kinds_of_params();
  for (const std::int64_t vocab : {1, 2, 7, 33, 300, 1025, 5003}) {
    std::vector<Row> rows;
    const Row base = random_row(vocab, 2, random);
    for (std::int32_t i = 0; i < 300; ++i) {
      Row row = base;
      row.params = kinds[static_cast<std::size_t>(i) % kinds.size()];
      row.params.seed = static_cast<std::uint64_t>(i % 7) * 0x123456789abcdefu;
      row.position = i / 3;
      for (std::int64_t c = 0; c < vocab; ++c) row.seen.push_back(c % 3 == 0 ? 1 : 0);
      rows.push_back(std::move(row));
    }
    expect_same_draws(rows, std::to_string(vocab) + " logits");
  }
}

// As many logits as models have; peaked as theirs are, and flat ones, of which more matter than shared memory holds.
TEST(CudaDraws, AreTheCpusOverLargeVocabularies) {
  NIBBLE_NEEDS_GPU();
  std::mt19937 random(4);
  const std::vector<SampleParams> kinds = kinds_of_params();
  for (const std::int64_t vocab : {32'000, 152'064}) {
    for (const float sigma : {3.0f, 0.5f}) {
      std::vector<Row> rows;
      for (std::int32_t i = 0; i < 36; ++i) {
        Row row = random_row(vocab, sigma, random);
        row.params = kinds[static_cast<std::size_t>(i) % kinds.size()];
        row.params.seed = static_cast<std::uint64_t>(i);
        row.position = 1000 + i;
        for (std::int64_t c = 0; c < vocab; ++c) row.seen.push_back(c % 5 == 0 ? 1 : 0);
        rows.push_back(std::move(row));
      }
      const std::vector<std::int32_t> expected = on_cpu(rows);
      const std::vector<std::int32_t> found = on_gpu(rows);
      // A flat row of so many tokens has a border every 1e-5, where rounding decides now and then; the token beyond it
      // is the next one that no filter took.
      std::size_t different = 0;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        if (found[i] == expected[i]) continue;
        ++different;
        EXPECT_LT(std::abs(found[i] - expected[i]), vocab / 100) << "row " << i << " of " << vocab;
      }
      EXPECT_LE(different, 2u) << vocab << " logits of deviation " << sigma;
      EXPECT_EQ(on_gpu(rows, true), found);
    }
  }
}

TEST(CudaDraws, ManyEqualLogits) {
  NIBBLE_NEEDS_GPU();
  // Of few different values, so that thresholds of every filter fall among equal ones, which top_p tells apart by their
  // index, and top_k keeps.
  std::mt19937 random(5);
  std::uniform_int_distribution<int> coarse(0, 4);
  const std::vector<SampleParams> kinds = kinds_of_params();
  for (const std::int64_t vocab : {10, 100, 3000, 20'000}) {
    std::vector<Row> rows;
    for (std::int32_t i = 0; i < 120; ++i) {
      Row row;
      for (std::int64_t c = 0; c < vocab; ++c) row.logits.push_back(static_cast<float>(coarse(random)));
      row.params = kinds[static_cast<std::size_t>(i) % kinds.size()];
      row.params.repetition_penalty = 1;
      row.params.seed = 11;
      row.position = i;
      rows.push_back(std::move(row));
    }
    expect_same_draws(rows, std::to_string(vocab) + " coarse logits");
  }
  // All equal: nothing but ties, more than shared memory holds.
  std::vector<Row> rows;
  for (std::int32_t i = 0; i < 100; ++i) {
    Row row;
    row.logits.assign(10'000, 1.5f);
    row.params.temperature = 1;
    row.params.top_p = 0.001f + 0.0099f * static_cast<float>(i);
    row.params.top_k = i % 4 == 0 ? 50 : 0;
    row.position = i;
    rows.push_back(std::move(row));
  }
  expect_same_draws(rows, "equal logits");
}

TEST(CudaDraws, EdgesOfTheFilters) {
  NIBBLE_NEEDS_GPU();
  SampleParams params;
  params.temperature = 1;
  std::vector<Row> cases(9);
  for (Row& row : cases) {
    row.logits = {1, 4, 4, 2, 4, -kInf, 0};
    row.params = params;
  }
  cases[0].params.top_k = 1;     // the ties with the largest stay
  cases[1].params.top_k = 100;   // more than there are
  cases[2].params.top_p = 0;     // the first largest stays, and it alone
  cases[3].params.top_p = 0.4f;  // two of three equal ones
  cases[4].params.min_p = 1;     // all that equal the largest
  cases[5].params.min_p = 2;     // none
  cases[6].params.top_p = -0.5f;
  cases[7].params.temperature = kInf;
  cases[8].params.temperature = 1e-38f;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    std::vector<Row> rows(100, cases[i]);
    for (std::int32_t r = 0; r < 100; ++r) rows[static_cast<std::size_t>(r)].position = r;
    expect_same_draws(rows, "case " + std::to_string(i));
  }
  Row row;
  row.params = params;
  for (const std::vector<float>& logits : std::vector<std::vector<float>>{
           {kNaN, 1, kNaN, 1}, {-kInf, -kInf, kNaN}, {1, kInf, 2}, {kNaN, kNaN, kNaN}, {-0.0f, 0.0f, -1}, {1, 3, 2}}) {
    row.logits = logits;
    for (const std::int32_t top_k : {0, 1, 2}) {
      row.params.top_k = top_k;
      std::vector<Row> rows(50, row);
      for (std::int32_t r = 0; r < 50; ++r) rows[static_cast<std::size_t>(r)].position = r;
      EXPECT_EQ(on_gpu(rows), on_cpu(rows)) << "first logit " << logits[0] << ", top_k " << top_k;
    }
  }
}

TEST(CudaDraws, DependOnSeedAndPositionAlone) {
  NIBBLE_NEEDS_GPU();
  std::mt19937 random(6);
  const Row base = random_row(3000, 1.5f, random);
  std::vector<Row> rows;
  for (std::int32_t i = 0; i < 12; ++i) {
    Row row = base;
    row.params.temperature = 1.5f;
    row.params.top_p = 0.95f;
    row.params.seed = static_cast<std::uint64_t>(i % 3);
    row.position = i / 3;
    rows.push_back(row);
  }
  const std::vector<std::int32_t> together = on_gpu(rows);
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(on_gpu({rows[i]})[0], together[i]);
  std::vector<std::int32_t> distinct = together;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  EXPECT_GT(distinct.size(), 8u) << "seeds and positions must change the draw";
}

// One capture serves greedy and drawn steps: parameters and positions are read when it is replayed.
TEST(CudaDraws, ParametersAreReadAtReplay) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 random(7);
  const Row base = random_row(500, 1.5f, random);
  TypedMatrix logits(*stream, DType::f32, 1, 500);
  const OnDevice<SampleParams> params(*stream, std::vector<SampleParams>(1));
  const OnDevice<std::int32_t> positions(*stream, std::vector<std::int32_t>{0});
  const OnDevice<std::int32_t> next(*stream, std::vector<std::int32_t>{-1});
  const OnDevice<std::uint8_t> workspace(*stream, std::vector<std::uint8_t>(gpu().sample_workspace(1, 500), 0xff));
  stream->begin_capture();
  gpu().sample({logits.ref(), params.data(), nullptr, positions.data(), next.data(),
                reinterpret_cast<std::byte*>(workspace.data())},
               *stream);
  const std::unique_ptr<Graph> graph = stream->end_capture();
  EXPECT_EQ(next.read()[0], -1);
  for (std::int32_t i = 0; i < 20; ++i) {
    Row now = base;
    std::rotate(now.logits.begin(), now.logits.begin() + 31 * i % 500, now.logits.end());
    now.params.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    now.position = i;
    for (std::int64_t c = 0; c < 500; ++c) logits.set(0, c, now.logits[static_cast<std::size_t>(c)]);
    logits.upload();
    stream->copy_to_device(params.data(), &now.params, sizeof now.params);
    stream->copy_to_device(positions.data(), &now.position, sizeof now.position);
    stream->synchronize();
    stream->launch(*graph);
    EXPECT_EQ(next.read()[0], on_gpu({now})[0]) << "step " << i;
  }
}

TEST(CudaSample, RefusesOtherLogitsThanF32) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  const TypedMatrix half(*stream, DType::f16, 1, 8);
  EXPECT_THROW(gpu().sample({half.ref(), nullptr, nullptr, nullptr, nullptr, nullptr}, *stream), Error);
}

}  // namespace
}  // namespace nibble::test
