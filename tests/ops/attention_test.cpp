// Attention and the KV cache against a plain float64 attention over the values that the cache's type can hold.
#include "ops_fixture.h"

#include "core/cpu.h"
#include "core/error.h"
#include "core/float_convert.h"

#include <algorithm>
#include <map>
#include <memory>

namespace nibble::test {
namespace {

struct Shape {
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t head_dim = 64;
  std::int64_t window = 0;
  float softcap = 0;
  DType dtype = DType::f32;
  float sigma = 1;
};

float stored(float value, DType dtype) {
  if (dtype == DType::f16) return half_to_float(float_to_half(value));
  return dtype == DType::bf16 ? bf16_to_float(float_to_bf16(value)) : value;
}

// The error allowed against float64 attention on the stored values, of values of about 1. AMX multiplies a bf16 cache
// by q and by probabilities rounded to bf16 (2^-9 each): the scores, of spread 1, are off by up to 4 * 2^-9, the
// probabilities by that and their own rounding. All else is float arithmetic.
double bound(const Shape& shape) {
  if (shape.dtype == DType::bf16 && active_isa() >= Isa::amx) return 6 * 0x1p-8 * std::max(1.0f, shape.sigma);
  return 2e-5 * std::max(1.0f, shape.sigma * shape.sigma);
}

// One cache with the keys and values of some sequences, and queries for a batch.
class Case {
 public:
  Case(const Shape& shape, const Batch& batch, unsigned seed) : shape_(shape), batch_(batch) {
    std::mt19937 random(seed);
    for (const Batch::Sequence& s : batch.sequences) {
      slots_ = std::max<std::int64_t>(slots_, s.slot + 1);
      capacity_ = std::max<std::int64_t>(capacity_, s.past + s.rows);
    }
    const std::int64_t width = shape.kv_heads * shape.head_dim;
    for (const Batch::Sequence& s : batch.sequences) {
      // A sequence's data depend on its slot alone, so that batches can be put in another order.
      std::mt19937 own(seed + 1000 + static_cast<unsigned>(s.slot));
      auto [k, fresh] = keys_.try_emplace(s.slot, s.past + s.rows, width, 3);
      k->second.fill(own, shape.sigma);
      auto [v, fresh_v] = values_.try_emplace(s.slot, s.past + s.rows, width, 5);
      v->second.fill(own);
      auto [q, fresh_q] = queries_.try_emplace(s.slot, s.rows, shape.heads * shape.head_dim, 0);
      q->second.fill(own, shape.sigma);
    }
  }

  // Stores everything (the past in pieces of `chunk` rows), then attends.
  Matrix run(Bench& bench, std::int32_t chunk = 37) {
    KvView cache{shape_.dtype, nullptr, nullptr, slots_, shape_.kv_heads, capacity_, shape_.head_dim};
    const std::size_t bytes = bench.backend->kv_bytes(cache);
    const auto k = cpu_device().allocate(bytes, "k");
    const auto v = cpu_device().allocate(bytes, "v");
    // All ones is NaN in every type: what has not been stored must not be read, or at least not used.
    std::memset(k->data(), 0xff, bytes);
    std::memset(v->data(), 0xff, bytes);
    cache.k = k->data();
    cache.v = v->data();
    for (const Batch::Sequence& s : batch_.sequences) {
      for (std::int32_t from = 0; from < s.past; from += chunk) {
        store(bench, cache, Batch({{s.slot, from, std::min(chunk, s.past - from)}}));
      }
    }
    store(bench, cache, batch_);
    Matrix q(batch_.rows(), shape_.heads * shape_.head_dim, 7);
    std::int64_t row = 0;
    for (const Batch::Sequence& s : batch_.sequences) {
      for (std::int32_t i = 0; i < s.rows; ++i, ++row) copy_row(queries_.at(s.slot), i, q, row);
    }
    Matrix y(batch_.rows(), shape_.heads * shape_.head_dim, 9);
    const std::size_t scratch = bench.backend->attention_workspace(batch_.rows(), shape_.heads, cache);
    const auto workspace = cpu_device().allocate(scratch, "workspace");
    std::memset(workspace->data(), 0xff, scratch);
    bench.backend->attention({batch_.map(), q.ref(), shape_.heads, cache, scale(), shape_.window, shape_.softcap,
                              y.ref(), workspace->data()},
                             *bench.stream);
    y.expect_gaps_untouched();
    return y;
  }

  void check(const Matrix& y) const {
    std::int64_t row = 0;
    const double limit = bound(shape_);
    for (const Batch::Sequence& s : batch_.sequences) {
      for (std::int32_t i = 0; i < s.rows; ++i, ++row) {
        for (std::int64_t head = 0; head < shape_.heads; ++head) {
          const std::vector<double> want = reference(s, i, head);
          for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
            const double got = y.at(row, head * shape_.head_dim + d);
            ASSERT_TRUE(std::abs(got - want[d]) <= limit)
                << "slot " << s.slot << " position " << s.past + i << " head " << head << " dim " << d << ": " << got
                << ", expected " << want[d];
          }
        }
      }
    }
  }

 private:
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)) / shape_.sigma; }

  static void copy_row(const Matrix& from, std::int64_t i, Matrix& to, std::int64_t j) {
    for (std::int64_t c = 0; c < to.columns(); ++c) to.at(j, c) = from.at(i, c);
  }

  void store(Bench& bench, const KvView& cache, const Batch& rows) {
    Matrix k(rows.rows(), shape_.kv_heads * shape_.head_dim, 1);
    Matrix v(rows.rows(), shape_.kv_heads * shape_.head_dim, 2);
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
      copy_row(keys_.at(rows.slots[r]), rows.positions[r], k, r);
      copy_row(values_.at(rows.slots[r]), rows.positions[r], v, r);
    }
    bench.backend->kv_store({rows.map(), k.ref(), v.ref(), cache}, *bench.stream);
  }

  std::vector<double> reference(const Batch::Sequence& s, std::int32_t i, std::int64_t head) const {
    const std::int64_t kv = head / (shape_.heads / shape_.kv_heads) * shape_.head_dim;
    const std::int64_t position = s.past + i;
    const std::int64_t first = shape_.window > 0 ? std::max<std::int64_t>(0, position - shape_.window + 1) : 0;
    std::vector<double> scores;
    double max = -std::numeric_limits<double>::infinity();
    for (std::int64_t j = first; j <= position; ++j) {
      double dot = 0;
      for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
        dot += static_cast<double>(queries_.at(s.slot).at(i, head * shape_.head_dim + d)) *
               stored(keys_.at(s.slot).at(j, kv + d), shape_.dtype);
      }
      dot *= scale();
      if (shape_.softcap > 0) dot = shape_.softcap * std::tanh(dot / shape_.softcap);
      scores.push_back(dot);
      max = std::max(max, dot);
    }
    double sum = 0;
    std::vector<double> out(shape_.head_dim, 0.0);
    for (std::int64_t j = first; j <= position; ++j) {
      const double p = std::exp(scores[j - first] - max);
      sum += p;
      for (std::int64_t d = 0; d < shape_.head_dim; ++d)
        out[d] += p * stored(values_.at(s.slot).at(j, kv + d), shape_.dtype);
    }
    for (double& one : out) one /= sum;
    return out;
  }

  Shape shape_;
  Batch batch_;
  std::int64_t slots_ = 0;
  std::int64_t capacity_ = 0;
  std::map<std::int32_t, Matrix> keys_, values_, queries_;
};

constexpr DType kCacheTypes[] = {DType::f32, DType::f16, DType::bf16};

void run_and_check(const Shape& shape, const Batch& batch, int threads = 2) {
  Bench bench(threads);
  Case one(shape, batch, 7);
  one.check(one.run(bench));
}

TEST(Attention, RaggedBatchOfPrefillChunksAndDecodeRows) {
  // Prompts of lengths around the sizes of tiles, a continued chunk, decode rows, one of them first in its sequence.
  const Batch batch({{3, 0, 33}, {0, 50, 1}, {1, 0, 1}, {2, 129, 70}, {4, 15, 2}, {5, 300, 1}, {6, 63, 64}});
  for (const DType dtype : kCacheTypes) {
    SCOPED_TRACE(name_of(dtype));
    Shape shape;
    shape.dtype = dtype;
    run_and_check(shape, batch);
  }
}

TEST(Attention, GroupsOfHeads) {
  for (const std::int64_t group : {1, 3, 4, 7}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(testing::Message() << "group " << group << " " << name_of(dtype));
      Shape shape;
      shape.heads = 3 * group;
      shape.kv_heads = 3;
      shape.dtype = dtype;
      run_and_check(shape, Batch({{0, 0, 40}, {1, 200, 1}, {2, 5, 1}}));
    }
  }
}

TEST(Attention, OneKvHeadForMoreHeadsThanATileHasRows) {
  Shape shape;
  shape.heads = 71;
  shape.kv_heads = 1;
  for (const DType dtype : kCacheTypes) {
    shape.dtype = dtype;
    run_and_check(shape, Batch({{0, 140, 1}, {1, 3, 5}}));
  }
}

TEST(Attention, HeadDims) {
  for (const std::int64_t head_dim : {2, 6, 8, 24, 32, 40, 80, 96, 104, 128, 160, 256}) {
    for (const DType dtype : kCacheTypes) {
      SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << " " << name_of(dtype));
      Shape shape;
      shape.head_dim = head_dim;
      shape.dtype = dtype;
      run_and_check(shape, Batch({{0, 0, 35}, {1, 90, 1}}));
    }
  }
}

TEST(Attention, Windows) {
  for (const std::int64_t window : {1, 5, 16, 64, 100, 1000}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(testing::Message() << "window " << window << " " << name_of(dtype));
      Shape shape;
      shape.window = window;
      shape.dtype = dtype;
      run_and_check(shape, Batch({{0, 0, 150}, {1, 300, 1}, {2, 200, 50}, {3, 0, 1}}));
    }
  }
}

TEST(Attention, Softcap) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Shape shape;
    shape.softcap = 2;
    shape.dtype = dtype;
    run_and_check(shape, Batch({{0, 0, 50}, {1, 150, 1}}));
  }
}

TEST(Attention, LongContexts) {
  Shape shape;
  shape.heads = 3;
  shape.kv_heads = 1;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    shape.dtype = dtype;
    run_and_check(shape, Batch({{0, 3000, 1}, {1, 2500, 3}, {2, 700, 45}}), 3);
  }
}

// Scores of a spread of 20 and more: the largest changes from tile to tile, and most probabilities are 0.
TEST(Attention, SharpScores) {
  Shape shape;
  const Batch batch({{0, 0, 200}, {1, 400, 1}, {2, 500, 33}});
  shape.sigma = 20;
  run_and_check(shape, batch);
  shape.dtype = DType::bf16;
  shape.sigma = 4;
  run_and_check(shape, batch);
}

// The largest score comes last, by far: everything summed before must fade away.
TEST(Attention, ALateLargestScoreWipesOutTheRest) {
  for (const DType dtype : kCacheTypes) {
    for (const std::int32_t rows : {1, 40}) {
      SCOPED_TRACE(testing::Message() << name_of(dtype) << ", " << rows << " rows");
      constexpr std::int32_t kPast = 700;
      Bench bench(2);
      KvView cache{dtype, nullptr, nullptr, 1, 1, kPast + rows, 32};
      const std::size_t bytes = bench.backend->kv_bytes(cache);
      const auto k_memory = cpu_device().allocate(bytes, "k");
      const auto v_memory = cpu_device().allocate(bytes, "v");
      cache.k = k_memory->data();
      cache.v = v_memory->data();
      const Batch all({{0, 0, kPast + rows}});
      Matrix k(all.rows(), 32);
      Matrix v(all.rows(), 32);
      for (std::int64_t r = 0; r < all.rows(); ++r) {
        for (std::int64_t d = 0; d < 32; ++d) {
          // Every 128 keys the scores rise by 32 * 4 = 128, beyond what the probabilities of those before can count.
          k.at(r, d) = static_cast<float>(4 * (r / 128));
          v.at(r, d) = static_cast<float>(r / 128);
        }
      }
      bench.backend->kv_store({all.map(), k.ref(), v.ref(), cache}, *bench.stream);
      const Batch batch({{0, kPast, rows}});
      Matrix q(rows, 32);
      Matrix y(rows, 32);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t d = 0; d < 32; ++d) q.at(r, d) = 1;
      }
      const auto workspace = cpu_device().allocate(bench.backend->attention_workspace(rows, 1, cache), "workspace");
      bench.backend->attention({batch.map(), q.ref(), 1, cache, 1, 0, 0, y.ref(), workspace->data()}, *bench.stream);
      expect_close(y, [](std::int64_t r, std::int64_t) { return static_cast<double>((kPast + r) / 128); }, 1e-5, 1e-5);
    }
  }
}

TEST(Attention, DoesNotDependOnThreadsOrOnTheBatch) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Shape shape;
    shape.heads = 9;
    shape.kv_heads = 3;
    shape.dtype = dtype;
    const std::vector<Batch::Sequence> list = {{0, 700, 1}, {1, 0, 70}, {2, 130, 1}, {3, 40, 20}};
    Case forward(shape, Batch(list), 7);
    std::vector<std::uint32_t> first;
    for (const int threads : kThreadCounts) {
      Bench bench(threads);
      const std::vector<std::uint32_t> bits = forward.run(bench).bits();
      EXPECT_EQ(forward.run(bench).bits(), bits);
      if (first.empty()) first = bits;
      EXPECT_EQ(bits, first) << threads << " threads";
    }
    Case backward(shape, Batch({list[3], list[2], list[1], list[0]}), 7);
    Bench bench(3);
    const std::vector<std::uint32_t> bits = backward.run(bench).bits();
    const std::size_t row = static_cast<std::size_t>(shape.heads * shape.head_dim);
    EXPECT_TRUE(std::equal(first.begin(), first.begin() + row, bits.end() - row)) << "the decode row of slot 0";
    EXPECT_TRUE(std::equal(first.begin() + row, first.begin() + 71 * row, bits.begin() + 21 * row)) << "slot 1's rows";
  }
}

TEST(Attention, ReplaysACapturedDecodeStep) {
  Shape shape;
  Bench bench(2);
  KvView cache{shape.dtype, nullptr, nullptr, 1, shape.kv_heads, 200, shape.head_dim};
  const std::size_t bytes = bench.backend->kv_bytes(cache);
  const auto k_memory = cpu_device().allocate(bytes, "k");
  const auto v_memory = cpu_device().allocate(bytes, "v");
  cache.k = k_memory->data();
  cache.v = v_memory->data();
  const auto workspace = cpu_device().allocate(bench.backend->attention_workspace(1, shape.heads, cache), "workspace");
  Batch batch({{0, 0, 1}});
  Matrix q(1, shape.heads * shape.head_dim);
  Matrix k(1, shape.kv_heads * shape.head_dim);
  Matrix v(1, shape.kv_heads * shape.head_dim);
  Matrix y(1, shape.heads * shape.head_dim);
  const AttentionArgs args{batch.map(), q.ref(), shape.heads, cache, 0.125f, 0, 0, y.ref(), workspace->data()};
  bench.stream->begin_capture();
  bench.backend->kv_store({batch.map(), k.ref(), v.ref(), cache}, *bench.stream);
  bench.backend->attention(args, *bench.stream);
  const auto graph = bench.stream->end_capture();
  EXPECT_TRUE(std::isnan(y.at(0, 0))) << "capturing must not run";
  std::mt19937 random(3);
  for (std::int32_t position = 0; position < 200; ++position) {
    batch.positions[0] = position;
    q.fill(random);
    k.fill(random);
    v.fill(random);
    bench.stream->launch(*graph);
    const std::vector<std::uint32_t> replayed = y.bits();
    y.at(0, 0) = std::numeric_limits<float>::quiet_NaN();
    bench.backend->attention(args, *bench.stream);
    ASSERT_EQ(y.bits(), replayed) << "position " << position;
    // The newest value counts at least for something: a stale replay would not.
    if (position == 0) {
      ASSERT_EQ(y.at(0, 0), v.at(0, 0));
    }
  }
}

TEST(Attention, RefusesShapesThatItCannotRun) {
  Bench bench(1);
  EXPECT_THROW(bench.backend->kv_bytes({DType::i8, nullptr, nullptr, 1, 1, 16, 64}), Error);
  EXPECT_THROW(bench.backend->kv_bytes({DType::f32, nullptr, nullptr, 1, 1, 16, 258}), Error);
  EXPECT_THROW(bench.backend->kv_bytes({DType::f32, nullptr, nullptr, 1, 1, 16, 63}), Error);
  EXPECT_THROW(
      bench.backend->kv_bytes({DType::f32, nullptr, nullptr, std::int64_t{1} << 40, 64, std::int64_t{1} << 40, 64}),
      Error);
  EXPECT_THROW(bench.backend->attention_workspace(1, 7, {DType::f32, nullptr, nullptr, 1, 2, 16, 64}), Error);
}

}  // namespace
}  // namespace nibble::test
