// q, k and v and their attention in one kernel against float64: sequences of many lengths, packed into tiles in many
// ways, heads of 64 and 32, long and short sums, with and without biases, causal or not, matrices with gaps; rows of no
// sequence hold NaN and stay as they are; the same bits from run to run and from a capture.
#include "core/checked.h"
#include "core/error.h"
#include "cuda/typed_matrix.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"
#include "support/expect_error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace nibble::test {
namespace {

struct Case {
  std::vector<std::int32_t> lengths = {5};
  std::int64_t behind = 0;  // rows of no sequence
  std::int64_t heads = 2;
  std::int64_t head_dim = 64;
  std::int64_t inputs = 64;
  DType type = DType::f16;
  bool bias = true;
  bool causal = false;
  std::int64_t gap = 0;  // elements between rows
};

// The back end is loaded by then.
const LinearKernel& kernel() { return kernel_named("wgmma", DeviceKind::cuda); }

class Trial {
 public:
  Trial(const Case& c, unsigned seed)
      : c_(c),
        stream_(gpu().device().make_stream()),
        row_begin_(begin_of(c.lengths)),
        width_(c.heads * c.head_dim),
        random_(options_of(c, seed)),
        packed_(kernel().pack(random_.site(), random_.tensors(), gpu().device(), *stream_)),
        x_(*stream_, c.type, rows() + c.behind, c.inputs, c.gap, c.gap) {
    std::mt19937 numbers(seed);
    x_.fill(numbers);
    for (std::int64_t row = rows(); row < rows() + c.behind; ++row) {
      for (std::int64_t i = 0; i < c.inputs; ++i) x_.set(row, i, NAN);
    }
    x_.upload();
  }

  static bool possible(const Case& c) {
    const RandomSite random(options_of(c, 1));
    return kernel().fit(random.site(), gpu().device().info(), 1).ok &&
           kernel().attends(random.site(), c.heads, gpu().device().info()) > 0;
  }

  TypedMatrix attend(bool captured = false) {
    const auto sequences = static_cast<std::int64_t>(c_.lengths.size());
    std::vector<TileBegin> tiles(static_cast<std::size_t>(most_tiles(rows() + c_.behind, sequences)) + 1);
    pack_tiles(row_begin_, tiles);
    const OnDevice<TileBegin> begin(*stream_, tiles);
    const OnDevice<std::int32_t> row_begin(*stream_, row_begin_);
    TypedMatrix y(*stream_, c_.type, rows() + c_.behind, width_, c_.gap, c_.gap);
    const MatrixRef out = y.ref();
    LinearArgs args;
    args.rows = rows() + c_.behind;
    args.x = x_.ref();
    args.y = {&out, 1};
    SiteAttention attention;
    attention.heads = c_.heads;
    attention.scale = scale();
    attention.causal = c_.causal;
    attention.tiles = {static_cast<std::int64_t>(tiles.size()) - 1,
                       std::max(ceil_div(rows(), SequenceTiles::kRows), std::int64_t{1}), begin.data(),
                       row_begin.data()};
    if (captured) {
      stream_->begin_capture();
      kernel().attend(*packed_, args, attention, *stream_);
      kernel().attend(*packed_, args, attention, *stream_);
      const std::unique_ptr<Graph> graph = stream_->end_capture();
      stream_->launch(*graph);
    } else {
      kernel().attend(*packed_, args, attention, *stream_);
    }
    y.download();
    y.expect_surroundings_untouched();
    for (std::int64_t row = rows(); row < rows() + c_.behind; ++row) {
      for (std::int64_t i = 0; i < width_; ++i) EXPECT_TRUE(std::isnan(y.at(row, i))) << row << ", " << i;
    }
    return y;
  }

  void expect_right(const TypedMatrix& y) const {
    const std::array<std::vector<double>, 3> qkv = {product(0), product(1), product(2)};
    // q, k, v, probabilities and results are rounded to the type; scores are spread by 2, values by 1.4.
    const double bound = 10 * rounding_of(c_.type);
    for (std::size_t s = 0; s < c_.lengths.size(); ++s) {
      for (std::int64_t head = 0; head < c_.heads; ++head) {
        for (std::int64_t i = 0; i < c_.lengths[s]; ++i) {
          const std::vector<double> want = row_of(qkv, s, head, i);
          for (std::int64_t d = 0; d < c_.head_dim; ++d) {
            const double got = y.at(row_begin_[s] + i, head * c_.head_dim + d);
            const double expected = want[static_cast<std::size_t>(d)];
            ASSERT_LE(std::abs(got - expected), bound * (1 + std::abs(expected)))
                << "sequence " << s << ", row " << i << ", head " << head << ", column " << d << ": " << got
                << ", expected " << expected;
          }
        }
      }
    }
  }

 private:
  static RandomSiteOptions options_of(const Case& c, unsigned seed) {
    RandomSiteOptions options;
    options.in_features = c.inputs;
    options.out_features = std::vector<std::int64_t>(3, c.heads * c.head_dim);
    options.bias = c.bias;
    options.weights = options.compute = options.x_dtype = options.y_dtype = c.type;
    options.seed = seed;
    return options;
  }
  static std::vector<std::int32_t> begin_of(const std::vector<std::int32_t>& lengths) {
    std::vector<std::int32_t> out(lengths.size() + 1);
    std::partial_sum(lengths.begin(), lengths.end(), out.begin() + 1);
    return out;
  }

  std::int64_t rows() const { return row_begin_.back(); }
  float scale() const { return 1 / std::sqrt(static_cast<float>(c_.head_dim)); }

  // x times a part's weights, rounded as the kernel keeps it.
  std::vector<double> product(std::size_t part) const {
    const std::vector<float> bias = bias_of(random_.tensors()[part]);
    const std::span<const float> w = random_.weights(part);
    std::vector<double> out(static_cast<std::size_t>(rows() * width_));
    std::vector<double> x(static_cast<std::size_t>(c_.inputs));
    for (std::int64_t row = 0; row < rows(); ++row) {
      for (std::int64_t k = 0; k < c_.inputs; ++k) x[static_cast<std::size_t>(k)] = x_.at(row, k);
      for (std::int64_t n = 0; n < width_; ++n) {
        double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(n)];
        for (std::size_t k = 0; k < x.size(); ++k) sum += x[k] * w[static_cast<std::size_t>(n) * x.size() + k];
        out[static_cast<std::size_t>(row * width_ + n)] = rounded(c_.type, static_cast<float>(sum));
      }
    }
    return out;
  }

  std::vector<double> row_of(const std::array<std::vector<double>, 3>& qkv, std::size_t s, std::int64_t head,
                             std::int64_t i) const {
    const auto at = [&](std::size_t part, std::int64_t row, std::int64_t d) {
      return qkv[part][static_cast<std::size_t>((row_begin_[s] + row) * width_ + head * c_.head_dim + d)];
    };
    const std::int64_t keys = c_.causal ? i + 1 : c_.lengths[s];
    std::vector<double> scores(static_cast<std::size_t>(keys));
    double most = -HUGE_VAL;
    for (std::int64_t j = 0; j < keys; ++j) {
      double sum = 0;
      for (std::int64_t d = 0; d < c_.head_dim; ++d) sum += at(0, i, d) * at(1, j, d);
      scores[static_cast<std::size_t>(j)] = sum * scale();
      most = std::max(most, scores[static_cast<std::size_t>(j)]);
    }
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - most);
    std::vector<double> out(static_cast<std::size_t>(c_.head_dim));
    for (std::int64_t d = 0; d < c_.head_dim; ++d) {
      for (std::int64_t j = 0; j < keys; ++j)
        out[static_cast<std::size_t>(d)] += scores[static_cast<std::size_t>(j)] / total * at(2, j, d);
    }
    return out;
  }

  Case c_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::int32_t> row_begin_;
  std::int64_t width_;
  RandomSite random_;
  std::unique_ptr<PackedLinear> packed_;
  TypedMatrix x_;
};

void check(const Case& c, unsigned seed) {
  SCOPED_TRACE(std::to_string(c.lengths.size()) + " sequences, the first of " + std::to_string(c.lengths.front()) +
               "; inputs " + std::to_string(c.inputs) + ", heads of " + std::to_string(c.head_dim) + ", seed " +
               std::to_string(seed));
  Trial run(c, seed);
  run.expect_right(run.attend());
}

class CudaSiteAttention : public testing::TestWithParam<std::tuple<DType, std::int64_t>> {
 protected:
  void SetUp() override {
    NIBBLE_NEEDS_GPU();
    if (gpu().device().info().isa != "sm_90") GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  }
  Case of(std::vector<std::int32_t> lengths) const {
    Case c;
    c.lengths = std::move(lengths);
    c.type = std::get<0>(GetParam());
    c.head_dim = std::get<1>(GetParam());
    return c;
  }
};

TEST_P(CudaSiteAttention, Lengths) {
  unsigned seed = 1;
  for (const std::int32_t length : {1, 2, 7, 8, 9, 15, 17, 31, 33, 48, 63, 64}) {
    for (const std::int32_t other : {1, 20, 64}) {
      Case c = of({length, other, length});
      c.bias = seed % 3 != 0;
      c.causal = seed % 2 == 0;
      check(c, seed++);
      if (HasFailure()) return;
    }
  }
}

// Fewer steps than stages, as many, and more; a last one of part of its depth.
TEST_P(CudaSiteAttention, Inputs) {
  unsigned seed = 100;
  for (const std::int64_t inputs : {8, 72, 128, 192, 256, 264, 384, 768, 1024}) {
    Case c = of({64, 30, 3, 61});
    c.inputs = inputs;
    check(c, seed++);
    if (HasFailure()) return;
  }
}

TEST_P(CudaSiteAttention, ManySequences) {
  std::mt19937 random(5);
  for (const int sequences : {1, 8, 64, 150}) {
    for (const int longest : {1, 12, 64}) {
      Case c = of({});
      for (int i = 0; i < sequences; ++i) c.lengths.push_back(1 + static_cast<std::int32_t>(random()) % longest);
      for (std::int32_t& length : c.lengths) length = std::clamp(length, 1, longest);
      c.heads = 4;
      check(c, 200);
      if (HasFailure()) return;
    }
  }
  check(of({3, 0, 0, 64, 0, 2}), 201);
}

TEST_P(CudaSiteAttention, RowsOfNoSequence) {
  for (const std::int64_t behind : {1, 40, 64, 200}) {
    Case c = of({9, 64, 50, 1, 2});
    c.behind = behind;
    c.gap = 8;
    check(c, 300);
    if (HasFailure()) return;
  }
}

TEST_P(CudaSiteAttention, HeadsOfAModel) {
  Case c = of({64, 64, 12, 31, 55, 64, 1, 40});
  c.heads = 768 / c.head_dim;
  c.inputs = 768;
  check(c, 400);
}

TEST_P(CudaSiteAttention, IsDeterministic) {
  Case c = of({64, 12, 31, 55, 64, 1});
  c.heads = 6;
  c.inputs = 384;
  c.behind = 29;
  Trial run(c, 500);
  const TypedMatrix once = run.attend();
  const std::int64_t rows = once.rows() - c.behind;
  for (int i = 0; i < 20; ++i) {
    const TypedMatrix again = run.attend(i % 2 == 0);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < once.columns(); ++column)
        ASSERT_EQ(again.at(row, column), once.at(row, column)) << row << ", " << column;
    }
  }
}

std::string test_name(const testing::TestParamInfo<std::tuple<DType, std::int64_t>>& info) {
  return std::string(name_of(std::get<0>(info.param))) + "_heads_of_" + std::to_string(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Gpu, CudaSiteAttention,
                         testing::Combine(testing::Values(DType::f16, DType::bf16),
                                          testing::Values(std::int64_t{64}, std::int64_t{32})),
                         test_name);

TEST(CudaSiteAttentionSites, AreThreePartsOfHeadsItHas) {
  NIBBLE_NEEDS_GPU();
  if (gpu().device().info().isa != "sm_90") GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  Case c;
  EXPECT_TRUE(Trial::possible(c));
  c.head_dim = 32;
  EXPECT_TRUE(Trial::possible(c));
  c.heads = 3;
  EXPECT_FALSE(Trial::possible(c)) << "an odd number of heads of 32";
  c.heads = 2;
  c.head_dim = 80;
  EXPECT_FALSE(Trial::possible(c));
  RandomSiteOptions two;
  two.out_features = {64, 64};
  two.weights = two.compute = two.x_dtype = two.y_dtype = DType::f16;
  const DeviceInfo device = gpu().device().info();
  EXPECT_EQ(kernel().attends(RandomSite(two).site(), 1, device), 0);
  EXPECT_EQ(kernel_named("dense", DeviceKind::cuda).attends(RandomSite(two).site(), 1, device), 0);
}

TEST(CudaSiteAttentionSites, RefuseWithASentence) {
  NIBBLE_NEEDS_GPU();
  if (gpu().device().info().isa != "sm_90") GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  Case c;
  c.gap = 4;
  Trial run(c, 1);
  expect_error("all rows at multiples of 16", [&] { run.attend(); });
}

}  // namespace
}  // namespace nibble::test
