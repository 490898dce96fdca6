// Attention without a cache, on the panels and products of linear sites (kernels/cpu/common_panels.h): a sequence's
// keys of one head are the weights of the first product, transposed once, its values those of the second. Between the
// two, the scores of a tile of queries are softened in a cache of the first or second level.
#include "ops/cpu/self_attention.h"

#include "core/checked.h"
#include "core/thread_pool.h"
#include "kernels/cpu/common_panels.h"
#include "ops/cpu/materialised_attention.h"
#include "ops/cpu/self_attention_ops.h"
#include "ops/cpu/spread_bias.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace nibble::cpu {
namespace {

// Queries of a tile: a multiple of 12 and 16, the heights of the products' tiles. 24 and 96 take the same time within
// 3% (head_dim 32 and 64, 128 and 512 rows).
constexpr std::int64_t kRows = 48;
// Keys that are softened together, a multiple of kPanel; what longer sequences summed before is rescaled. The scores of
// a tile, 99 KiB then, stay in a second-level cache.
constexpr std::int64_t kKeys = 512;
// Floats from row to row of scores: a line more than the keys, as rows a power of two apart would share a few sets of a
// cache.
constexpr std::int64_t kScoreStride = kKeys + 16;
constexpr std::int64_t kProbabilityStride = kKeys + 32;  // of bf16

constexpr std::array<float, kPanel> kNoBias{};

// Where things stand in a thread's part of the workspace, in bytes, each on a line of its own.
struct Scratch {
  std::size_t keys = 0;
  std::size_t values = 0;
  std::size_t queries = 0;  // bf16 only
  std::size_t scores = 0;
  std::size_t probabilities = 0;  // bf16 only; floats take the place of the scores
  std::size_t sums = 0;           // [kRows, panels of dimensions * 32]
  std::size_t bias = 0;           // [2 * longest - 1]
  std::size_t bytes = 0;

  Scratch(std::int64_t longest, std::int64_t dim, bool bf16) {
    const std::int64_t padded = round_up(longest, kPanel);
    const std::int64_t dims = round_up(dim, kPanel);
    const std::int64_t width = bf16 ? 2 : 4;
    const auto take = [&](std::size_t& place, std::int64_t count, std::int64_t size) {
      place = bytes;
      const auto wanted = checked_mul<std::size_t>(static_cast<std::size_t>(count), static_cast<std::size_t>(size),
                                                   "attention's scratch");
      bytes = checked_add(bytes, round_up(wanted, std::size_t{64}), "attention's scratch");
    };
    take(keys, padded * dims, width);
    take(values, padded * dims, width);
    take(queries, bf16 ? kRows * query_stride(dim) : 0, 2);
    take(scores, kRows * kScoreStride, 4);
    take(probabilities, bf16 ? kRows * kProbabilityStride : 0, 2);
    take(sums, kRows * dims, 4);
    take(bias, 2 * longest, 4);
  }

  static std::int64_t query_stride(std::int64_t dim) { return round_up(dim, kPanel) + kPanel; }
};

class FusedAttention {
 public:
  FusedAttention(const SelfAttentionArgs& args, const OpTable& ops, const panels::Functions& products,
                 std::int64_t longest)
      : args_(args),
        ops_(ops),
        products_(products),
        dim_(args.q.columns / args.heads),
        bf16_(args.compute == DType::bf16 && products_.bf16 != nullptr),
        own_(bf16_ ? self_attention_ops_avx512bf16() : self_attention_ops()),
        scratch_(longest, dim_, bf16_) {}

  // A tile belongs to the thread in whose share of the cost its middle lies.
  void run(int thread, int threads) const {
    std::int64_t total = 0;
    for (std::int64_t s = 0; s < args_.map.sequences; ++s) total += args_.heads * head_cost(s);
    if (total == 0) return;
    std::int64_t before = 0;
    for (std::int64_t s = 0; s < args_.map.sequences; ++s) {
      const std::int64_t cost = head_cost(s);
      for (std::int64_t head = 0; head < args_.heads; ++head, before += cost) {
        if ((before + cost) * threads < total * thread || before * threads > total * (thread + 1)) continue;
        std::int64_t first = rows(s);
        std::int64_t last = 0;
        std::int64_t at = before;
        for (std::int64_t row = 0; row < rows(s); row += kRows) {
          const std::int64_t here = tile_cost(s, row);
          if ((2 * at + here) * threads / (2 * total) == thread) {
            first = std::min(first, row);
            last = std::min(row + kRows, rows(s));
          }
          at += here;
        }
        if (first < last) attend_head(s, head, first, last, thread);
      }
    }
  }

 private:
  std::int64_t rows(std::int64_t s) const { return args_.map.row_begin[s + 1] - args_.map.row_begin[s]; }
  std::int64_t valid(std::int64_t s) const { return args_.valid != nullptr ? args_.valid[s] : rows(s); }
  // Keys that the rows up to `end` see.
  std::int64_t keys_before(std::int64_t s, std::int64_t end) const {
    return args_.causal ? std::min(valid(s), end) : valid(s);
  }
  std::int64_t tile_cost(std::int64_t s, std::int64_t row) const {
    const std::int64_t end = std::min(row + kRows, rows(s));
    return (end - row) * (keys_before(s, end) + 1);
  }
  std::int64_t head_cost(std::int64_t s) const {
    std::int64_t cost = 0;
    for (std::int64_t row = 0; row < rows(s); row += kRows) cost += tile_cost(s, row);
    return cost;
  }

  template <typename T>
  T* place(int thread, std::size_t offset) const {
    return reinterpret_cast<T*>(args_.workspace + static_cast<std::size_t>(thread) * scratch_.bytes + offset);
  }

  // Queries [first, last) of a sequence, for one head.
  void attend_head(std::int64_t s, std::int64_t head, std::int64_t first, std::int64_t last, int thread) const {
    const std::int64_t start = args_.map.row_begin[s];
    const std::int64_t keys = keys_before(s, last);
    pack(start, head, keys, thread);
    const float* bias =
        args_.bias != nullptr ? spread_bias(args_, head, rows(s), place<float>(thread, scratch_.bias)) : nullptr;
    for (std::int64_t row = first; row < last; row += kRows) {
      attend_tile(s, head, row, std::min(kRows, last - row), keys, bias, thread);
    }
  }

  std::int64_t key_panel_bytes() const { return (bf16_ ? round_up(dim_, kPanel) * 2 : dim_ * 4) * kPanel; }
  std::int64_t value_panel_bytes(std::int64_t keys) const {
    return bf16_ ? round_up(keys, kPanel) * kPanel * 2 : keys * kPanel * 4;
  }

  void pack(std::int64_t start, std::int64_t head, std::int64_t keys, int thread) const {
    auto* key_panel = place<std::byte>(thread, scratch_.keys);
    for (std::int64_t j = 0; j < keys; j += kPanel, key_panel += key_panel_bytes()) {
      own_.pack_keys(args_.k.f32_row(start + j) + head * dim_, args_.k.stride, std::min(kPanel, keys - j), dim_,
                     key_panel);
    }
    auto* value_panel = place<std::byte>(thread, scratch_.values);
    for (std::int64_t d = 0; d < dim_; d += kPanel, value_panel += value_panel_bytes(keys)) {
      own_.pack_values(args_.v.f32_row(start) + head * dim_ + d, args_.v.stride, keys, std::min(kPanel, dim_ - d),
                       value_panel);
    }
  }

  void attend_tile(std::int64_t s, std::int64_t head, std::int64_t row, std::int64_t count, std::int64_t all_keys,
                   const float* bias, int thread) const {
    const std::int64_t start = args_.map.row_begin[s] + row;
    const std::int64_t dims = round_up(dim_, kPanel);
    const std::int64_t keys = keys_before(s, row + count);
    const float factor = args_.scale * std::numbers::log2e_v<float>;
    auto* scores = place<float>(thread, scratch_.scores);
    auto* sums = place<float>(thread, scratch_.sums);
    std::array<float, kRows> max;
    std::array<float, kRows> sum{};
    max.fill(-INFINITY);
    if (bf16_) {
      for (std::int64_t r = 0; r < count; ++r) {
        products_.scale_bf16(args_.q.f32_row(start + r) + head * dim_, nullptr, 1, dim_, dims,
                             place<std::uint16_t>(thread, scratch_.queries) + r * Scratch::query_stride(dim_));
      }
    }
    for (std::int64_t key = 0; key < keys; key += kKeys) {
      const std::int64_t block = std::min(kKeys, keys - key);
      for (std::int64_t j = 0; j < block; j += kPanel) {
        score(start, head, count, (key + j) / kPanel, {scores + j, kScoreStride, kNoBias.data(), nullptr, 0}, thread);
      }
      const std::int64_t padded = bf16_ ? round_up(block, kPanel) : block;
      // What row r sees of the block, and its bias.
      const auto seen = [&](std::int64_t r) { return std::min(keys_before(s, row + r + 1) - key, block); };
      const auto bias_of = [&](std::int64_t r) { return bias != nullptr ? bias - (row + r) + key : nullptr; };
      std::array<float, kRows> before;
      for (std::int64_t r = 0; r < count; ++r) {
        const auto i = static_cast<std::size_t>(r);
        before[i] = max[i];
        if (seen(r) > 0)
          max[i] = std::max(max[i], own_.largest(scores + r * kScoreStride, seen(r), factor, bias_of(r)));
      }
      for (std::int64_t r = 0; r < count; ++r) {
        const auto i = static_cast<std::size_t>(r);
        if (key > 0 && before[i] != max[i]) {
          const float rescale = std::exp2(before[i] - max[i]);
          sum[i] *= rescale;
          for (std::int64_t d = 0; d < dims; ++d) sums[r * dims + d] *= rescale;
        }
        sum[i] += soften(scores + r * kScoreStride, r, seen(r), padded, factor, bias_of(r), max[i], thread);
      }
      for (std::int64_t d = 0; d < dims; d += kPanel) {
        const std::byte* panel = place<std::byte>(thread, scratch_.values) + d / kPanel * value_panel_bytes(all_keys) +
                                 key * kPanel * (bf16_ ? 2 : 4);
        add_values(panel, padded, count, {sums + d, dims, kNoBias.data(), key > 0 ? sums + d : nullptr, dims}, thread);
      }
    }
    for (std::int64_t r = 0; r < count; ++r) {
      float* y = args_.y.f32_row(start + r) + head * dim_;
      if (keys > 0) {
        ops_.finish(sums + r * dims, sum[static_cast<std::size_t>(r)], dim_, y);
      } else {
        std::fill_n(y, dim_, 0.0f);
      }
    }
  }

  // One panel of keys times the tile's queries.
  void score(std::int64_t start, std::int64_t head, std::int64_t count, std::int64_t panel, const panels::Output& to,
             int thread) const {
    const std::byte* keys = place<std::byte>(thread, scratch_.keys) + panel * key_panel_bytes();
    if (bf16_) {
      products_.bf16(reinterpret_cast<const std::uint16_t*>(keys), round_up(dim_, kPanel),
                     place<std::uint16_t>(thread, scratch_.queries), Scratch::query_stride(dim_), count, to);
    } else {
      products_.f32(reinterpret_cast<const float*>(keys), dim_, args_.q.f32_row(start) + head * dim_, args_.q.stride,
                    count, to);
    }
  }

  // Row r's scores of a block to probabilities, as SelfAttentionOps::soften; the row sees n of them, or none.
  float soften(float* scores, std::int64_t r, std::int64_t n, std::int64_t padded, float factor, const float* bias,
               float top, int thread) const {
    void* p = scores;
    if (bf16_) p = place<std::uint16_t>(thread, scratch_.probabilities) + r * kProbabilityStride;
    if (n > 0) return own_.soften(scores, n, padded, factor, bias, top, p);
    std::fill_n(static_cast<std::byte*>(p), padded * (bf16_ ? 2 : 4), std::byte{0});
    return 0;
  }

  // The tile's probabilities times one panel of values.
  void add_values(const std::byte* panel, std::int64_t keys, std::int64_t count, const panels::Output& to,
                  int thread) const {
    if (bf16_) {
      products_.bf16(reinterpret_cast<const std::uint16_t*>(panel), keys,
                     place<std::uint16_t>(thread, scratch_.probabilities), kProbabilityStride, count, to);
    } else {
      products_.f32(reinterpret_cast<const float*>(panel), keys, place<float>(thread, scratch_.scores), kScoreStride,
                    count, to);
    }
  }

  const SelfAttentionArgs& args_;
  const OpTable& ops_;
  const panels::Functions& products_;
  std::int64_t dim_;
  bool bf16_;
  const SelfAttentionOps& own_;
  Scratch scratch_;
};

}  // namespace

std::size_t self_attention_workspace(const SelfAttentionShape& shape, int parts) {
  if (shape.materialise) return materialised_workspace(shape, parts);
  const bool bf16 = shape.compute == DType::bf16 && panels::functions().bf16 != nullptr;
  return checked_mul(Scratch(shape.longest, shape.head_dim, bf16).bytes, static_cast<std::size_t>(parts),
                     "attention's scratch");
}

void self_attention(const SelfAttentionArgs& args, const OpTable& ops, int parts, CpuStream& stream) {
  if (args.materialise) return materialised_attention(args, ops, parts, stream);
  stream.parallel([args, &ops, parts, products = panels::functions()](int thread, int threads) {
    std::int64_t longest = 0;
    for (std::int64_t s = 0; s < args.map.sequences; ++s) {
      longest = std::max<std::int64_t>(longest, args.map.row_begin[s + 1] - args.map.row_begin[s]);
    }
    const int used = std::min(parts, threads);
    if (thread < used) FusedAttention(args, ops, products, longest).run(thread, used);
  });
}

}  // namespace nibble::cpu
