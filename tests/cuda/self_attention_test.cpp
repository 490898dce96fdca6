// Attention without a cache on the GPU against a plain float64 attention: types, head sizes, masks, biases, padding,
// ragged batches, matrices that are columns of one, and the same bits from run to run and from a capture.
#include "core/error.h"
#include "cuda/typed_matrix.h"
#include "support/expect_error.h"

#include <algorithm>
#include <array>

namespace nibble::test {
namespace {

struct Shape {
  std::int64_t heads = 3;
  std::int64_t head_dim = 32;
  bool causal = false;
  std::int64_t bias_reach = 0;  // 0: no bias
  DType type = DType::f32;
  bool materialise = false;
};

class Case {
 public:
  Case(const Shape& shape, const std::vector<std::int32_t>& lengths, std::vector<std::int32_t> valid, unsigned seed,
       std::int64_t gap = 0, std::int64_t lead = 0)
      : shape_(shape),
        stream_(gpu().device().make_stream()),
        lengths_(lengths),
        valid_(std::move(valid)),
        begin_(begin_of(lengths)),
        width_(shape.heads * shape.head_dim),
        q_(*stream_, shape.type, begin_.back(), width_, gap, lead),
        k_(*stream_, shape.type, begin_.back(), width_, gap, lead),
        v_(*stream_, shape.type, begin_.back(), width_, gap, lead),
        gap_(gap),
        lead_(lead) {
    std::mt19937 random(seed);
    q_.fill(random, 1.5f);
    k_.fill(random);
    v_.fill(random);
    std::normal_distribution<float> normal;
    if (shape.bias_reach > 0) {
      for (std::int64_t i = 0; i < shape.heads * (2 * shape.bias_reach + 1); ++i) bias_.push_back(normal(random));
    }
  }

  TypedMatrix run(bool captured = false) {
    const std::int64_t longest = lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
    const std::size_t bytes =
        gpu().self_attention_workspace({begin_.back(), static_cast<std::int64_t>(lengths_.size()), longest,
                                        shape_.heads, shape_.head_dim, shape_.type, shape_.materialise});
    const std::vector<std::uint8_t> poison(bytes + 256, 0xff);
    const OnDevice<std::uint8_t> workspace(*stream_, poison);
    const OnDevice<std::int32_t> begin(*stream_, begin_);
    const OnDevice<std::int32_t> valid(*stream_, valid_);
    const OnDevice<float> bias(*stream_, bias_);
    TypedMatrix y(*stream_, shape_.type, begin_.back(), width_, gap_, lead_);
    SelfAttentionArgs a;
    a.map.rows = begin_.back();
    a.map.sequences = static_cast<std::int64_t>(lengths_.size());
    a.map.row_begin = begin.data();
    a.q = q_.ref();
    a.k = k_.ref();
    a.v = v_.ref();
    a.heads = shape_.heads;
    a.scale = scale();
    a.causal = shape_.causal;
    a.compute = shape_.type;
    a.valid = valid_.empty() ? nullptr : valid.data();
    a.bias = bias_.empty() ? nullptr : bias.data();
    a.bias_reach = shape_.bias_reach;
    a.materialise = shape_.materialise;
    if (shape_.materialise) a.length = longest;
    a.y = y.ref();
    a.workspace = reinterpret_cast<std::byte*>(workspace.data());
    if (captured) {
      gpu().self_attention(a, *stream_);
      stream_->begin_capture();
      gpu().self_attention(a, *stream_);
      const std::unique_ptr<Graph> graph = stream_->end_capture();
      stream_->launch(*graph);
      stream_->launch(*graph);
    } else {
      gpu().self_attention(a, *stream_);
    }
    y.download();
    y.expect_surroundings_untouched();
    const std::vector<std::uint8_t> after = workspace.read();
    for (std::size_t i = bytes; i < after.size(); ++i) EXPECT_EQ(after[i], 0xff) << "behind the workspace";
    return y;
  }

  void expect_right(const TypedMatrix& y) const {
    std::vector<double> want(static_cast<std::size_t>(begin_.back() * width_));
    for (std::size_t s = 0; s < lengths_.size(); ++s) {
      for (std::int64_t head = 0; head < shape_.heads; ++head) {
        for (std::int64_t i = 0; i < lengths_[s]; ++i) attend(s, head, i, &want[(begin_[s] + i) * width_]);
      }
    }
    // Inputs are exact in their type. Probabilities are rounded to it before they multiply, and what comes out;
    // materialised scores are rounded, too: those of spread 1.5 are off by up to 6 times the rounding.
    const double bound = shape_.type == DType::f32 ? 3e-5 : (shape_.materialise ? 24 : 6) * rounding_of(shape_.type);
    expect_close(
        y, [&](std::int64_t row, std::int64_t column) { return want[static_cast<std::size_t>(row * width_ + column)]; },
        bound, rounding_of(shape_.type));
  }

 private:
  static std::vector<std::int32_t> begin_of(const std::vector<std::int32_t>& lengths) {
    std::vector<std::int32_t> out = {0};
    for (const std::int32_t length : lengths) out.push_back(out.back() + length);
    return out;
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }

  // One row of one head; y is the row.
  void attend(std::size_t s, std::int64_t head, std::int64_t i, double* y) const {
    const std::int64_t dim = shape_.head_dim;
    const std::int64_t first = begin_[s];
    const std::int64_t valid = valid_.empty() ? lengths_[s] : valid_[s];
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
  std::unique_ptr<Stream> stream_;
  std::vector<std::int32_t> lengths_, valid_, begin_;
  std::int64_t width_;
  TypedMatrix q_, k_, v_;
  std::int64_t gap_, lead_;
  std::vector<float> bias_;
};

class CudaSelfAttention : public testing::TestWithParam<std::pair<DType, bool>> {
 protected:
  Shape shape() const {
    Shape shape;
    shape.type = GetParam().first;
    shape.materialise = GetParam().second;
    return shape;
  }
};

TEST_P(CudaSelfAttention, LengthsAndHeadSizes) {
  NIBBLE_NEEDS_GPU();
  unsigned seed = 1;
  for (const std::int64_t dim : {1, 2, 8, 10, 16, 24, 32, 48, 64, 72, 80, 96, 100, 128, 256}) {
    for (const std::int32_t length : {1, 2, 31, 63, 64, 65, 130, 257}) {
      Shape s = shape();
      s.head_dim = dim;
      s.heads = std::array<std::int64_t, 3>{1, 2, 5}[seed % 3];
      if (length > 130 && dim > 64) s.heads = 1;
      SCOPED_TRACE("head size " + std::to_string(dim) + ", length " + std::to_string(length));
      // Rows that take vector accesses, and rows that do not.
      Case c(s, {length, length}, {}, seed, seed % 2 == 0 ? 8 : 3, seed % 2 == 0 ? 0 : 5);
      c.expect_right(c.run());
      if (HasFailure()) return;
      ++seed;
    }
  }
}

TEST_P(CudaSelfAttention, MasksBiasesAndPadding) {
  NIBBLE_NEEDS_GPU();
  unsigned seed = 10;
  for (const std::int32_t length : {5, 64, 131, 300}) {
    for (const bool causal : {false, true}) {
      for (const std::int64_t reach : {0, 1, 20, 600}) {
        Shape s = shape();
        s.causal = causal;
        s.bias_reach = reach;
        SCOPED_TRACE("length " + std::to_string(length) + ", reach " + std::to_string(reach));
        Case c(s, {length, length, length}, {1, length, length - 2}, seed++);
        c.expect_right(c.run());
        if (HasFailure()) return;
        if (reach > 0) continue;
        s.head_dim = 64;
        for (const std::int64_t heads : {1, 3}) {
          s.heads = heads;
          Case wide(s, {length, length, length}, {length - 1, 0, length}, seed++, 8);
          wide.expect_right(wide.run());
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(CudaSelfAttention, NothingValid) {
  NIBBLE_NEEDS_GPU();
  for (const std::int64_t dim : {32, 64}) {
    Shape s = shape();
    s.head_dim = dim;
    Case c(s, {6, 6}, {0, 4}, 30);
    c.expect_right(c.run());
  }
}

TEST_P(CudaSelfAttention, IsDeterministic) {
  NIBBLE_NEEDS_GPU();
  for (const std::int64_t dim : {32, 64}) {
    Shape s = shape();
    s.head_dim = dim;
    Case c(s, {130, 130, 130}, {80, 130, 1}, 40);
    const std::vector<float> once = c.run().values();
    EXPECT_EQ(c.run().values(), once);
    EXPECT_EQ(c.run(true).values(), once);
  }
}

std::string test_name(const testing::TestParamInfo<std::pair<DType, bool>>& info) {
  return std::string(name_of(info.param.first)) + (info.param.second ? "_materialised" : "_fused");
}

INSTANTIATE_TEST_SUITE_P(Gpu, CudaSelfAttention,
                         testing::Values(std::pair(DType::f32, false), std::pair(DType::f16, false),
                                         std::pair(DType::bf16, false), std::pair(DType::f32, true),
                                         std::pair(DType::f16, true), std::pair(DType::bf16, true)),
                         test_name);

class CudaFusedSelfAttention : public testing::TestWithParam<DType> {};

// Long sequences among short and empty ones; many sequences, more than a warp looks at at a time.
TEST_P(CudaFusedSelfAttention, RaggedBatches) {
  NIBBLE_NEEDS_GPU();
  Shape s;
  s.type = GetParam();
  for (const std::int64_t dim : {s.head_dim, std::int64_t{64}}) {
    s.head_dim = dim;
    Case few(s, {3, 1, 700, 0, 17, 1, 64, 5, 129}, {}, 3);
    few.expect_right(few.run());
  }
  std::vector<std::int32_t> lengths(100);
  for (std::size_t i = 0; i < lengths.size(); ++i) lengths[i] = static_cast<std::int32_t>(i) * 37 % 90;
  Case many(s, lengths, {}, 4);
  many.expect_right(many.run());
  Case none(s, {}, {}, 5);
  none.run();
}

// Many rows: tiles of 128 rows, and of 64 in f32 where those do not fill the GPU.
TEST_P(CudaFusedSelfAttention, ManyRows) {
  NIBBLE_NEEDS_GPU();
  Shape s;
  s.type = GetParam();
  s.heads = 12;
  s.head_dim = 64;
  Case c(s, std::vector<std::int32_t>(24, 131), {}, 6);
  c.expect_right(c.run());
  // Keys beyond those that are copied ahead, some of them masked.
  for (const bool causal : {false, true}) {
    s.causal = causal;
    s.heads = causal ? 20 : 12;
    Case longer(s, {700, 64, 513, 640, 1}, {700, 60, 400, 640, 1}, 7);
    longer.expect_right(longer.run());
  }
}

// Several tiles of rows for each of those that attend in turn, in sequences of all kinds: empty ones, some at the end,
// some whose keys are all padding, more than a warp looks at at a time.
TEST_P(CudaFusedSelfAttention, ManySequences) {
  NIBBLE_NEEDS_GPU();
  Shape s;
  s.type = GetParam();
  s.head_dim = 64;
  std::vector<std::int32_t> lengths(123);
  std::vector<std::int32_t> valid(lengths.size());
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    lengths[i] = i < 120 ? static_cast<std::int32_t>(i) * 53 % 310 : 0;
    valid[i] = i % 11 == 0 ? 0 : i % 3 == 0 ? lengths[i] / 2 : lengths[i];
  }
  for (const std::int64_t heads : {1, 2}) {
    s.heads = heads;
    Case padded(s, lengths, valid, 8);
    const TypedMatrix y = padded.run();
    padded.expect_right(y);
    EXPECT_EQ(padded.run(true).values(), y.values());
  }
}

INSTANTIATE_TEST_SUITE_P(Gpu, CudaFusedSelfAttention, testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const testing::TestParamInfo<DType>& type) { return std::string(name_of(type.param)); });

TEST(CudaSelfAttentionArguments, RefuseWithASentence) {
  NIBBLE_NEEDS_GPU();
  Shape wide;
  wide.heads = 1;
  wide.head_dim = 257;
  Case c(wide, {4}, {}, 1);
  expect_error("heads of up to 256", [&] { c.run(); });
  Shape whole;
  whole.materialise = true;
  Case ragged(whole, {4, 3}, {}, 1);
  expect_error("sequences of one length", [&] { ragged.run(); });
}

}  // namespace
}  // namespace nibble::test
