#include "ops/cpu/materialised_attention.h"

#include "core/checked.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"
#include "kernels/cpu/library_engine.h"
#include "ops/cpu/self_attention_ops.h"
#include "ops/cpu/spread_bias.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <numbers>

namespace nibble::cpu {
namespace {

using dnnl::memory;
using Dims = std::array<std::int64_t, 4>;

// c[s, h] = a[s, h] b[s, h]: matrices of [sequences, heads], each with its strides; c is f32.
struct ProductShape {
  std::array<std::int64_t, 2> batch{};
  std::int64_t rows = 0;
  std::int64_t inner = 0;
  std::int64_t columns = 0;
  Dims a{}, b{}, c{};
  bool bf16 = false;  // of a and b
  auto operator<=>(const ProductShape&) const = default;
};

// The library's products by shape: making one takes longer than running a small one.
class Products {
 public:
  void run(const ProductShape& shape, const void* a, const void* b, void* c) {
    const std::lock_guard lock(mutex_);
    // Passes come in few shapes, but ragged ones might come in any number.
    if (made_.size() >= kMost && !made_.contains(shape)) made_.clear();
    auto found = made_.find(shape);
    if (found == made_.end()) found = made_.emplace(shape, Product(shape)).first;
    found->second.run(a, b, c);
  }

 private:
  static constexpr std::size_t kMost = 512;

  class Product {
   public:
    explicit Product(const ProductShape& s) {
      const auto type = s.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
      const auto describe = [&s](std::int64_t rows, std::int64_t columns, memory::data_type t, const Dims& strides) {
        return memory::desc({s.batch[0], s.batch[1], rows, columns}, t, memory::dims(strides.begin(), strides.end()));
      };
      const memory::desc a = describe(s.rows, s.inner, type, s.a);
      const memory::desc b = describe(s.inner, s.columns, type, s.b);
      const memory::desc c = describe(s.rows, s.columns, memory::data_type::f32, s.c);
      primitive_ = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), library_engine()));
      a_ = memory(a, library_engine(), nullptr);
      b_ = memory(b, library_engine(), nullptr);
      c_ = memory(c, library_engine(), nullptr);
    }
    void run(const void* a, const void* b, void* c) {
      a_.set_data_handle(const_cast<void*>(a), library_stream());
      b_.set_data_handle(const_cast<void*>(b), library_stream());
      c_.set_data_handle(c, library_stream());
      primitive_.execute(library_stream(), {{DNNL_ARG_SRC, a_}, {DNNL_ARG_WEIGHTS, b_}, {DNNL_ARG_DST, c_}});
    }

   private:
    dnnl::matmul primitive_;
    memory a_, b_, c_;
  };

  std::mutex mutex_;
  std::map<ProductShape, Product> made_;
};

Products& products() {
  static Products all;
  return all;
}

bool takes_bf16(DType compute) { return compute == DType::bf16 && panels::functions().bf16 != nullptr; }

// Where things stand in the workspace, in bytes.
struct Places {
  std::size_t scores = 0;         // [sequences, heads, rows, rows] f32
  std::size_t probabilities = 0;  // the same in bf16; in f32 they take the place of the scores
  std::size_t inputs = 0;         // q, k and v in bf16
  std::size_t own = 0;            // of each thread, own_floats(longest)
  std::size_t bytes = 0;

  // A bias for each distance, and a row of bf16 in whole registers.
  static std::int64_t own_floats(std::int64_t longest) { return 3 * round_up(longest, std::int64_t{16}); }
  static std::int64_t input_stride(std::int64_t columns) { return round_up(columns, std::int64_t{16}); }
};

// For `rows` rows in all, of sequences whose squares of lengths are `squares` in all.
Places places_of(std::int64_t rows, std::int64_t squares, std::int64_t longest, std::int64_t heads,
                 std::int64_t columns, bool bf16, int parts) {
  constexpr std::string_view kWhat = "attention's scores";
  Places p;
  const auto take = [&](std::size_t& place, std::int64_t count, std::int64_t each, std::int64_t width) {
    place = p.bytes;
    const std::int64_t size = checked_mul(checked_mul(count, each, kWhat), width, kWhat);
    p.bytes = checked_add(p.bytes, static_cast<std::size_t>(round_up(size, std::int64_t{64})), kWhat);
  };
  take(p.scores, squares, heads, 4);
  take(p.probabilities, squares, bf16 ? heads : 0, 2);
  take(p.inputs, rows, bf16 ? 3 * Places::input_stride(columns) : 0, 2);
  take(p.own, parts, Places::own_floats(longest), 4);
  return p;
}

class MaterialisedAttention {
 public:
  MaterialisedAttention(const SelfAttentionArgs& args, const OpTable& ops, int parts)
      : args_(args),
        ops_(ops),
        own_(self_attention_ops()),
        functions_(panels::functions()),
        parts_(parts),
        dim_(args.q.columns / args.heads),
        bf16_(takes_bf16(args.compute)) {}

  bool rounds() const { return bf16_; }

  // q, k and v to bf16.
  void round(int thread, int threads) const {
    const std::int64_t stride = Places::input_stride(args_.q.columns);
    const auto [begin, end] = split_range(3 * args_.map.rows, 1, thread, threads);
    for (std::int64_t i = begin; i < end; ++i) {
      const MatrixRef& from = *std::array{&args_.q, &args_.k, &args_.v}[static_cast<std::size_t>(i / args_.map.rows)];
      functions_.scale_bf16(from.f32_row(i % args_.map.rows), nullptr, 1, from.columns, stride,
                            at<std::uint16_t>(places().inputs) + i * stride);
    }
  }

  void score() const {
    for_products([&](const Group& g) {
      const Input q = input(0, g.first);
      const Input k = input(1, g.first);
      products().run({.batch = {g.sequences, args_.heads},
                      .rows = g.rows,
                      .inner = dim_,
                      .columns = g.rows,
                      .a = {g.rows * q.stride, dim_, q.stride, 1},
                      .b = {g.rows * k.stride, dim_, 1, k.stride},
                      .c = score_strides(g),
                      .bf16 = bf16_},
                     q.data, k.data, at<float>(places().scores) + g.score);
    });
  }

  // The softmax of all rows, with scale, bias and masks.
  void soften(int thread, int threads) const {
    const int used = std::min(parts_, threads);
    if (thread >= used) return;
    const Places p = places();
    const std::int64_t longest = sizes().longest;
    float* const spread = at<float>(p.own) + thread * Places::own_floats(longest);
    auto* const line = reinterpret_cast<std::uint16_t*>(spread + 2 * longest);
    std::int64_t before = 0;
    for (std::int64_t s = 0; s < args_.map.sequences; ++s) {
      const std::int64_t rows = length(s);
      const std::int64_t valid = args_.valid != nullptr ? args_.valid[s] : rows;
      const auto [begin, end] = split_range(args_.heads * rows, 1, thread, used);
      std::int64_t ready = -1;  // the head whose bias is spread
      const float* bias = nullptr;
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i % rows;
        if (args_.bias != nullptr && ready != i / rows) {
          ready = i / rows;
          bias = spread_bias(args_, ready, rows, spread);
        }
        const std::int64_t seen = args_.causal ? std::min(valid, row + 1) : valid;
        soften_row(before + i * rows, rows, seen, bias != nullptr ? bias - row : nullptr, line);
      }
      before += args_.heads * rows * rows;
    }
  }

  void add_values() const {
    for_products([&](const Group& g) {
      const Input v = input(2, g.first);
      const void* p = bf16_ ? static_cast<const void*>(at<std::uint16_t>(places().probabilities) + g.score)
                            : at<float>(places().scores) + g.score;
      products().run({.batch = {g.sequences, args_.heads},
                      .rows = g.rows,
                      .inner = g.rows,
                      .columns = dim_,
                      .a = score_strides(g),
                      .b = {g.rows * v.stride, dim_, v.stride, 1},
                      .c = {g.rows * args_.y.stride, dim_, args_.y.stride, 1},
                      .bf16 = bf16_},
                     p, v.data, args_.y.f32_row(g.first));
    });
  }

 private:
  // Sequences of one length that follow each other, and where their scores begin.
  struct Group {
    std::int64_t first = 0;  // row
    std::int64_t sequences = 0;
    std::int64_t rows = 0;  // of each
    std::int64_t score = 0;
  };
  struct Sizes {
    std::int64_t longest = 0;
    std::int64_t squares = 0;
  };
  struct Input {
    const void* data;
    std::int64_t stride;
  };

  std::int64_t length(std::int64_t s) const { return args_.map.row_begin[s + 1] - args_.map.row_begin[s]; }
  Sizes sizes() const {
    Sizes z;
    for (std::int64_t s = 0; s < args_.map.sequences; ++s) {
      z.longest = std::max(z.longest, length(s));
      z.squares += length(s) * length(s);
    }
    return z;
  }
  Places places() const {
    const Sizes z = sizes();
    return places_of(args_.map.rows, z.squares, z.longest, args_.heads, args_.q.columns, bf16_, parts_);
  }
  template <typename T>
  T* at(std::size_t place) const {
    return reinterpret_cast<T*>(args_.workspace + place);
  }
  Dims score_strides(const Group& g) const { return {args_.heads * g.rows * g.rows, g.rows * g.rows, g.rows, 1}; }

  // q, k or v from a row on, as the products take it.
  Input input(int which, std::int64_t row) const {
    if (bf16_) {
      const std::int64_t stride = Places::input_stride(args_.q.columns);
      return {at<std::uint16_t>(places().inputs) + (which * args_.map.rows + row) * stride, stride};
    }
    const MatrixRef& m = which == 0 ? args_.q : which == 1 ? args_.k : args_.v;
    return {m.f32_row(row), m.stride};
  }

  // A padded batch is one product; in others, each run of sequences of one length.
  template <typename Body>
  void for_products(const Body& body) const {
    Group g;
    for (std::int64_t s = 0; s < args_.map.sequences; s += g.sequences) {
      g.first = args_.map.row_begin[s];
      g.rows = length(s);
      g.sequences = 1;
      while (s + g.sequences < args_.map.sequences && length(s + g.sequences) == g.rows) ++g.sequences;
      if (g.rows > 0) body(g);
      g.score += g.sequences * args_.heads * g.rows * g.rows;
    }
  }

  // The row of `rows` scores at an offset, of which `seen` count. line: room for a row of bf16.
  void soften_row(std::int64_t offset, std::int64_t rows, std::int64_t seen, const float* bias,
                  std::uint16_t* line) const {
    const Places p = places();
    float* row = at<float>(p.scores) + offset;
    if (seen > 0) {
      const float factor = args_.scale * std::numbers::log2e_v<float>;
      const float top = own_.largest(row, seen, factor, bias);
      const float sum = own_.soften(row, seen, rows, factor, bias, top, row);
      ops_.finish(row, sum, seen, row);
    } else {
      std::fill_n(row, rows, 0.0f);
    }
    if (!bf16_) return;
    // By way of the line, as whole registers are written there.
    functions_.scale_bf16(row, nullptr, 1, rows, rows, line);
    std::memcpy(at<std::uint16_t>(p.probabilities) + offset, line, static_cast<std::size_t>(rows) * 2);
  }

  SelfAttentionArgs args_;
  const OpTable& ops_;
  const SelfAttentionOps& own_;
  panels::Functions functions_;
  int parts_;
  std::int64_t dim_;
  bool bf16_;
};

}  // namespace

std::size_t materialised_workspace(const SelfAttentionShape& shape, int parts) {
  const std::int64_t squares = checked_mul(checked_mul(shape.longest, shape.longest, "attention's scores"),
                                           shape.sequences, "attention's scores");
  return places_of(shape.rows, squares, shape.longest, shape.heads, shape.heads * shape.head_dim,
                   takes_bf16(shape.compute), parts)
      .bytes;
}

void materialised_attention(const SelfAttentionArgs& args, const OpTable& ops, int parts, CpuStream& stream) {
  const auto call = std::make_shared<const MaterialisedAttention>(args, ops, parts);
  if (call->rounds()) stream.parallel([call](int thread, int threads) { call->round(thread, threads); });
  stream.serial([call] { call->score(); });
  stream.parallel([call](int thread, int threads) { call->soften(thread, threads); });
  stream.serial([call] { call->add_values(); });
}

}  // namespace nibble::cpu
