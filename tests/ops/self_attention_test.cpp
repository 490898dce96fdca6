// Attention without a cache against a plain float64 attention.
#include "ops_fixture.h"

#include "core/cpu.h"
#include "core/error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>

namespace nibble::test {
namespace {

struct Shape {
  std::int64_t heads = 3;
  std::int64_t head_dim = 32;
  bool causal = false;
  std::int64_t bias_reach = 0;  // 0: no bias
  DType compute = DType::f32;
  bool materialise = false;
};

// A batch of sequences of so many rows, of which so many at the head are valid (empty: all).
class Case {
 public:
  Case(const Shape& shape, const std::vector<std::int32_t>& lengths, std::vector<std::int32_t> valid, unsigned seed)
      : shape_(shape),
        batch_(sequences(lengths)),
        valid_(std::move(valid)),
        q_(batch_.rows(), shape.heads * shape.head_dim, 3),
        k_(batch_.rows(), shape.heads * shape.head_dim, 5),
        v_(batch_.rows(), shape.heads * shape.head_dim, 7) {
    std::mt19937 random(seed);
    q_.fill(random, 1.5f);
    k_.fill(random);
    v_.fill(random);
    std::normal_distribution<float> normal;
    if (shape.bias_reach > 0) {
      for (std::int64_t i = 0; i < shape.heads * (2 * shape.bias_reach + 1); ++i) bias_.push_back(normal(random));
    }
    for (const std::int32_t length : lengths) longest_ = std::max<std::int64_t>(longest_, length);
  }

  SelfAttentionArgs args(Matrix& y, std::byte* workspace) {
    SelfAttentionArgs a;
    a.map = batch_.map();
    a.q = q_.ref();
    a.k = k_.ref();
    a.v = v_.ref();
    a.heads = shape_.heads;
    a.scale = scale();
    a.causal = shape_.causal;
    a.compute = shape_.compute;
    a.valid = valid_.empty() ? nullptr : valid_.data();
    a.bias = bias_.empty() ? nullptr : bias_.data();
    a.bias_reach = shape_.bias_reach;
    a.materialise = shape_.materialise;
    a.y = y.ref();
    a.workspace = workspace;
    return a;
  }

  // On so many threads, from a capture or not; the scratch is NaN before, and what follows it must stay so.
  Matrix run(int threads, bool captured = false) {
    Bench bench(threads);
    const std::size_t bytes = bench.backend->self_attention_workspace(
        {batch_.rows(), static_cast<std::int64_t>(batch_.sequences.size()), longest_, shape_.heads, shape_.head_dim,
         shape_.compute, shape_.materialise});
    constexpr std::size_t kGuard = 256;
    const auto workspace = cpu_device().allocate(bytes + kGuard, "workspace");
    std::memset(workspace->data(), 0xff, bytes + kGuard);
    Matrix y(batch_.rows(), shape_.heads * shape_.head_dim, 9);
    if (captured) bench.stream->begin_capture();
    bench.backend->self_attention(args(y, workspace->data()), *bench.stream);
    if (captured) {
      const std::unique_ptr<Graph> graph = bench.stream->end_capture();
      bench.stream->launch(*graph);
      bench.stream->launch(*graph);
    }
    y.expect_gaps_untouched();
    for (std::size_t i = 0; i < kGuard; ++i) {
      EXPECT_EQ(workspace->data()[bytes + i], std::byte{0xff}) << "byte " << i << " after the workspace";
    }
    return y;
  }

  void expect_right(const Matrix& y) const {
    const std::int64_t width = shape_.heads * shape_.head_dim;
    std::vector<double> want(static_cast<std::size_t>(batch_.rows() * width));
    for (std::size_t s = 0; s < batch_.sequences.size(); ++s) {
      const std::int64_t first = batch_.row_begin[s];
      const std::int64_t rows = batch_.row_begin[s + 1] - first;
      for (std::int64_t head = 0; head < shape_.heads; ++head) {
        for (std::int64_t i = 0; i < rows; ++i) attend(s, first, rows, head, i, &want[(first + i) * width]);
      }
    }
    // bf16 rounds q, k, v and the probabilities (2^-9 each): scores of spread 1.5 are off by up to 6 * 2^-9, and what
    // is summed by that and two roundings more.
    const bool rounded = shape_.compute == DType::bf16 && active_isa() >= Isa::avx512bf16;
    const double bound = rounded ? 8 * 0x1p-8 : 3e-5;
    expect_close(
        y, [&](std::int64_t row, std::int64_t column) { return want[static_cast<std::size_t>(row * width + column)]; },
        bound, 0);
  }

 private:
  static Batch sequences(const std::vector<std::int32_t>& lengths) {
    std::vector<Batch::Sequence> list;
    list.reserve(lengths.size());
    for (std::size_t s = 0; s < lengths.size(); ++s) list.push_back({static_cast<std::int32_t>(s), 0, lengths[s]});
    return Batch(list);
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }

  // One row of one head; y is the row.
  void attend(std::size_t s, std::int64_t first, std::int64_t rows, std::int64_t head, std::int64_t i,
              double* y) const {
    const std::int64_t dim = shape_.head_dim;
    const std::int64_t valid = valid_.empty() ? rows : valid_[s];
    const std::int64_t keys = shape_.causal ? std::min(valid, i + 1) : valid;
    std::vector<double> scores;
    double most = -HUGE_VAL;
    for (std::int64_t j = 0; j < keys; ++j) {
      double sum = 0;
      for (std::int64_t d = 0; d < dim; ++d) {
        sum += static_cast<double>(q_.at(first + i, head * dim + d)) *
               static_cast<double>(k_.at(first + j, head * dim + d));
      }
      sum *= static_cast<double>(scale());
      const std::int64_t reach = shape_.bias_reach;
      if (reach > 0) {
        const std::int64_t at = head * (2 * reach + 1) + std::clamp(j - i, -reach, reach) + reach;
        sum += static_cast<double>(bias_[static_cast<std::size_t>(at)]);
      }
      scores.push_back(sum);
      most = std::max(most, sum);
    }
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - most);
    for (std::int64_t d = 0; d < dim; ++d) {
      double& sum = y[head * dim + d];
      sum = 0;
      for (std::int64_t j = 0; j < keys; ++j) {
        sum += scores[static_cast<std::size_t>(j)] / total * static_cast<double>(v_.at(first + j, head * dim + d));
      }
    }
  }

  Shape shape_;
  Batch batch_;
  std::vector<std::int32_t> valid_;
  std::int64_t longest_ = 0;
  Matrix q_, k_, v_;
  std::vector<float> bias_;
};

// Both ways of doing it, in both types.
class SelfAttention : public testing::TestWithParam<std::pair<DType, bool>> {
 protected:
  Shape shape() const {
    Shape shape;
    shape.compute = GetParam().first;
    shape.materialise = GetParam().second;
    return shape;
  }
};

TEST_P(SelfAttention, LengthsAndHeadDims) {
  unsigned seed = 1;
  for (const std::int64_t dim : {2, 10, 16, 32, 48, 64, 80, 128}) {
    for (const std::int32_t length : {1, 2, 31, 63, 64, 65, 130, 257}) {
      Shape s = shape();
      s.head_dim = dim;
      s.heads = std::array<std::int64_t, 3>{1, 3, 12}[seed % 3];
      SCOPED_TRACE("head_dim " + std::to_string(dim) + ", length " + std::to_string(length));
      Case c(s, {length, length}, {}, seed++);
      c.expect_right(c.run(2));
    }
  }
}

TEST_P(SelfAttention, TheWidestHead) {
  Shape s = shape();
  s.head_dim = 256;
  Case c(s, {70}, {}, 2);
  c.expect_right(c.run(1));
}

// A long sequence among short ones: longer than the keys that are softened together, and divided among threads.
TEST_P(SelfAttention, RaggedBatches) {
  for (const int threads : kThreadCounts) {
    Case c(shape(), {3, 1, 700, 17, 1, 64, 5}, {}, 3);
    c.expect_right(c.run(threads));
  }
}

TEST_P(SelfAttention, MasksBiasesAndPadding) {
  unsigned seed = 10;
  for (const std::int32_t length : {5, 64, 131, 540}) {
    for (const bool causal : {false, true}) {
      for (const std::int64_t reach : {0, 1, 20, 600}) {
        Shape s = shape();
        s.causal = causal;
        s.bias_reach = reach;
        SCOPED_TRACE("length " + std::to_string(length) + ", reach " + std::to_string(reach));
        Case c(s, {length, length, length}, {1, length, length - 2}, seed++);
        c.expect_right(c.run(2));
      }
    }
  }
}

// What no key is seen by is 0.
TEST_P(SelfAttention, NothingValid) {
  Case c(shape(), {6, 6}, {0, 4}, 30);
  c.expect_right(c.run(2));
}

TEST_P(SelfAttention, NoSequences) {
  Case c(shape(), {}, {}, 31);
  c.run(2);
}

// The same bits from run to run, from a capture, and on any number of threads.
TEST_P(SelfAttention, IsDeterministic) {
  Case c(shape(), {90, 260, 1, 33}, {80, 260, 1, 33}, 40);
  const std::vector<std::uint32_t> once = c.run(1).bits();
  for (const int threads : kThreadCounts) EXPECT_EQ(c.run(threads, threads % 2 == 1).bits(), once);
  Case same(shape(), {128, 128, 128}, {}, 41);
  const std::vector<std::uint32_t> eager = same.run(2).bits();
  EXPECT_EQ(same.run(2).bits(), eager);
  EXPECT_EQ(same.run(2, true).bits(), eager);
}

std::string test_name(const testing::TestParamInfo<std::pair<DType, bool>>& info) {
  return std::string(name_of(info.param.first)) + (info.param.second ? "_materialised" : "_fused");
}

INSTANTIATE_TEST_SUITE_P(Cpu, SelfAttention,
                         testing::Values(std::pair(DType::f32, false), std::pair(DType::bf16, false),
                                         std::pair(DType::f32, true), std::pair(DType::bf16, true)),
                         test_name);

}  // namespace
}  // namespace nibble::test
