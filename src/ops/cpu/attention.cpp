#include "ops/cpu/attention.h"

#include "core/checked.h"
#include "core/thread_pool.h"
#include "ops/cpu/kv_layout.h"

#include <algorithm>
#include <numbers>

namespace nibble::cpu {
namespace {

// Keys of a chunk of a decode row: the unit in which threads share a long context. As short as a tile of keys can be,
// so that three kv heads of some hundred keys split evenly over two threads: measured as fast as 128, since merging is
// one pass over head_dim for 64 such passes over keys and as many over values.
constexpr std::int64_t kChunk = kKeyTile;

const AttentionKernel& kernel_for(const OpTable& active, const KvView& cache) {
  const OpTable& ops = cache.head_dim % 8 == 0 ? active : scalar_op_table();
  if (cache.dtype == DType::f32) return ops.attention_f32;
  return cache.dtype == DType::f16 ? ops.attention_f16 : ops.attention_bf16;
}

// What both phases share.
struct Setup {
  const AttentionArgs& args;
  const OpTable& ops;
  const AttentionKernel& kernel;
  std::int64_t group;       // q heads a kv head
  std::int64_t acc_stride;  // floats of a row's sums
  float factor;             // of q: its dot product with k is the score in base 2, or what the cap's tanh takes
  float cap;

  Setup(const AttentionArgs& a, const OpTable& table)
      : args(a),
        ops(table),
        kernel(kernel_for(table, a.cache)),
        group(a.heads / a.cache.kv_heads),
        acc_stride(round_up<std::int64_t>(a.cache.head_dim, 16)),
        factor(a.softcap > 0 ? a.scale / a.softcap : a.scale * std::numbers::log2e_v<float>),
        cap(a.softcap > 0 ? a.softcap * std::numbers::log2e_v<float> : 0) {}

  std::int64_t first_key(std::int64_t position) const {
    return args.window > 0 ? std::max<std::int64_t>(0, position - args.window + 1) : 0;
  }
  AttendArgs tile(std::int64_t slot, std::int64_t kv_head) const {
    AttendArgs a;
    a.head_dim = args.cache.head_dim;
    a.k = args.cache.k + kv_plane_offset(args.cache, slot, kv_head);
    a.v = args.cache.v + kv_plane_offset(args.cache, slot, kv_head);
    a.window = args.window;
    a.cap = cap;
    a.acc_stride = acc_stride;
    return a;
  }
};

// ---- One row a sequence -------------------------------------------------------------------------------------------

// The sums of all heads of one group over some keys: acc [group, acc_stride], max [group], sum [group].
struct Partial {
  float* acc;
  float* max;
  float* sum;
};

std::int64_t partial_floats(std::int64_t group, std::int64_t head_dim) {
  return group * round_up<std::int64_t>(head_dim, 16) + 2 * round_up<std::int64_t>(group, 16);
}

// The chunks that a row sees, counted from position 0.
struct Chunks {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t count() const { return end - begin; }
};

class DecodePhase {
 public:
  DecodePhase(const Setup& setup, int parts) : s_(setup), parts_(parts) {
    const RowMap& map = s_.args.map;
    for (std::int64_t i = 0; i < map.sequences; ++i) {
      if (!is_decode(i)) continue;
      const std::int64_t chunks = chunks_of(i).count();
      total_ += chunks * s_.args.cache.kv_heads;
      longest_ = std::max(longest_, chunks);
    }
  }

  bool may_cut() const { return parts_ > 1 && longest_ > 1; }

  // Works through this thread's chunks. A group of which it has the first chunk is finished here, or left in slot 0
  // when other threads have the rest; chunks of a group that began on another thread are left one a slot.
  void compute(int part) {
    const std::int64_t begin = begin_of(part);
    const std::int64_t end = begin_of(part + 1);
    for_groups(begin, end, [&](std::int64_t sequence, std::int64_t kv_head, std::int64_t start, const Chunks& chunks) {
      const std::int64_t from = std::max<std::int64_t>(begin - start, 0);
      const std::int64_t to = std::min(end - start, chunks.count());
      if (from > 0) {
        for (std::int64_t c = from; c < to; ++c) attend(sequence, kv_head, chunks.begin + c, slot(part, 2 + c - from));
        return;
      }
      const Partial whole = slot(part, 0);
      attend(sequence, kv_head, chunks.begin, whole);
      for (std::int64_t c = 1; c < to; ++c) {
        const Partial next = slot(part, 1);
        attend(sequence, kv_head, chunks.begin + c, next);
        merge(whole, next);
      }
      if (to == chunks.count()) finish(sequence, kv_head, whole);
    });
  }

  // After a barrier: takes up the chunks that other threads computed for the group that this one began last.
  void complete(int part) {
    const std::int64_t begin = begin_of(part);
    const std::int64_t end = begin_of(part + 1);
    for_groups(begin, end, [&](std::int64_t sequence, std::int64_t kv_head, std::int64_t start, const Chunks& chunks) {
      if (start < begin || start + chunks.count() <= end) return;
      const Partial whole = slot(part, 0);
      int owner = part + 1;
      for (std::int64_t c = end - start; c < chunks.count(); ++c) {
        while (begin_of(owner + 1) <= start + c) ++owner;
        const std::int64_t owners_first = begin_of(owner) - start;
        merge(whole, slot(owner, 2 + c - owners_first));
      }
      finish(sequence, kv_head, whole);
    });
  }

 private:
  bool is_decode(std::int64_t i) const { return s_.args.map.row_begin[i + 1] - s_.args.map.row_begin[i] == 1; }
  std::int64_t position(std::int64_t i) const { return s_.args.map.positions[s_.args.map.row_begin[i]]; }
  Chunks chunks_of(std::int64_t i) const { return {s_.first_key(position(i)) / kChunk, position(i) / kChunk + 1}; }
  std::int64_t begin_of(int part) const { return total_ * part / parts_; }

  // Calls body for each group that has chunks in [begin, end); start: the number of its first chunk.
  template <typename Body>
  void for_groups(std::int64_t begin, std::int64_t end, const Body& body) const {
    std::int64_t start = 0;
    for (std::int64_t i = 0; i < s_.args.map.sequences && start < end; ++i) {
      if (!is_decode(i)) continue;
      const Chunks chunks = chunks_of(i);
      for (std::int64_t head = 0; head < s_.args.cache.kv_heads; ++head, start += chunks.count()) {
        if (start + chunks.count() > begin && start < end) body(i, head, start, chunks);
      }
    }
  }

  Partial slot(int part, std::int64_t index) const {
    const std::int64_t floats = partial_floats(s_.group, s_.args.cache.head_dim);
    const std::int64_t slots = slots_a_part(s_.args.cache.capacity, parts_);
    float* at = reinterpret_cast<float*>(s_.args.workspace) + (part * slots + index) * floats;
    float* const max = at + s_.group * s_.acc_stride;
    return {at, max, max + round_up<std::int64_t>(s_.group, 16)};
  }

  void attend(std::int64_t sequence, std::int64_t kv_head, std::int64_t chunk, const Partial& to) const {
    const RowMap& map = s_.args.map;
    const std::int64_t row = map.row_begin[sequence];
    const std::int64_t head_dim = s_.args.cache.head_dim;
    alignas(64) float q[kMaxQueryRows * kMaxHeadDim];
    AttendArgs a = s_.tile(map.slots[row], kv_head);
    a.q = q;
    a.position = position(sequence);
    a.key_begin = chunk * kChunk;
    a.key_end = std::min(a.key_begin + kChunk, a.position + 1);
    for (std::int64_t first = 0; first < s_.group; first += kMaxQueryRows) {
      a.rows = static_cast<int>(std::min<std::int64_t>(kMaxQueryRows, s_.group - first));
      const float* from = s_.args.q.f32_row(row) + (kv_head * s_.group + first) * head_dim;
      s_.kernel.prepare_q(from, head_dim, a.rows, head_dim, s_.factor, q);
      a.acc = to.acc + first * s_.acc_stride;
      a.max = to.max + first;
      a.sum = to.sum + first;
      s_.kernel.attend(a);
    }
  }

  void merge(const Partial& into, const Partial& next) const {
    for (std::int64_t g = 0; g < s_.group; ++g) {
      s_.ops.merge(into.acc + g * s_.acc_stride, into.max + g, into.sum + g, next.acc + g * s_.acc_stride, next.max[g],
                   next.sum[g], s_.acc_stride);
    }
  }

  void finish(std::int64_t sequence, std::int64_t kv_head, const Partial& whole) const {
    const std::int64_t head_dim = s_.args.cache.head_dim;
    float* y = s_.args.y.f32_row(s_.args.map.row_begin[sequence]) + kv_head * s_.group * head_dim;
    for (std::int64_t g = 0; g < s_.group; ++g) {
      s_.ops.finish(whole.acc + g * s_.acc_stride, whole.sum[g], head_dim, y + g * head_dim);
    }
  }

 public:
  // Slot 0: the sums so far; 1: one chunk; then the chunks of a group that began on another thread.
  static std::int64_t slots_a_part(std::int64_t capacity, int parts) {
    return parts > 1 ? 2 + ceil_div(capacity, kChunk) : 2;
  }

 private:
  const Setup& s_;
  int parts_;
  std::int64_t total_ = 0;
  std::int64_t longest_ = 0;
};

// ---- Many rows a sequence -----------------------------------------------------------------------------------------

void attend_rows(const Setup& s, std::int64_t row, int rows, std::int64_t head) {
  const RowMap& map = s.args.map;
  const std::int64_t head_dim = s.args.cache.head_dim;
  alignas(64) float q[kMaxQueryRows * kMaxHeadDim];
  alignas(64) float acc[kMaxQueryRows * kMaxHeadDim];
  alignas(64) float max[kMaxQueryRows];
  alignas(64) float sum[kMaxQueryRows];
  AttendArgs a = s.tile(map.slots[row], head / s.group);
  a.q = q;
  a.rows = rows;
  a.position = map.positions[row];
  a.position_step = 1;
  a.key_begin = s.first_key(a.position) / kKeyTile * kKeyTile;
  a.key_end = a.position + rows;
  a.acc = acc;
  a.max = max;
  a.sum = sum;
  s.kernel.prepare_q(s.args.q.f32_row(row) + head * head_dim, s.args.q.stride, rows, head_dim, s.factor, q);
  s.kernel.attend_tile(a);
  for (int r = 0; r < rows; ++r) {
    s.ops.finish(acc + r * s.acc_stride, sum[r], head_dim, s.args.y.f32_row(row + r) + head * head_dim);
  }
}

// Calls body(row, rows, head, cost) for each tile of queries. All tiles of a head follow each other: they read the same
// keys. The cost is in tiles of keys.
template <typename Body>
void for_tiles(const Setup& s, const Body& body) {
  const RowMap& map = s.args.map;
  for (std::int64_t i = 0; i < map.sequences; ++i) {
    const std::int64_t begin = map.row_begin[i];
    const std::int64_t end = map.row_begin[i + 1];
    if (end - begin <= 1) continue;
    for (std::int64_t head = 0; head < s.args.heads; ++head) {
      for (std::int64_t row = begin; row < end; row += kMaxQueryRows) {
        const auto rows = static_cast<int>(std::min<std::int64_t>(kMaxQueryRows, end - row));
        const std::int64_t position = map.positions[row];
        body(row, rows, head, (position + rows - s.first_key(position)) / kKeyTile + 1);
      }
    }
  }
}

void prefill(const Setup& s, int thread, int threads) {
  std::int64_t total = 0;
  for_tiles(s, [&](std::int64_t, int, std::int64_t, std::int64_t cost) { total += cost; });
  std::int64_t before = 0;
  for_tiles(s, [&](std::int64_t row, int rows, std::int64_t head, std::int64_t cost) {
    // A tile belongs to the thread in whose share of the cost its middle lies.
    if ((2 * before + cost) * threads / (2 * total) == thread) attend_rows(s, row, rows, head);
    before += cost;
  });
}

}  // namespace

std::size_t attention_workspace(std::int64_t rows, std::int64_t heads, const KvView& cache, int parts) {
  if (rows <= 0) return 0;
  const std::int64_t slots =
      checked_mul<std::int64_t>(DecodePhase::slots_a_part(cache.capacity, parts), parts, "attention's scratch");
  const std::int64_t floats =
      checked_mul(slots, partial_floats(heads / cache.kv_heads, cache.head_dim), "attention's scratch");
  return checked_mul<std::size_t>(static_cast<std::size_t>(floats), sizeof(float), "attention's scratch");
}

void attention_task(const AttentionArgs& args, const OpTable& ops, int parts, int thread, int threads) {
  const Setup setup(args, ops);
  prefill(setup, thread, threads);
  const int used = std::min(parts, threads);
  DecodePhase decode(setup, used);
  if (thread < used) decode.compute(thread);
  if (!decode.may_cut()) return;
  ThreadPool::instance().barrier();
  if (thread < used) decode.complete(thread);
}

}  // namespace nibble::cpu
