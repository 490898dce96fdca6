// The choice of tokens: greedy with its ties and its NaNs, the filters one by one and in transformers' order, and the
// frequencies of draws against the probabilities they should have.
#include "ops_fixture.h"

#include <algorithm>
#include <numeric>

namespace nibble::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Row {
  std::vector<float> logits;
  SampleParams params;
  std::int32_t position = 0;
  std::vector<std::uint8_t> seen;
};

std::vector<std::int32_t> sample(const std::vector<Row>& rows, int threads = 2) {
  Bench bench(threads);
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto vocab = static_cast<std::int64_t>(rows[0].logits.size());
  Matrix logits(n, vocab, 3);
  std::vector<SampleParams> params;
  std::vector<std::uint8_t> seen;
  std::vector<std::int32_t> positions;
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < vocab; ++c) logits.at(r, c) = rows[r].logits[c];
    params.push_back(rows[r].params);
    positions.push_back(rows[r].position);
    seen.insert(seen.end(), rows[r].seen.begin(), rows[r].seen.end());
  }
  std::vector<std::int32_t> next(rows.size(), -1);
  const auto workspace = cpu_device().allocate(bench.backend->sample_workspace(n, vocab), "workspace");
  std::memset(workspace->data(), 0xff, workspace->size());
  bench.backend->sample({logits.ref(), params.data(), seen.empty() ? nullptr : seen.data(), positions.data(),
                         next.data(), workspace->data()},
                        *bench.stream);
  logits.expect_gaps_untouched();
  return next;
}

std::int32_t greedy(std::vector<float> logits, int threads = 2) {
  return sample({{std::move(logits), {}, 0, {}}}, threads)[0];
}

TEST(Greedy, TakesTheFirstLargest) {
  EXPECT_EQ(greedy({1, 3, 2, 3}), 1);
  EXPECT_EQ(greedy({-5, -2, -2}), 1);
  EXPECT_EQ(greedy({7}), 0);
  EXPECT_EQ(greedy({-0.0f, 0.0f}), 0);
  std::mt19937 random(1);
  std::uniform_int_distribution<int> coarse(0, 300);
  for (const std::int64_t vocab : {17, 100, 1000, 5003}) {
    for (const int threads : kThreadCounts) {
      std::vector<float> logits;
      for (std::int64_t i = 0; i < vocab; ++i) logits.push_back(static_cast<float>(coarse(random)));
      const auto first = std::max_element(logits.begin(), logits.end()) - logits.begin();
      EXPECT_EQ(greedy(logits, threads), first) << vocab << " logits, " << threads << " threads";
    }
  }
}

TEST(Greedy, NaNNeverWins) {
  EXPECT_EQ(greedy({kNaN, 1, kNaN, 2}), 3);
  EXPECT_EQ(greedy({kNaN, -kInf, -kInf}), 1);
  EXPECT_EQ(greedy({kNaN, kNaN}), 0);
  EXPECT_EQ(greedy({1, kInf, kNaN, kInf}), 1);
  std::vector<float> long_row(3000, kNaN);
  long_row[2999] = -1e30f;
  EXPECT_EQ(greedy(long_row), 2999);
}

TEST(Greedy, RepetitionPenaltyLowersSeenTokensOfEitherSign) {
  SampleParams params;
  params.repetition_penalty = 2;
  // 3 / 2 < 2, and -1 * 2 < -1.5.
  EXPECT_EQ(sample({{{3, 2, 0}, params, 0, {1, 0, 0}}})[0], 1);
  EXPECT_EQ(sample({{{-1, -1.5f, -9}, params, 0, {1, 0, 0}}})[0], 1);
  EXPECT_EQ(sample({{{3, 2, 0}, {}, 0, {1, 0, 0}}})[0], 0);
}

// The probabilities that transformers' processors leave, in their order: penalty, temperature, top_k, top_p, min_p.
std::vector<double> expected_probabilities(const Row& row) {
  const std::size_t n = row.logits.size();
  const SampleParams& p = row.params;
  std::vector<double> scores(row.logits.begin(), row.logits.end());
  for (std::size_t i = 0; i < n; ++i) {
    if (!row.seen.empty() && row.seen[i] != 0)
      scores[i] = scores[i] > 0 ? scores[i] / p.repetition_penalty : scores[i] * p.repetition_penalty;
    scores[i] /= p.temperature;
  }
  const auto softmax = [n](const std::vector<double>& from) {
    const double max = *std::max_element(from.begin(), from.end());
    std::vector<double> out;
    for (const double s : from) out.push_back(std::exp(s - max));
    const double sum = std::accumulate(out.begin(), out.end(), 0.0);
    for (std::size_t i = 0; i < n; ++i) out[i] /= sum;
    return out;
  };
  if (p.top_k > 0 && p.top_k < static_cast<std::int32_t>(n)) {
    std::vector<double> sorted = scores;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& s : scores) s = s < sorted[p.top_k - 1] ? -kInf : s;
  }
  if (p.top_p < 1) {
    const std::vector<double> probabilities = softmax(scores);
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    double before = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (i > 0 && before >= p.top_p) scores[order[i]] = -kInf;
      before += probabilities[order[i]];
    }
  }
  const std::vector<double> probabilities = softmax(scores);
  const double top = *std::max_element(probabilities.begin(), probabilities.end());
  for (std::size_t i = 0; i < n; ++i) {
    if (probabilities[i] < p.min_p * top) scores[i] = -kInf;
  }
  return softmax(scores);
}

// Draws at many positions: no token of probability 0, and a chi-square below its mean by less than 5 deviations. Seeds
// and positions are fixed, so that the result is too.
void expect_distribution(const Row& row) {
  constexpr int kDraws = 4000;
  constexpr int kBatch = 100;
  const std::vector<double> expected = expected_probabilities(row);
  std::vector<int> counts(expected.size(), 0);
  for (int first = 0; first < kDraws; first += kBatch) {
    std::vector<Row> rows(kBatch, row);
    for (int i = 0; i < kBatch; ++i) rows[i].position = first + i;
    for (const std::int32_t token : sample(rows)) {
      ASSERT_GE(token, 0);
      ASSERT_LT(token, static_cast<std::int32_t>(expected.size()));
      ++counts[token];
    }
  }
  double chi = 0;
  double freedom = -1;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is filtered out";
      continue;
    }
    const double mean = expected[i] * kDraws;
    chi += (counts[i] - mean) * (counts[i] - mean) / mean;
    freedom += 1;
  }
  if (freedom == 0) {
    EXPECT_EQ(chi, 0);
  } else {
    EXPECT_LT(chi, freedom + 5 * std::sqrt(2 * freedom)) << "with " << freedom << " degrees of freedom";
  }
}

Row random_row(std::int64_t vocab, const SampleParams& params) {
  Row row;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1.5f);
  for (std::int64_t i = 0; i < vocab; ++i) row.logits.push_back(normal(random));
  row.params = params;
  return row;
}

TEST(Draws, FollowTheProbabilities) {
  SampleParams plain;
  plain.temperature = 1;
  plain.seed = 42;
  expect_distribution(random_row(40, plain));
  expect_distribution(random_row(7, plain));
  expect_distribution(random_row(1, plain));
  SampleParams hot = plain;
  hot.temperature = 2.5f;
  expect_distribution(random_row(130, hot));
  SampleParams top_k = plain;
  top_k.top_k = 5;
  expect_distribution(random_row(60, top_k));
  SampleParams top_p = plain;
  top_p.top_p = 0.7f;
  expect_distribution(random_row(60, top_p));
  SampleParams min_p = plain;
  min_p.min_p = 0.2f;
  expect_distribution(random_row(60, min_p));
}

TEST(Draws, CombineAllFiltersInOrder) {
  SampleParams params;
  params.temperature = 0.8f;
  params.top_k = 20;
  params.top_p = 0.9f;
  params.min_p = 0.05f;
  params.repetition_penalty = 1.3f;
  params.seed = 9;
  Row row = random_row(80, params);
  for (std::int64_t i = 0; i < 80; ++i) row.seen.push_back(i % 3 == 0 ? 1 : 0);
  expect_distribution(row);
}

TEST(Draws, EdgesOfTheFilters) {
  SampleParams params;
  params.temperature = 1;
  Row row;
  row.logits = {1, 4, 4, 2, 4, -kInf, 0};
  row.params = params;
  row.params.top_k = 1;  // the ties with the largest stay
  expect_distribution(row);
  row.params.top_k = 100;  // more than there are
  expect_distribution(row);
  row.params.top_k = 0;
  row.params.top_p = 0;  // the first largest stays, and it alone
  expect_distribution(row);
  row.params.top_p = 0.4f;  // two of three equal ones
  expect_distribution(row);
  row.params.top_p = 1;
  row.params.min_p = 1;  // all that equal the largest
  expect_distribution(row);
  row.logits = {kNaN, 1, kNaN, 1};
  row.params = params;
  for (std::int32_t position = 0; position < 50; ++position) {
    row.position = position;
    const std::int32_t token = sample({row})[0];
    EXPECT_TRUE(token == 1 || token == 3);
  }
  row.logits = {-kInf, -kInf, kNaN};
  EXPECT_EQ(sample({row})[0], 0);
  row.logits = {1, kInf, 2};
  EXPECT_EQ(sample({row})[0], 1);
  row.logits = {1, 3, 2};
  row.params.temperature = 1e-38f;
  EXPECT_EQ(sample({row})[0], 1);
}

TEST(Draws, DependOnSeedAndPositionAlone) {
  SampleParams params;
  params.temperature = 1.5f;
  params.top_p = 0.95f;
  std::vector<Row> rows;
  for (std::int32_t i = 0; i < 12; ++i) {
    Row row = random_row(3000, params);
    row.params.seed = static_cast<std::uint64_t>(i % 3);
    row.position = i / 3;
    rows.push_back(row);
  }
  const std::vector<std::int32_t> together = sample(rows, 1);
  for (const int threads : kThreadCounts) EXPECT_EQ(sample(rows, threads), together) << threads << " threads";
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(sample({rows[i]}, 3)[0], together[i]);
  std::vector<std::int32_t> distinct = together;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  EXPECT_GT(distinct.size(), 8u) << "seeds and positions must change the draw";
}

TEST(Draws, AreRecordedByACapture) {
  Bench bench(2);
  const Row row = random_row(500, {});
  Matrix logits(1, 500);
  std::vector<SampleParams> params(1);
  std::vector<std::int32_t> positions = {0};
  std::vector<std::int32_t> next = {-1};
  const auto workspace = cpu_device().allocate(bench.backend->sample_workspace(1, 500), "workspace");
  bench.stream->begin_capture();
  bench.backend->sample({logits.ref(), params.data(), nullptr, positions.data(), next.data(), workspace->data()},
                        *bench.stream);
  const auto graph = bench.stream->end_capture();
  EXPECT_EQ(next[0], -1);
  for (std::int32_t i = 0; i < 20; ++i) {
    for (std::int64_t c = 0; c < 500; ++c) logits.at(0, c) = row.logits[(c + 31 * i) % 500];
    // Greedy and drawn steps share one recording: the parameters are read when it runs.
    params[0].temperature = i % 2 == 0 ? 0.0f : 1.0f;
    positions[0] = i;
    Row now{{}, params[0], i, {}};
    for (std::int64_t c = 0; c < 500; ++c) now.logits.push_back(logits.at(0, c));
    bench.stream->launch(*graph);
    EXPECT_EQ(next[0], sample({now})[0]);
  }
}

}  // namespace
}  // namespace nibble::test
