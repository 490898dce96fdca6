// Times the CPU's ops at the shapes of SmolLM2-135M and Llama-7B: attention at decode against a plain read of the same
// keys and values, attention at prefill, and the small ops. Best of several runs; NIBBLE_ISA and OMP_NUM_THREADS as
// usual.
//
//   ops_micro [threads [decode|prefill|small]]
#include "core/cpu.h"
#include "core/cpu_device.h"
#include "core/thread_pool.h"
#include "ops/backend.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <vector>

namespace {

using namespace nibble;

// Of one thread the time on the processor counts, so that figures hold on a machine that is shared; of more, the
// wall's.
double now() {
  timespec t{};
  clock_gettime(ThreadPool::instance().threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds of the fastest of the runs that fit into `budget` seconds, and of at least three.
double best_of(const std::function<void()>& body, double budget = 0.4) {
  body();
  double best = 1e9;
  const double begin = now();
  for (int run = 0; run < 3 || now() - begin < budget; ++run) {
    const double start = now();
    body();
    best = std::min(best, now() - start);
  }
  return best;
}

struct Floats {
  Floats(std::int64_t n, std::int64_t width) : rows(n), columns(width), data(static_cast<std::size_t>(n * width)) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& x : data) x = uniform(random);
  }
  MatrixRef ref() { return {data.data(), DType::f32, rows, columns, columns}; }
  std::int64_t rows;
  std::int64_t columns;
  std::vector<float> data;
};

struct Model {
  std::string_view name;
  std::int64_t layers, heads, kv_heads, head_dim, hidden, intermediate, vocab;
};

// `layers` caches filled by kv_store with `context` tokens for each of `sequences` slots.
struct Caches {
  Caches(Backend& backend, Stream& stream, const Model& model, DType dtype, std::int64_t layers, std::int64_t sequences,
         std::int64_t context) {
    KvView view{dtype, nullptr, nullptr, sequences, model.kv_heads, context, model.head_dim};
    bytes = backend.kv_bytes(view);
    Floats rows(context, model.kv_heads * model.head_dim);
    std::vector<std::int32_t> positions;
    for (std::int64_t i = 0; i < context; ++i) positions.push_back(static_cast<std::int32_t>(i));
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      buffers.push_back(cpu_device().allocate(bytes, "k"));
      view.k = buffers.back()->data();
      buffers.push_back(cpu_device().allocate(bytes, "v"));
      view.v = buffers.back()->data();
      for (std::int64_t s = 0; s < sequences; ++s) {
        const std::vector<std::int32_t> slots(static_cast<std::size_t>(context), static_cast<std::int32_t>(s));
        const RowMap map{context, 1, nullptr, positions.data(), slots.data(), nullptr};
        backend.kv_store({map, rows.ref(), rows.ref(), view}, stream);
      }
      views.push_back(view);
    }
  }
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<KvView> views;
  std::size_t bytes = 0;
};

// Reads all of the caches once on all threads.
double read_time(Caches& caches, Stream& stream) {
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(ThreadPool::instance().threads()) * 8);
  return best_of([&] {
    for (const auto& buffer : caches.buffers) {
      cpu_stream(stream).parallel([&](int thread, int threads) {
        const auto [begin, end] = split_range(static_cast<std::int64_t>(buffer->size() / 8), 64, thread, threads);
        const auto* words = reinterpret_cast<const std::uint64_t*>(buffer->data());
        std::uint64_t sum[8] = {};
        std::int64_t i = begin;
        for (; i + 8 <= end; i += 8) {
          for (int j = 0; j < 8; ++j) sum[j] += words[i + j];
        }
        for (const std::uint64_t one : sum) sums[static_cast<std::size_t>(thread) * 8] += one;
      });
    }
  });
}

void decode(Backend& backend, Stream& stream, const Model& model, DType dtype, std::int64_t sequences,
            std::int64_t context) {
  Caches caches(backend, stream, model, dtype, model.layers, sequences, context);
  Floats q(sequences, model.heads * model.head_dim);
  Floats y(sequences, model.heads * model.head_dim);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(sequences), static_cast<std::int32_t>(context - 1));
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> row_begin = {0};
  for (std::int64_t s = 0; s < sequences; ++s) {
    slots.push_back(static_cast<std::int32_t>(s));
    row_begin.push_back(static_cast<std::int32_t>(s + 1));
  }
  const RowMap map{sequences, sequences, nullptr, positions.data(), slots.data(), row_begin.data()};
  const auto workspace =
      cpu_device().allocate(backend.attention_workspace(sequences, model.heads, caches.views[0]), "workspace");
  stream.begin_capture();
  for (const KvView& view : caches.views) {
    backend.attention({map, q.ref(), model.heads, view, 0.1f, 0, 0, y.ref(), workspace->data()}, stream);
  }
  const auto graph = stream.end_capture();
  const double seconds = best_of([&] { stream.launch(*graph); });
  const double floor = read_time(caches, stream);
  const double megabytes = static_cast<double>(caches.bytes) * 2 * static_cast<double>(model.layers) / 1e6;
  fmt::print(
      "decode   {:10} {:5} batch {} context {:5}: {:8.3f} ms for {} layers, {:6.1f} MB, {:5.1f} GB/s, {:.2f}x a plain "
      "read\n",
      model.name, name_of(dtype), sequences, context, seconds * 1e3, model.layers, megabytes, megabytes / seconds / 1e3,
      seconds / floor);
}

void prefill(Backend& backend, Stream& stream, const Model& model, DType dtype, std::int64_t rows) {
  Caches caches(backend, stream, model, dtype, 1, 1, rows);
  Floats q(rows, model.heads * model.head_dim);
  Floats y(rows, model.heads * model.head_dim);
  std::vector<std::int32_t> positions;
  for (std::int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<std::int32_t>(i));
  const std::vector<std::int32_t> slots(static_cast<std::size_t>(rows), 0);
  const std::vector<std::int32_t> row_begin = {0, static_cast<std::int32_t>(rows)};
  const RowMap map{rows, 1, nullptr, positions.data(), slots.data(), row_begin.data()};
  const auto workspace =
      cpu_device().allocate(backend.attention_workspace(rows, model.heads, caches.views[0]), "workspace");
  const double seconds = best_of([&] {
    backend.attention({map, q.ref(), model.heads, caches.views[0], 0.1f, 0, 0, y.ref(), workspace->data()}, stream);
  });
  const double flops = 2.0 * static_cast<double>(rows * (rows + 1) * model.heads * model.head_dim);
  Floats k(rows, model.kv_heads * model.head_dim);
  const double store = best_of([&] { backend.kv_store({map, k.ref(), k.ref(), caches.views[0]}, stream); }, 0.1);
  fmt::print("prefill  {:10} {:5} {} rows: {:8.3f} ms for {} layers, {:6.1f} Gflop/s; kv_store {:.3f} ms\n", model.name,
             name_of(dtype), rows, seconds * 1e3 * static_cast<double>(model.layers), model.layers,
             flops / seconds / 1e9, store * 1e3 * static_cast<double>(model.layers));
}

void small_ops(Backend& backend, Stream& stream, const Model& model, std::int64_t rows) {
  const auto report = [&](std::string_view op, double bytes, const std::function<void()>& body) {
    const double seconds = best_of(body, 0.1);
    fmt::print("{:18} {:10} {:4} rows: {:9.2f} us, {:6.1f} GB/s\n", op, model.name, rows, seconds * 1e6,
               bytes / seconds / 1e9);
  };
  Floats hidden(rows, model.hidden);
  Floats normed(rows, model.hidden);
  Floats weight(1, model.hidden);
  const auto floats = [rows](std::int64_t columns, int passes) {
    return 4.0 * passes * static_cast<double>(rows * columns);
  };
  report("rms norm", floats(model.hidden, 2), [&] {
    backend.norm({NormKind::rms, hidden.ref(), 1, weight.data.data(), nullptr, 1e-5f, normed.ref()}, stream);
  });
  report("add", floats(model.hidden, 3), [&] { backend.add(hidden.ref(), normed.ref(), normed.ref(), stream); });
  Floats gate(rows, model.intermediate);
  Floats up(rows, model.intermediate);
  Floats activated(rows, model.intermediate);
  for (const auto& [kind, name] : {std::pair(ActivationKind::silu, "silu"), std::pair(ActivationKind::gelu, "gelu"),
                                   std::pair(ActivationKind::gelu_tanh, "gelu tanh")}) {
    report(name, floats(model.intermediate, 3),
           [&, k = kind] { backend.gated_activation(k, gate.ref(), up.ref(), activated.ref(), stream); });
  }
  std::vector<std::int32_t> positions;
  for (std::int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<std::int32_t>(i));
  const RowMap map{rows, 1, positions.data(), positions.data(), positions.data(), nullptr};
  Floats table(rows, model.head_dim);
  Floats q(rows, model.heads * model.head_dim);
  report("rotary", floats(model.heads * model.head_dim, 2), [&] {
    backend.rotary({map, q.ref(), model.heads, model.head_dim, model.head_dim, false, table.data.data()}, stream);
  });
  report("embed f32", floats(model.hidden, 2), [&] { backend.embed({map, hidden.ref(), 1, normed.ref()}, stream); });
  if (rows > 1) return;
  // Logits of a spread of 3, fresh for each draw, which changes them: some dozens of tokens share most of the
  // probability.
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 3);
  Floats fresh(rows, model.vocab);
  for (float& x : fresh.data) x = normal(random);
  Floats logits = fresh;
  SampleParams params;
  std::int32_t next = 0;
  const auto workspace = cpu_device().allocate(backend.sample_workspace(rows, model.vocab), "workspace");
  const SampleArgs args{logits.ref(), &params, nullptr, positions.data(), &next, workspace->data()};
  const auto draw = [&] {
    std::copy(fresh.data.begin(), fresh.data.end(), logits.data.begin());
    backend.sample(args, stream);
  };
  report("greedy", floats(model.vocab, 1), [&] { backend.sample(args, stream); });
  params.temperature = 0.8f;
  report("draw", floats(model.vocab, 1), draw);
  params.top_p = 0.9f;
  report("draw top_p", floats(model.vocab, 1), draw);
  params.top_k = 50;
  report("draw top_k top_p", floats(model.vocab, 1), draw);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) ThreadPool::instance().set_threads(std::atoi(argv[1]));
  const std::string_view only = argc > 2 ? argv[2] : "";
  const auto wanted = [only](std::string_view part) { return only.empty() || only == part; };
  const auto backend = make_cpu_backend();
  const auto stream = cpu_device().make_stream();
  fmt::print("{}, {}, {} threads\n", cpu_model(), name_of(active_isa()), ThreadPool::instance().threads());
  const Model smol{"SmolLM2", 30, 9, 3, 64, 576, 1536, 49152};
  // Four layers of the 32: the caches of all would not fit beside the rest of a small machine.
  const Model llama{"Llama-7B", 4, 32, 32, 128, 4096, 11008, 32000};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    if (wanted("decode")) {
      for (const std::int64_t context : {128, 512, 1024}) decode(*backend, *stream, smol, dtype, 1, context);
      decode(*backend, *stream, smol, dtype, 4, 768);
      decode(*backend, *stream, llama, dtype, 1, 768);
    }
    if (wanted("prefill")) {
      prefill(*backend, *stream, smol, dtype, 512);
      prefill(*backend, *stream, llama, dtype, 512);
    }
  }
  for (const std::int64_t rows : {1, 512}) {
    if (!wanted("small")) continue;
    small_ops(*backend, *stream, smol, rows);
    small_ops(*backend, *stream, llama, rows);
  }
  return 0;
}
