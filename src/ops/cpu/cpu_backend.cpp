// The CPU's back end: checks what it is given, and divides each call's rows (or columns, or heads) among the threads.
#include "core/checked.h"
#include "core/cpu_device.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "ops/backend.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/convolution.h"
#include "ops/cpu/kv_layout.h"
#include "ops/cpu/op_table.h"
#include "ops/cpu/sampling.h"
#include "ops/cpu/self_attention.h"

#include <algorithm>
#include <cstring>

namespace nibble {
namespace {

using cpu::OpTable;

// Columns that are worth a thread of their own: 4 KiB, some 100 ns of work, a tenth of what waiting for it costs.
constexpr std::int64_t kGrain = 1024;

// Calls body(row, column, columns) for this thread's part of a matrix: whole rows where there are enough of them, else
// runs of columns.
template <typename Body>
void for_part(std::int64_t rows, std::int64_t columns, int thread, int threads, const Body& body) {
  if (rows >= threads) {
    const auto [begin, end] = split_range(rows, 1, thread, threads);
    for (std::int64_t row = begin; row < end; ++row) body(row, std::int64_t{0}, columns);
    return;
  }
  const std::int64_t pieces = ceil_div(columns, kGrain);
  const auto [begin, end] = split_range(rows * pieces, 1, thread, threads);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t column = i % pieces * kGrain;
    body(i / pieces, column, std::min(kGrain, columns - column));
  }
}

void check_f32(const MatrixRef& m, std::string_view op, std::string_view what) {
  if (m.dtype != DType::f32) fail("{}: {} is {}, but activations on the CPU are f32", op, what, name_of(m.dtype));
  if (m.rows > 0 && m.stride < m.columns) {
    fail("{}: {} has rows of {} elements {} apart: they overlap", op, what, m.columns, m.stride);
  }
}

void check_shape(const MatrixRef& m, std::int64_t rows, std::int64_t columns, std::string_view op,
                 std::string_view what) {
  check_f32(m, op, what);
  if (m.rows < rows || m.columns != columns) {
    fail("{}: {} is [{}, {}], expected [{}, {}]", op, what, m.rows, m.columns, rows, columns);
  }
}

void check_cache(const KvView& cache, std::string_view op) {
  if (cache.dtype != DType::f32 && cache.dtype != DType::f16 && cache.dtype != DType::bf16) {
    fail("{}: a KV cache of {} is not supported on the CPU; use f32, f16 or bf16", op, name_of(cache.dtype));
  }
  if (cache.kv_heads <= 0 || cache.head_dim <= 0 || cache.head_dim % 2 != 0 || cache.head_dim > cpu::kMaxHeadDim) {
    fail("{}: {} kv heads of dimension {} are not supported on the CPU; expected an even head_dim of at most {}", op,
         cache.kv_heads, cache.head_dim, cpu::kMaxHeadDim);
  }
}

// y = scale * n values of a table's row, from `column` on.
void read_row(const OpTable& ops, const MatrixRef& table, std::int64_t row, float scale, std::int64_t column,
              std::int64_t n, float* y) {
  const std::int64_t from = row * table.stride + column;
  const std::size_t bytes = table.dtype == DType::f32 ? 4 : 2;
  ops.embed(static_cast<const std::byte*>(table.data) + static_cast<std::size_t>(from) * bytes, table.dtype, scale, n,
            y);
}

// y += n values of a table's row, from `column` on.
void add_row(const OpTable& ops, const MatrixRef& table, std::int64_t row, std::int64_t column, std::int64_t n,
             float* y) {
  alignas(64) float part[kGrain];
  for (std::int64_t first = 0; first < n; first += kGrain) {
    const std::int64_t count = std::min(kGrain, n - first);
    read_row(ops, table, row, 1, column + first, count, part);
    ops.add(y + first, part, count, y + first);
  }
}

class CpuBackend final : public Backend {
 public:
  CpuBackend() : ops_(&cpu::active_op_table()), parts_(ThreadPool::instance().threads()) {}

  Device& device() override { return cpu_device(); }

  BackendTraits traits() const override { return {.self_attention = true, .images = true, .audio = true}; }

  void embed(const EmbedArgs& args, Stream& stream) override {
    check_shape(args.y, args.map.rows, args.table.columns, "embed", "y");
    check_table(args.table, args.y);
    if (args.positions.data != nullptr) check_table(args.positions, args.y);
    if (args.types.data != nullptr) check_table(args.types, args.y);
    cpu_stream(stream).parallel([args, ops = ops_](int thread, int threads) {
      for_part(args.map.rows, args.y.columns, thread, threads,
               [&](std::int64_t row, std::int64_t column, std::int64_t n) {
                 float* y = args.y.f32_row(row) + column;
                 read_row(*ops, args.table, args.map.tokens[row], args.scale, column, n, y);
                 if (args.types.data != nullptr)
                   add_row(*ops, args.types, args.map.types != nullptr ? args.map.types[row] : 0, column, n, y);
                 if (args.positions.data != nullptr)
                   add_row(*ops, args.positions, args.map.positions[row] + args.position_offset, column, n, y);
               });
    });
  }

  void cut_patches(const PatchArgs& args, Stream& stream) override {
    const std::int64_t side = args.patch > 0 ? args.size / args.patch : 0;
    check_shape(args.y, args.images * side * side, args.channels * args.patch * args.patch, "cut_patches", "y");
    cpu_stream(stream).parallel([args, side](int thread, int threads) {
      const auto [begin, end] = split_range(args.images * side * side, 1, thread, threads);
      const auto run = static_cast<std::size_t>(args.patch) * sizeof(float);
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t image = row / (side * side);
        const std::int64_t top = row / side % side * args.patch;
        const std::int64_t left = row % side * args.patch;
        float* y = args.y.f32_row(row);
        for (std::int64_t channel = 0; channel < args.channels; ++channel) {
          const float* plane = args.pixels + (image * args.channels + channel) * args.size * args.size;
          for (std::int64_t line = 0; line < args.patch; ++line, y += args.patch)
            std::memcpy(y, plane + (top + line) * args.size + left, run);
        }
      }
    });
  }

  void place_patches(const PlaceArgs& args, Stream& stream) override {
    const std::int64_t rows = args.positions.rows;
    const auto leads = std::count_if(args.leading.begin(), args.leading.end(),
                                     [](const MatrixRef& lead) { return lead.data != nullptr; });
    check_table(args.positions, args.y);
    for (std::int64_t lead = 0; lead < leads; ++lead) check_table(args.leading[static_cast<std::size_t>(lead)], args.y);
    check_shape(args.y, args.images * rows, args.positions.columns, "place_patches", "y");
    check_shape(args.x, args.images * (rows - leads), args.y.columns, "place_patches", "x");
    cpu_stream(stream).parallel([args, rows, leads, ops = ops_](int thread, int threads) {
      for_part(args.images * rows, args.y.columns, thread, threads,
               [&](std::int64_t row, std::int64_t column, std::int64_t n) {
                 const std::int64_t place = row % rows;
                 float* y = args.y.f32_row(row) + column;
                 if (place < leads) {
                   read_row(*ops, args.leading[static_cast<std::size_t>(place)], 0, 1, column, n, y);
                 } else {
                   const float* x = args.x.f32_row(row / rows * (rows - leads) + place - leads) + column;
                   std::memcpy(y, x, static_cast<std::size_t>(n) * sizeof(float));
                 }
                 add_row(*ops, args.positions, place, column, n, y);
               });
    });
  }

  void norm(const NormArgs& args, Stream& stream) override {
    check_f32(args.x, "norm", "x");
    check_shape(args.y, args.x.rows, args.x.columns, "norm", "y");
    if (args.groups <= 0 || args.x.columns % args.groups != 0) {
      fail("norm: rows of {} elements do not divide into {} groups", args.x.columns, args.groups);
    }
    cpu_stream(stream).parallel([args, ops = ops_](int thread, int threads) {
      const std::int64_t width = args.x.columns / args.groups;
      const auto [begin, end] = split_range(args.x.rows * args.groups, 1, thread, threads);
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t column = i % args.groups * width;
        const float* x = args.x.f32_row(i / args.groups) + column;
        float* y = args.y.f32_row(i / args.groups) + column;
        if (args.kind == NormKind::rms) {
          ops->rms_norm(x, args.weight, args.eps, width, y);
        } else {
          ops->layer_norm(x, args.weight, args.bias, args.eps, width, y);
        }
      }
    });
  }

  void rotary(const RotaryArgs& args, Stream& stream) override {
    check_shape(args.x, args.map.rows, args.heads * args.head_dim, "rotary", "x");
    if (args.dims <= 0 || args.dims % 2 != 0 || args.dims > args.head_dim) {
      fail("rotary: cannot rotate {} dimensions of a head of {}; expected an even number of at most that", args.dims,
           args.head_dim);
    }
    cpu_stream(stream).parallel([args, ops = ops_](int thread, int threads) {
      const auto [begin, end] = split_range(args.map.rows * args.heads, 1, thread, threads);
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i / args.heads;
        const float* table = args.table + args.map.positions[row] * args.dims;
        ops->rotate(args.x.f32_row(row) + i % args.heads * args.head_dim, table, table + args.dims / 2, args.dims / 2,
                    args.interleaved);
      }
    });
  }

  std::size_t kv_bytes(const KvView& shape) const override {
    check_cache(shape, "the KV cache");
    if (shape.slots < 0 || shape.capacity < 0)
      fail("the KV cache has {} slots of {} tokens", shape.slots, shape.capacity);
    const std::int64_t tokens =
        round_up(checked_add(shape.capacity, cpu::kKeyBlock, "the KV cache") - cpu::kKeyBlock, cpu::kKeyBlock);
    const std::int64_t plane = checked_mul(tokens, shape.head_dim * cpu::kv_element_bytes(shape.dtype), "the KV cache");
    const std::int64_t planes = checked_mul(shape.slots, shape.kv_heads, "the KV cache");
    return static_cast<std::size_t>(checked_mul(plane, planes, "the KV cache")) + cpu::kKvSlack;
  }

  void kv_store(const KvStoreArgs& args, Stream& stream) override {
    check_cache(args.cache, "kv_store");
    check_shape(args.k, args.map.rows, args.cache.kv_heads * args.cache.head_dim, "kv_store", "k");
    check_shape(args.v, args.map.rows, args.cache.kv_heads * args.cache.head_dim, "kv_store", "v");
    cpu_stream(stream).parallel(
        [args, ops = ops_](int thread, int threads) { kv_store_task(args, *ops, thread, threads); });
  }

  std::size_t attention_workspace(std::int64_t rows, std::int64_t heads, const KvView& cache) const override {
    check_heads(heads, cache);
    return cpu::attention_workspace(rows, heads, cache, parts_);
  }

  void attention(const AttentionArgs& args, Stream& stream) override {
    check_heads(args.heads, args.cache);
    check_shape(args.q, args.map.rows, args.heads * args.cache.head_dim, "attention", "q");
    check_shape(args.y, args.map.rows, args.heads * args.cache.head_dim, "attention", "y");
    cpu_stream(stream).parallel([args, ops = ops_, parts = parts_](int thread, int threads) {
      cpu::attention_task(args, *ops, parts, thread, threads);
    });
  }

  std::size_t self_attention_workspace(const SelfAttentionShape& shape) const override {
    return cpu::self_attention_workspace(shape, parts_);
  }

  void self_attention(const SelfAttentionArgs& args, Stream& stream) override {
    const std::int64_t columns = args.q.columns;
    if (args.heads <= 0 || columns % args.heads != 0) {
      fail("self_attention: rows of {} elements do not divide among {} heads", columns, args.heads);
    }
    check_shape(args.q, args.map.rows, columns, "self_attention", "q");
    check_shape(args.k, args.map.rows, columns, "self_attention", "k");
    check_shape(args.v, args.map.rows, columns, "self_attention", "v");
    check_shape(args.y, args.map.rows, columns, "self_attention", "y");
    cpu::self_attention(args, *ops_, parts_, cpu_stream(stream));
  }

  void activation(ActivationKind kind, const MatrixRef& x, const MatrixRef& y, Stream& stream) override {
    check_f32(x, "activation", "x");
    check_shape(y, x.rows, x.columns, "activation", "y");
    cpu_stream(stream).parallel([=, ops = ops_](int thread, int threads) {
      for_part(x.rows, x.columns, thread, threads, [&](std::int64_t row, std::int64_t column, std::int64_t n) {
        ops->activate(kind, x.f32_row(row) + column, n, y.f32_row(row) + column);
      });
    });
  }

  void gated_activation(ActivationKind kind, const MatrixRef& gate, const MatrixRef& up, const MatrixRef& y,
                        Stream& stream) override {
    check_f32(gate, "gated_activation", "gate");
    check_shape(up, gate.rows, gate.columns, "gated_activation", "up");
    check_shape(y, gate.rows, gate.columns, "gated_activation", "y");
    cpu_stream(stream).parallel([=, ops = ops_](int thread, int threads) {
      for_part(gate.rows, gate.columns, thread, threads, [&](std::int64_t row, std::int64_t column, std::int64_t n) {
        ops->gated(kind, gate.f32_row(row) + column, up.f32_row(row) + column, n, y.f32_row(row) + column);
      });
    });
  }

  void add(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, Stream& stream) override {
    check_f32(a, "add", "a");
    check_shape(b, a.rows, a.columns, "add", "b");
    check_shape(y, a.rows, a.columns, "add", "y");
    cpu_stream(stream).parallel([=, ops = ops_](int thread, int threads) {
      for_part(a.rows, a.columns, thread, threads, [&](std::int64_t row, std::int64_t column, std::int64_t n) {
        ops->add(a.f32_row(row) + column, b.f32_row(row) + column, n, y.f32_row(row) + column);
      });
    });
  }

  void mean(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, Stream& stream) override {
    check_f32(a, "mean", "a");
    check_shape(b, a.rows, a.columns, "mean", "b");
    check_shape(y, a.rows, a.columns, "mean", "y");
    cpu_stream(stream).parallel([=](int thread, int threads) {
      for_part(a.rows, a.columns, thread, threads, [&](std::int64_t row, std::int64_t column, std::int64_t n) {
        for (std::int64_t c = column; c < column + n; ++c)
          y.f32_row(row)[c] = (a.f32_row(row)[c] + b.f32_row(row)[c]) / 2;
      });
    });
  }

  std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape, std::span<const float> weight,
                                                      std::span<const float> bias, Stream& stream) override {
    return cpu::pack_convolution(shape, weight, bias, stream);
  }
  std::size_t convolution_bytes(const ConvolutionShape& shape) const override { return cpu::convolution_bytes(shape); }
  std::size_t convolution_workspace(const ConvolutionShape& shape) const override {
    return cpu::convolution_workspace(shape);
  }

  void convolve(const PackedConvolution& packed, const ConvolveArgs& args, Stream& stream) override {
    check_f32(args.x, "convolve", "x");
    check_f32(args.y, "convolve", "y");
    cpu::convolve(packed, args, stream);
  }

  void instance_norm(const InstanceNormArgs& args, Stream& stream) override {
    check_shape(args.x, args.begin.back(), args.x.columns, "instance_norm", "x");
    check_shape(args.y, args.begin.back(), args.x.columns, "instance_norm", "y");
    cpu::instance_norm(args, cpu_stream(stream));
  }

  void trim_frames(const TrimArgs& args, Stream& stream) override {
    check_shape(args.y, args.y.rows, args.x.columns, "trim_frames", "y");
    cpu::trim_frames(args, cpu_stream(stream));
  }
  void transpose(const MatrixRef& x, const MatrixRef& y, Stream& stream) override {
    cpu::transpose(x, y, cpu_stream(stream));
  }

  void gather_rows(const MatrixRef& x, const std::int32_t* indices, const MatrixRef& y, Stream& stream) override {
    check_f32(x, "gather_rows", "x");
    check_shape(y, y.rows, x.columns, "gather_rows", "y");
    cpu_stream(stream).parallel([=](int thread, int threads) {
      for_part(y.rows, y.columns, thread, threads, [&](std::int64_t row, std::int64_t column, std::int64_t n) {
        std::memcpy(y.f32_row(row) + column, x.f32_row(indices[row]) + column,
                    static_cast<std::size_t>(n) * sizeof(float));
      });
    });
  }

  std::size_t sample_workspace(std::int64_t rows, std::int64_t /*vocab*/) const override {
    return cpu::sample_workspace(rows);
  }

  void sample(const SampleArgs& args, Stream& stream) override {
    check_f32(args.logits, "sample", "logits");
    cpu_stream(stream).parallel(
        [args, ops = ops_](int thread, int threads) { cpu::sample_task(args, *ops, thread, threads); });
  }

  void advance(const AdvanceArgs& args, Stream& stream) override {
    cpu_stream(stream).parallel([args](int thread, int threads) {
      const auto [begin, end] = split_range(args.sequences, 1, thread, threads);
      for (std::int64_t i = begin; i < end; ++i) {
        args.tokens[i] = args.next[i];
        args.positions[i] += 1;
        args.history[i * args.history_stride + args.step_of[i]] = args.next[i];
        args.step_of[i] += 1;
        if (args.seen != nullptr) args.seen[i * args.vocab + args.next[i]] = 1;
      }
    });
  }

 private:
  static void check_table(const MatrixRef& table, const MatrixRef& y) {
    if (table.dtype != DType::f32 && table.dtype != DType::f16 && table.dtype != DType::bf16) {
      fail("embed: a table of {} is not supported on the CPU; use f32, f16 or bf16", name_of(table.dtype));
    }
    if (table.columns != y.columns) fail("embed: a table has {} columns, expected {}", table.columns, y.columns);
  }

  static void check_heads(std::int64_t heads, const KvView& cache) {
    check_cache(cache, "attention");
    if (heads <= 0 || heads % cache.kv_heads != 0) {
      fail("attention: {} heads do not divide among {} kv heads", heads, cache.kv_heads);
    }
  }

  // A run is as long as rows follow each other in one sequence and one block of keys: stores of a block are together.
  static void kv_store_task(const KvStoreArgs& args, const OpTable& ops, int thread, int threads) {
    const RowMap& map = args.map;
    const KvView& cache = args.cache;
    const bool by_head = map.rows < threads;
    const auto [begin, end] = split_range(map.rows, 1, by_head ? 0 : thread, by_head ? 1 : threads);
    const auto [first_head, last_head] = split_range(cache.kv_heads, 1, by_head ? thread : 0, by_head ? threads : 1);
    for (std::int64_t row = begin; row < end;) {
      const std::int64_t slot = map.slots[row];
      const std::int64_t token = map.positions[row];
      const std::int64_t block_end = token / cpu::kKeyBlock * cpu::kKeyBlock + cpu::kKeyBlock;
      std::int64_t tokens = 1;
      while (row + tokens < end && token + tokens < block_end && map.slots[row + tokens] == slot &&
             map.positions[row + tokens] == token + tokens) {
        ++tokens;
      }
      for (std::int64_t head = first_head; head < last_head; ++head) {
        const std::int64_t plane = cpu::kv_plane_offset(cache, slot, head);
        const std::int64_t column = head * cache.head_dim;
        ops.store_k(cache.dtype, args.k.f32_row(row) + column, args.k.stride, tokens, cache.head_dim, cache.k + plane,
                    token);
        ops.store_v(cache.dtype, args.v.f32_row(row) + column, args.v.stride, tokens, cache.head_dim, cache.v + plane,
                    token);
      }
      row += tokens;
    }
  }

  const OpTable* ops_;
  int parts_;  // threads that attention's workspace is shared out to
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend() { return std::make_unique<CpuBackend>(); }

}  // namespace nibble
