// Attention and the KV cache on the GPU against a float64 attention over the values that the cache holds, read back and
// decoded by its documented layout; and 8-bit caches against the values before they were stored.
#include "core/error.h"
#include "cuda/typed_matrix.h"
#include "ops/cuda/kv_cache.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace nibble::test {
namespace {

constexpr DType kCacheTypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::f8_e4m3};

struct Sequence {
  std::int32_t slot = 0;
  std::int32_t past = 0;  // tokens in the cache before this pass
  std::int32_t rows = 0;
};

struct Shape {
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t head_dim = 64;
  DType q = DType::f16;
  DType cache = DType::f16;
  std::int64_t window = 0;
  float softcap = 0;
  float sigma = 1;        // of q and k; the scale is made to fit
  std::int64_t gap = 0;   // between rows of q, k, v and y, and ...
  std::int64_t lead = 0;  // ... before the first: odd ones make every access unaligned
};

std::string text(const Shape& s) {
  return fmt::format("{} heads over {} of {}, q {}, cache {}, window {}, softcap {}, gap {}", s.heads, s.kv_heads,
                     s.head_dim, name_of(s.q), name_of(s.cache), s.window, s.softcap, s.gap);
}

/// A RowMap in device memory.
class DeviceBatch {
 public:
  DeviceBatch(Stream& stream, const std::vector<Sequence>& sequences) {
    std::vector<std::int32_t> positions, slots, begin{0};
    for (const Sequence& s : sequences) {
      for (std::int32_t i = 0; i < s.rows; ++i) {
        positions.push_back(s.past + i);
        slots.push_back(s.slot);
      }
      begin.push_back(static_cast<std::int32_t>(positions.size()));
    }
    rows_ = static_cast<std::int64_t>(positions.size());
    sequences_ = static_cast<std::int64_t>(sequences.size());
    positions_.emplace(stream, std::span<const std::int32_t>(positions));
    slots_.emplace(stream, std::span<const std::int32_t>(slots));
    begin_.emplace(stream, std::span<const std::int32_t>(begin));
  }
  RowMap map() const { return {rows_, sequences_, nullptr, positions_->data(), slots_->data(), begin_->data()}; }
  std::int64_t rows() const { return rows_; }
  void set_positions(Stream& stream, const std::vector<std::int32_t>& positions) {
    stream.copy_to_device(positions_->data(), positions.data(), positions.size() * sizeof(std::int32_t));
    stream.synchronize();
  }

 private:
  std::int64_t rows_ = 0, sequences_ = 0;
  std::optional<OnDevice<std::int32_t>> positions_, slots_, begin_;
};

float e4m3_to_float(std::uint8_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                               : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10));
}

/// A cache in device memory, every byte of it 0xff (NaN in the floating point types and the scales) at first.
class Cache {
 public:
  Cache(Stream& stream, const Shape& shape, std::int64_t slots, std::int64_t capacity) : stream_(&stream) {
    view_ = {shape.cache, nullptr, nullptr, slots, shape.kv_heads, capacity, shape.head_dim};
    const std::vector<std::byte> poison(gpu().kv_bytes(view_), std::byte{0xff});
    k_.emplace(stream, std::span<const std::byte>(poison));
    v_.emplace(stream, std::span<const std::byte>(poison));
    view_.k = k_->data();
    view_.v = v_->data();
  }
  const KvView& view() const { return view_; }

  void read() {
    host_k_ = k_->read();
    host_v_ = v_->read();
  }
  const std::vector<std::byte>& host(bool of_v) const { return of_v ? host_v_ : host_k_; }
  std::vector<std::byte> bytes() {
    read();
    std::vector<std::byte> all = host_k_;
    all.insert(all.end(), host_v_.begin(), host_v_.end());
    return all;
  }

  const std::byte* row(bool of_v, std::int64_t slot, std::int64_t head, std::int64_t token) const {
    const cuda::KvCache layout = cuda::kv_cache(view_);
    return host(of_v).data() + (slot * view_.kv_heads + head) * layout.head_bytes + token * layout.row_bytes;
  }
  float scale(bool of_v, std::int64_t slot, std::int64_t head, std::int64_t token) const {
    if (!cuda::has_scales(view_.dtype)) return 1;
    const cuda::KvCache layout = cuda::kv_cache(view_);
    const std::int64_t at = (slot * view_.kv_heads + head) * layout.scale_stride + token;
    float value;
    std::memcpy(&value, host(of_v).data() + layout.scale_offset + at * 4, sizeof value);
    return value;
  }
  // Element d of what read() brought; d may lie in the padding.
  float code(bool of_v, std::int64_t slot, std::int64_t head, std::int64_t token, std::int64_t d) const {
    const std::byte* from = row(of_v, slot, head, token) + d * static_cast<std::int64_t>(bytes_of(view_.dtype));
    std::uint16_t bits;
    float value;
    switch (view_.dtype) {
      case DType::f32:
        std::memcpy(&value, from, sizeof value);
        return value;
      case DType::i8:
        return static_cast<float>(static_cast<std::int8_t>(*from));
      case DType::f8_e4m3:
        return e4m3_to_float(static_cast<std::uint8_t>(*from));
      default:
        std::memcpy(&bits, from, sizeof bits);
        return view_.dtype == DType::f16 ? half_to_float(bits) : bf16_to_float(bits);
    }
  }
  float value(bool of_v, std::int64_t slot, std::int64_t head, std::int64_t token, std::int64_t d) const {
    return code(of_v, slot, head, token, d) * scale(of_v, slot, head, token);
  }

 private:
  Stream* stream_;
  KvView view_;
  std::optional<OnDevice<std::byte>> k_, v_;
  std::vector<std::byte> host_k_, host_v_;
};

/// The table of rotations, as RotaryArgs describes it.
std::vector<float> rotations(std::int64_t positions, std::int64_t dims) {
  std::vector<float> table;
  for (std::int64_t p = 0; p < positions; ++p) {
    for (const bool sine : {false, true}) {
      for (std::int64_t i = 0; i < dims / 2; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
        table.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
      }
    }
  }
  return table;
}

/// What a pass does before attention().
struct Store {
  bool fused = false;
  std::int64_t dims = 0;
  bool interleaved = false;
};

/// Keys, values and queries of some sequences, and what attention makes of them.
class Case {
 public:
  Case(const Shape& shape, std::vector<Sequence> sequences, unsigned seed = 7)
      : shape_(shape), sequences_(std::move(sequences)), stream_(gpu().device().make_stream()) {
    std::mt19937 random(seed);
    std::int64_t slots = 0;
    std::int64_t capacity = 0;
    for (const Sequence& s : sequences_) {
      slots = std::max<std::int64_t>(slots, s.slot + 1);
      capacity = std::max<std::int64_t>(capacity, s.past + s.rows);
      const std::int64_t tokens = s.past + s.rows;
      keys_.emplace(s.slot, numbers(random, tokens * shape.kv_heads * shape.head_dim, shape.sigma));
      values_.emplace(s.slot, numbers(random, tokens * shape.kv_heads * shape.head_dim, 1));
      queries_.emplace(s.slot, numbers(random, s.rows * shape.heads * shape.head_dim, shape.sigma));
    }
    // Odd, so that the strides of heads and scales are too.
    capacity_ = capacity | 1;
    cache_.emplace(*stream_, shape, slots, capacity_);
  }

  Stream& stream() { return *stream_; }
  Cache& cache() { return *cache_; }

  /// Stores the past in pieces of `chunk` rows, then the pass itself as `how` says, and attends.
  TypedMatrix run(const Store& how = {}, std::int32_t chunk = 37) {
    const std::vector<float> table = rotations(capacity_, how.dims);
    std::optional<OnDevice<float>> angles;
    if (how.dims > 0) angles.emplace(*stream_, std::span<const float>(table));
    for (const Sequence& s : sequences_) {
      for (std::int32_t from = 0; from < s.past; from += chunk)
        store_past({s.slot, from, std::min(chunk, s.past - from)});
    }
    const DeviceBatch batch(*stream_, sequences_);
    const std::int64_t width = shape_.kv_heads * shape_.head_dim;
    TypedMatrix q(*stream_, shape_.q, batch.rows(), shape_.heads * shape_.head_dim, shape_.gap, shape_.lead);
    TypedMatrix k(*stream_, shape_.q, batch.rows(), width, shape_.gap, shape_.lead);
    TypedMatrix v(*stream_, shape_.q, batch.rows(), width, shape_.gap, shape_.lead);
    TypedMatrix y(*stream_, shape_.q, batch.rows(), shape_.heads * shape_.head_dim, shape_.gap, shape_.lead);
    std::int64_t row = 0;
    for (const Sequence& s : sequences_) {
      for (std::int32_t i = 0; i < s.rows; ++i, ++row) {
        set_row(q, row, queries_.at(s.slot), i);
        set_row(k, row, keys_.at(s.slot), s.past + i);
        set_row(v, row, values_.at(s.slot), s.past + i);
      }
    }
    q.upload();
    k.upload();
    v.upload();
    AttentionArgs args{batch.map(),   q.ref(),        shape_.heads, cache_->view(), scale(),
                       shape_.window, shape_.softcap, y.ref(),      nullptr,        {}};
    const std::vector<std::byte> poison(gpu().attention_workspace(batch.rows(), shape_.heads, cache_->view()) + 1,
                                        std::byte{0xff});
    const OnDevice<std::byte> workspace(*stream_, poison);
    args.workspace = workspace.data();
    const float* const turns = angles ? angles->data() : nullptr;
    if (how.fused) {
      args.store = AttentionStore{k.ref(), v.ref(), how.dims, how.interleaved, turns};
    } else {
      if (how.dims > 0) {
        gpu().rotary({batch.map(), q.ref(), shape_.heads, shape_.head_dim, how.dims, how.interleaved, turns}, *stream_);
        gpu().rotary({batch.map(), k.ref(), shape_.kv_heads, shape_.head_dim, how.dims, how.interleaved, turns},
                     *stream_);
      }
      gpu().kv_store({batch.map(), k.ref(), v.ref(), cache_->view()}, *stream_);
    }
    gpu().attention(args, *stream_);
    y.download();
    y.expect_surroundings_untouched();
    cache_->read();
    return y;
  }

  /// Against attention over what the cache holds.
  void check(const TypedMatrix& y) const {
    compare(y, tolerance(), [&](bool of_v, std::int64_t slot, std::int64_t head, std::int64_t token, std::int64_t d) {
      return cache_->value(of_v, slot, head, token, d);
    });
  }

  /// Against attention over what was to be stored.
  void check_full_precision(const TypedMatrix& y, double bound) const {
    compare(y, bound, [&](bool of_v, std::int64_t slot, std::int64_t head, std::int64_t token, std::int64_t d) {
      const std::vector<float>& from = (of_v ? values_ : keys_).at(static_cast<std::int32_t>(slot));
      return from[static_cast<std::size_t>((token * shape_.kv_heads + head) * shape_.head_dim + d)];
    });
  }

 private:
  std::vector<float> numbers(std::mt19937& random, std::int64_t count, float sigma) const {
    std::normal_distribution<float> normal(0, sigma);
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& one : out) one = rounded(shape_.q, std::clamp(normal(random), -4 * sigma, 4 * sigma));
    return out;
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)) / shape_.sigma; }

  static void set_row(TypedMatrix& to, std::int64_t row, const std::vector<float>& from, std::int64_t index) {
    for (std::int64_t c = 0; c < to.columns(); ++c)
      to.set(row, c, from[static_cast<std::size_t>(index * to.columns() + c)]);
  }

  void store_past(const Sequence& piece) {
    const DeviceBatch batch(*stream_, {piece});
    const std::int64_t width = shape_.kv_heads * shape_.head_dim;
    TypedMatrix k(*stream_, shape_.q, piece.rows, width);
    TypedMatrix v(*stream_, shape_.q, piece.rows, width);
    for (std::int32_t i = 0; i < piece.rows; ++i) {
      set_row(k, i, keys_.at(piece.slot), piece.past + i);
      set_row(v, i, values_.at(piece.slot), piece.past + i);
    }
    k.upload();
    v.upload();
    gpu().kv_store({batch.map(), k.ref(), v.ref(), cache_->view()}, *stream_);
    stream_->synchronize();
  }

  // Values are up to 4. Rows by themselves are float arithmetic throughout. On tensor cores the probabilities (and q
  // where it is converted, and values of 8-bit caches) are rounded to the products' type, by up to 2^-11 or 2^-9 each:
  // twice 4 * 2^-11, and four times 4 * 2^-9. The result's own rounding comes on top.
  double tolerance() const {
    const double sharp = std::max(1.0f, shape_.sigma);
    const bool decode =
        std::all_of(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return s.rows == 1; });
    if (decode || shape_.q == DType::f32 || shape_.cache == DType::f32) return 5e-5 * sharp * sharp;
    const DType type = cuda::has_scales(shape_.cache) ? shape_.q : shape_.cache;
    return (type == DType::f16 ? 4e-3 : 3e-2) * sharp;
  }

  template <typename Value>
  void compare(const TypedMatrix& y, double absolute, const Value& value) const {
    std::int64_t row = 0;
    const std::int64_t dim = shape_.head_dim;
    for (const Sequence& s : sequences_) {
      const std::int64_t tokens = s.past + s.rows;
      for (std::int64_t kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
        std::vector<double> k, v;
        for (std::int64_t j = 0; j < tokens; ++j) {
          for (std::int64_t d = 0; d < dim; ++d) {
            k.push_back(value(false, s.slot, kv_head, j, d));
            v.push_back(value(true, s.slot, kv_head, j, d));
          }
        }
        const std::int64_t group = shape_.heads / shape_.kv_heads;
        for (std::int32_t i = 0; i < s.rows; ++i) {
          for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const std::vector<double> want = reference(s, i, head, k, v);
            for (std::int64_t d = 0; d < dim; ++d) {
              const double got = y.at(row + i, head * dim + d);
              const double limit = absolute + rounding_of(shape_.q) * std::abs(want[static_cast<std::size_t>(d)]);
              ASSERT_TRUE(std::abs(got - want[static_cast<std::size_t>(d)]) <= limit)
                  << text(shape_) << ": slot " << s.slot << " position " << s.past + i << " head " << head << " dim "
                  << d << ": " << got << ", expected " << want[static_cast<std::size_t>(d)];
            }
          }
        }
      }
      row += s.rows;
    }
  }

  std::vector<double> reference(const Sequence& s, std::int32_t i, std::int64_t head, const std::vector<double>& k,
                                const std::vector<double>& v) const {
    const std::int64_t dim = shape_.head_dim;
    const std::int64_t position = s.past + i;
    const std::int64_t first = shape_.window > 0 ? std::max<std::int64_t>(0, position - shape_.window + 1) : 0;
    const float* const q = queries_.at(s.slot).data() + (i * shape_.heads + head) * dim;
    std::vector<double> scores;
    for (std::int64_t j = first; j <= position; ++j) {
      double dot = 0;
      for (std::int64_t d = 0; d < dim; ++d)
        dot += static_cast<double>(q[d]) * k[static_cast<std::size_t>(j * dim + d)];
      dot *= scale();
      scores.push_back(shape_.softcap > 0 ? shape_.softcap * std::tanh(dot / shape_.softcap) : dot);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    std::vector<double> out(static_cast<std::size_t>(dim), 0.0);
    for (std::int64_t j = first; j <= position; ++j) {
      const double p = std::exp(scores[static_cast<std::size_t>(j - first)] - largest);
      sum += p;
      for (std::int64_t d = 0; d < dim; ++d)
        out[static_cast<std::size_t>(d)] += p * v[static_cast<std::size_t>(j * dim + d)];
    }
    for (double& one : out) one /= sum;
    return out;
  }

  Shape shape_;
  std::vector<Sequence> sequences_;
  std::unique_ptr<Stream> stream_;
  std::map<std::int32_t, std::vector<float>> keys_, values_, queries_;
  std::int64_t capacity_ = 0;
  std::optional<Cache> cache_;
};

void run_and_check(const Shape& shape, const std::vector<Sequence>& sequences) {
  SCOPED_TRACE(text(shape));
  Case one(shape, sequences);
  one.check(one.run());
}

// Prompts of lengths around the sizes of tiles, chunks behind a past, rows alone, one long among short ones.
const std::vector<Sequence> kRagged = {{3, 0, 33},  {0, 50, 1},  {1, 0, 1},   {2, 129, 70}, {4, 15, 2},
                                       {5, 300, 1}, {6, 63, 64}, {8, 0, 129}, {7, 200, 300}};
const std::vector<Sequence> kDecode = {{1, 0, 1}, {0, 36, 1}, {2, 299, 1}};

TEST(CudaKvStore, HoldsWhatWasStored) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const DType x : kActivationTypes) {
      for (const std::int64_t head_dim : {2, 16, 36, 80, 128, 256}) {
        Shape shape;
        shape.kv_heads = 3;
        shape.head_dim = head_dim;
        shape.cache = cache;
        SCOPED_TRACE(testing::Message() << name_of(cache) << " of " << name_of(x) << ", head_dim " << head_dim);
        const std::unique_ptr<Stream> stream = gpu().device().make_stream();
        const std::vector<Sequence> sequences = {{2, 5, 4}, {0, 0, 1}};
        const DeviceBatch batch(*stream, sequences);
        Cache stored(*stream, shape, 3, 9);
        TypedMatrix k(*stream, x, 5, 3 * head_dim, 5, 1);
        TypedMatrix v(*stream, x, 5, 3 * head_dim, 3, 0);
        std::mt19937 random(1);
        k.fill(random, 2);
        v.fill(random);
        for (std::int64_t d = 0; d < head_dim; ++d) v.set(1, d, 0);  // a row of zeros has no scale to divide by
        v.upload();
        gpu().kv_store({batch.map(), k.ref(), v.ref(), stored.view()}, *stream);
        stored.read();
        std::int64_t row = 0;
        for (const Sequence& s : sequences) {
          for (std::int32_t i = 0; i < s.rows; ++i, ++row) {
            for (const bool of_v : {false, true}) {
              for (std::int64_t head = 0; head < 3; ++head) {
                const TypedMatrix& from = of_v ? v : k;
                float largest = 0;
                for (std::int64_t d = 0; d < head_dim; ++d)
                  largest = std::max(largest, std::abs(from.at(row, head * head_dim + d)));
                for (std::int64_t d = 0; d < head_dim; ++d) {
                  const float want = from.at(row, head * head_dim + d);
                  const float got = stored.value(of_v, s.slot, head, s.past + i, d);
                  if (!cuda::has_scales(cache)) {
                    ASSERT_EQ(got, cache == DType::f32 ? want : rounded(cache, want));
                  } else {
                    // Half a step: of the whole row for i8, of the value's binade (or the subnormals) for e4m3.
                    const float step =
                        cache == DType::i8 ? 0.5f * largest / 127 : std::max(std::abs(want) / 16, largest / 224 / 1024);
                    ASSERT_LE(std::abs(got - want), step * 1.001f) << "row " << row << " head " << head << " dim " << d;
                  }
                }
                const std::int64_t padded =
                    cuda::kv_cache(stored.view()).row_bytes / static_cast<std::int64_t>(bytes_of(cache));
                for (std::int64_t d = head_dim; d < padded; ++d)
                  ASSERT_EQ(stored.code(of_v, s.slot, head, s.past + i, d), 0);
              }
            }
          }
        }
        for (const std::int64_t untouched : {0, 4}) {
          ASSERT_EQ(*stored.row(false, 2, 1, untouched), std::byte{0xff});
          ASSERT_EQ(*stored.row(true, 1, 1, untouched), std::byte{0xff});
        }
      }
    }
  }
}

TEST(CudaAttention, DecodesOverAllTypesAndHeadSizes) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const DType q : kActivationTypes) {
      for (const std::int64_t head_dim : {2, 16, 36, 64, 80, 96, 128, 160, 256}) {
        Shape shape;
        shape.q = q;
        shape.cache = cache;
        shape.head_dim = head_dim;
        shape.gap = head_dim % 32 == 0 ? 0 : 5;
        shape.lead = head_dim % 32 == 0 ? 0 : 1;
        run_and_check(shape, kDecode);
        shape.heads = 2;
        run_and_check(shape, {{0, 150, 1}});
      }
    }
  }
}

TEST(CudaAttention, DecodesGroupsOfHeads) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const std::int64_t group : {1, 2, 3, 4, 5, 7, 8, 9, 64, 71}) {
      Shape shape;
      shape.kv_heads = group > 10 ? 1 : 3;
      shape.heads = shape.kv_heads * group;
      shape.head_dim = 128;
      shape.cache = cache;
      run_and_check(shape, {{0, 130, 1}, {1, 7, 1}});
    }
  }
}

TEST(CudaAttention, DecodesAllLengths) {
  NIBBLE_NEEDS_GPU();
  std::vector<std::int32_t> lengths(70);
  std::iota(lengths.begin(), lengths.end(), 1);
  for (const std::int32_t around : {96, 128, 192, 256, 384, 512, 768, 1024}) {
    for (const std::int32_t off : {-1, 0, 1}) lengths.push_back(around + off);
  }
  lengths.push_back(1100);
  for (const DType cache : {DType::f16, DType::i8}) {
    Shape shape;
    shape.cache = cache;
    shape.heads = 2;
    shape.head_dim = 128;
    std::vector<Sequence> all;
    for (const std::int32_t length : lengths) {
      // Alone, eight blocks share the keys; together, one has them.
      if (length % 8 < 2 || length > 1000) run_and_check(shape, {{0, length - 1, 1}});
      all.push_back({static_cast<std::int32_t>(all.size()), length - 1, 1});
    }
    shape.heads = shape.kv_heads = 8;
    shape.head_dim = 64;
    run_and_check(shape, all);
  }
}

TEST(CudaAttention, PrefillsRaggedBatches) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const DType q : kActivationTypes) {
      for (const std::int64_t gap : {0, 3}) {
        Shape shape;
        shape.q = q;
        shape.cache = cache;
        shape.gap = gap;
        shape.lead = gap / 3;
        run_and_check(shape, kRagged);
      }
    }
  }
}

TEST(CudaAttention, PrefillsAllHeadSizesAndGroups) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const std::int64_t head_dim : {2, 16, 32, 36, 64, 80, 96, 104, 128, 192, 256}) {
      Shape shape;
      shape.q = cache == DType::bf16 ? DType::bf16 : DType::f16;
      shape.cache = cache;
      shape.head_dim = head_dim;
      run_and_check(shape, {{0, 0, 150}, {1, 90, 1}, {2, 70, 10}});
    }
    for (const std::int64_t group : {1, 3, 5, 7, 8}) {
      Shape shape;
      shape.cache = cache;
      shape.kv_heads = 2;
      shape.heads = 2 * group;
      run_and_check(shape, {{0, 0, 140}, {1, 200, 1}, {2, 5, 1}});
    }
  }
}

TEST(CudaAttention, PrefillsMoreSequencesThanAWarpLooksAtAtOnce) {
  NIBBLE_NEEDS_GPU();
  std::vector<Sequence> sequences;
  sequences.reserve(75);
  for (std::int32_t i = 0; i < 75; ++i) sequences.push_back({i, i % 7 * 3, i == 40 ? 300 : 1 + i % 5});
  for (const DType cache : {DType::f16, DType::f8_e4m3}) {
    Shape shape;
    shape.cache = cache;
    run_and_check(shape, sequences);
  }
}

TEST(CudaAttention, Windows) {
  NIBBLE_NEEDS_GPU();
  for (const std::int64_t window : {1, 5, 16, 63, 64, 65, 100, 1000}) {
    for (const DType cache : kCacheTypes) {
      Shape shape;
      shape.window = window;
      shape.cache = cache;
      run_and_check(shape, {{0, 0, 150}, {1, 300, 1}, {2, 200, 150}, {3, 0, 1}});
      run_and_check(shape, {{0, 0, 1}, {1, 300, 1}, {2, 77, 1}});
    }
  }
}

TEST(CudaAttention, Softcap) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    Shape shape;
    shape.softcap = 2;
    shape.cache = cache;
    run_and_check(shape, kRagged);
    run_and_check(shape, kDecode);
  }
}

// Scores of a spread of 4 and more: the largest changes from tile to tile, and most probabilities are 0.
TEST(CudaAttention, SharpScores) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : {DType::f32, DType::f16, DType::bf16}) {
    Shape shape;
    shape.cache = cache;
    shape.sigma = 4;
    run_and_check(shape, {{0, 0, 200}, {1, 400, 1}, {2, 500, 33}});
    run_and_check(shape, {{1, 400, 1}, {2, 533, 1}});
  }
}

// Bounds for values of deviation 1 cut at 4. i8: k and v are off by up to 4 / 254, scores by some hundredths. e4m3: v
// by up to a sixteenth of itself, which a row of one key shows in full, scores by about a tenth.
TEST(CudaAttention, EightBitCachesComeNearFullPrecision) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : {DType::i8, DType::f8_e4m3}) {
    Shape shape;
    shape.cache = cache;
    shape.head_dim = 128;
    for (const std::vector<Sequence>& sequences : {kRagged, kDecode}) {
      Case one(shape, sequences);
      one.check_full_precision(one.run(), cache == DType::i8 ? 0.08 : 0.4);
    }
  }
}

TEST(CudaAttention, StoresOnTheWayAsSeparateOpsDo) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const DType q : kActivationTypes) {
      for (const std::vector<Sequence>& sequences : {kRagged, kDecode}) {
        for (const std::int64_t group : {1, 9}) {
          Shape shape;
          shape.q = q;
          shape.cache = cache;
          shape.head_dim = 80;
          shape.kv_heads = 2;
          shape.heads = 2 * group;
          SCOPED_TRACE(text(shape));
          Case fused(shape, sequences);
          Case apart(shape, sequences);
          const TypedMatrix of_fused = fused.run({.fused = true});
          const TypedMatrix of_apart = apart.run();
          fused.check(of_fused);
          ASSERT_EQ(of_fused.values(), of_apart.values());
          ASSERT_TRUE(fused.cache().bytes() == apart.cache().bytes());
        }
      }
    }
  }
}

// The two rotations may contract their products differently, so a rotated value may be one rounding off; an 8-bit code
// then too. Scores of deviation 1 move by a rounding times a few, results no more.
TEST(CudaAttention, RotatesOnTheWayAsSeparateOpsDo) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const DType q : kActivationTypes) {
      for (const std::vector<Sequence>& sequences : {kRagged, kDecode}) {
        for (const bool interleaved : {false, true}) {
          for (const std::int64_t dims : {20, 64}) {
            Shape shape;
            shape.q = q;
            shape.cache = cache;
            SCOPED_TRACE(testing::Message()
                         << text(shape) << ", " << dims << " rotated" << (interleaved ? " pairs" : ""));
            Case fused(shape, sequences);
            Case apart(shape, sequences);
            const TypedMatrix of_fused = fused.run({true, dims, interleaved});
            const TypedMatrix of_apart = apart.run({false, dims, interleaved});
            const double step = cuda::has_scales(cache) ? 0x1p-6 : std::max(rounding_of(q), rounding_of(cache));
            expect_close(
                of_fused, [&](std::int64_t r, std::int64_t c) { return of_apart.at(r, c); }, 8 * step + 1e-5,
                2 * rounding_of(q));
          }
        }
      }
    }
  }
}

// A step is captured once and replayed while its sequences grow; each replay gives the bits of an eager call.
TEST(CudaAttention, ReplaysACapturedDecodeStep) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    Shape shape;
    shape.cache = cache;
    SCOPED_TRACE(name_of(cache));
    const std::unique_ptr<Stream> stream = gpu().device().make_stream();
    constexpr std::int32_t kTokens = 300;
    Cache replayed(*stream, shape, 2, kTokens);
    Cache eager(*stream, shape, 2, kTokens);
    DeviceBatch batch(*stream, {{0, 0, 1}, {1, 0, 1}});
    const std::vector<float> table = rotations(kTokens, 64);
    const OnDevice<float> angles(*stream, std::span<const float>(table));
    TypedMatrix q(*stream, shape.q, 2, shape.heads * 64);
    TypedMatrix k(*stream, shape.q, 2, shape.kv_heads * 64);
    TypedMatrix v(*stream, shape.q, 2, shape.kv_heads * 64);
    TypedMatrix y(*stream, shape.q, 2, shape.heads * 64);
    const OnDevice<std::byte> workspace(
        *stream, std::vector<std::byte>(gpu().attention_workspace(2, shape.heads, eager.view()) + 1, std::byte{0xff}));
    const auto attend = [&](const Cache& on) {
      gpu().attention({batch.map(), q.ref(), shape.heads, on.view(), 0.125f, 0, 0, y.ref(), workspace.data(),
                       AttentionStore{k.ref(), v.ref(), 64, false, angles.data()}},
                      *stream);
    };
    stream->begin_capture();
    attend(replayed);
    const std::unique_ptr<Graph> graph = stream->end_capture();
    std::mt19937 random(3);
    for (std::int32_t position = 0; position < kTokens; ++position) {
      batch.set_positions(*stream, {position, position / 2});
      q.fill(random);
      k.fill(random);
      v.fill(random);
      stream->launch(*graph);
      y.download();
      const std::vector<float> of_graph = y.values();
      attend(eager);
      y.download();
      ASSERT_EQ(y.values(), of_graph) << "position " << position;
      ASSERT_FALSE(std::isnan(of_graph.front()));
      if (position == 0 && !cuda::has_scales(cache)) {
        ASSERT_EQ(y.at(0, 0), rounded(shape.q, rounded(cache, v.at(0, 0))));
      }
    }
    ASSERT_TRUE(replayed.bytes() == eager.bytes());
  }
}

TEST(CudaAttention, GivesTheSameBitsEachTime) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : kCacheTypes) {
    for (const std::vector<Sequence>& sequences : {kRagged, kDecode}) {
      Shape shape;
      shape.cache = cache;
      Case one(shape, sequences);
      const std::vector<float> first = one.run({.fused = true}).values();
      for (int again = 0; again < 3; ++again) ASSERT_EQ(one.run({.fused = true}).values(), first) << text(shape);
    }
  }
}

// A prompt in one pass, and in chunks of which each finds those before in the cache.
TEST(CudaAttention, ChunksOfAPromptGiveWhatThePromptGives) {
  NIBBLE_NEEDS_GPU();
  for (const DType cache : {DType::f16, DType::i8}) {
    Shape shape;
    shape.cache = cache;
    shape.head_dim = 128;
    const std::unique_ptr<Stream> stream = gpu().device().make_stream();
    constexpr std::int32_t kTokens = 400;
    const std::int64_t q_width = shape.heads * shape.head_dim;
    const std::int64_t kv_width = shape.kv_heads * shape.head_dim;
    Cache whole(*stream, shape, 1, kTokens);
    Cache pieces(*stream, shape, 1, kTokens);
    TypedMatrix q(*stream, shape.q, kTokens, q_width), k(*stream, shape.q, kTokens, kv_width),
        v(*stream, shape.q, kTokens, kv_width), y(*stream, shape.q, kTokens, q_width),
        z(*stream, shape.q, kTokens, q_width);
    std::mt19937 random(5);
    q.fill(random);
    k.fill(random);
    v.fill(random);
    const auto rows_of = [](const MatrixRef& x, std::int64_t first, std::int64_t rows) {
      MatrixRef part = x;
      part.data = static_cast<std::byte*>(x.data) + first * x.stride * static_cast<std::int64_t>(bytes_of(x.dtype));
      part.rows = rows;
      return part;
    };
    const auto attend = [&](const Cache& on, TypedMatrix& to, std::int32_t first, std::int32_t rows) {
      const DeviceBatch batch(*stream, {{0, first, rows}});
      gpu().attention({batch.map(), rows_of(q.ref(), first, rows), shape.heads, on.view(), 0.09f, 0, 0,
                       rows_of(to.ref(), first, rows), nullptr,
                       AttentionStore{rows_of(k.ref(), first, rows), rows_of(v.ref(), first, rows), 0, false, nullptr}},
                      *stream);
      stream->synchronize();
    };
    attend(whole, y, 0, kTokens);
    for (const auto& [first, rows] : {std::pair{0, 128}, {128, 1}, {129, 200}, {329, 71}})
      attend(pieces, z, first, rows);
    y.download();
    z.download();
    expect_close(z, [&](std::int64_t r, std::int64_t c) { return y.at(r, c); }, 4e-3, 0x1p-10);
    ASSERT_TRUE(whole.bytes() == pieces.bytes());
  }
}

TEST(CudaAttention, RefusesShapesThatItCannotRun) {
  NIBBLE_NEEDS_GPU();
  EXPECT_THROW(gpu().kv_bytes({DType::i32, nullptr, nullptr, 1, 1, 16, 64}), Error);
  EXPECT_THROW(gpu().kv_bytes({DType::f16, nullptr, nullptr, 1, 1, 16, 258}), Error);
  EXPECT_THROW(gpu().kv_bytes({DType::f16, nullptr, nullptr, 1, 1, 16, 63}), Error);
  EXPECT_THROW(
      gpu().kv_bytes({DType::f32, nullptr, nullptr, std::int64_t{1} << 28, 1 << 20, std::int64_t{1} << 28, 64}), Error);
  EXPECT_THROW(gpu().attention_workspace(1, 7, {DType::f16, nullptr, nullptr, 1, 2, 16, 64}), Error);
}

}  // namespace
}  // namespace nibble::test
