// How fast attention by itself runs on GPU 0, in the shapes of Llama-2-13B (40 heads of 128): decode steps as the
// engine replays them (rotating and storing the newest token on the way), over as many layers' caches as the model has,
// so that keys come from memory and not from the cache; and a prompt of 2048 tokens. GB/s count the keys and values
// that a step must read, TFLOP/s the products that a causal prompt needs.
#include "core/clock.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "ops/cuda_loader.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace nibble {
namespace {

constexpr std::int64_t kHeads = 40;
constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kWidth = kHeads * kHeadDim;
constexpr std::int64_t kLayers = 40;

using Clock = std::chrono::steady_clock;

class Bench {
 public:
  explicit Bench(Backend& backend) : backend_(backend), stream_(backend.device().make_stream()) {}

  Backend& backend() { return backend_; }
  Stream& stream() { return *stream_; }

  template <typename T>
  T* upload(const std::vector<T>& values) {
    buffers_.push_back(backend_.device().allocate(values.size() * sizeof(T), "a benchmark"));
    stream_->copy_to_device(buffers_.back()->data(), values.data(), values.size() * sizeof(T));
    stream_->synchronize();
    return reinterpret_cast<T*>(buffers_.back()->data());
  }

  std::byte* memory(std::size_t bytes) {
    buffers_.push_back(backend_.device().allocate(bytes, "a benchmark"));
    return buffers_.back()->data();
  }

  /// f16 numbers of deviation about 1.
  MatrixRef matrix(std::int64_t rows) {
    std::mt19937 random(static_cast<unsigned>(rows));
    std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * kWidth));
    for (std::uint16_t& one : values) one = float_to_half(static_cast<float>(random() % 4096) * (3.46f / 4096) - 1.73f);
    return {upload(values), DType::f16, rows, kWidth, kWidth};
  }

  /// The median time of a replay, seconds.
  double seconds(const Graph& graph) {
    std::vector<double> times;
    for (int i = 0; i < 25; ++i) {
      const auto start = Clock::now();
      stream_->launch(graph);
      stream_->synchronize();
      if (i >= 5) times.push_back(seconds_since(start));
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  }

 private:
  Backend& backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

/// Rows of a batch: sequence s has `rows` of them, from position `past` on.
RowMap row_map(Bench& bench, std::int64_t sequences, std::int32_t past, std::int32_t rows) {
  std::vector<std::int32_t> positions, slots, begin{0};
  for (std::int32_t s = 0; s < sequences; ++s) {
    for (std::int32_t i = 0; i < rows; ++i) {
      positions.push_back(past + i);
      slots.push_back(s);
    }
    begin.push_back(static_cast<std::int32_t>(positions.size()));
  }
  return {static_cast<std::int64_t>(positions.size()),
          sequences,
          nullptr,
          bench.upload(positions),
          bench.upload(slots),
          bench.upload(begin)};
}

const float* rotations(Bench& bench, std::int64_t positions) {
  std::vector<float> table;
  for (std::int64_t p = 0; p < positions; ++p) {
    for (const double phase : {1.5707963267948966, 0.0}) {
      for (std::int64_t i = 0; i < kHeadDim / 2; ++i) {
        const double frequency = std::pow(10000.0, -2.0 * static_cast<double>(i) / kHeadDim);
        table.push_back(static_cast<float>(std::sin(static_cast<double>(p) * frequency + phase)));
      }
    }
  }
  return bench.upload(table);
}

/// Caches of `layers` layers, every token of them stored.
std::vector<KvView> caches(Bench& bench, DType dtype, std::int64_t slots, std::int32_t capacity, std::int64_t layers) {
  const RowMap all = row_map(bench, slots, 0, capacity);
  const MatrixRef k = bench.matrix(all.rows);
  std::vector<KvView> views;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    KvView view{dtype, nullptr, nullptr, slots, kHeads, capacity, kHeadDim};
    const std::size_t bytes = bench.backend().kv_bytes(view);
    view.k = bench.memory(bytes);
    view.v = bench.memory(bytes);
    bench.backend().kv_store({all, k, k, view}, bench.stream());
    views.push_back(view);
  }
  bench.stream().synchronize();
  return views;
}

struct Pass {
  RowMap map;
  MatrixRef q, k, v, y;
  const float* table;
  std::byte* workspace;
};

// One call a layer, captured together.
double seconds_a_layer(Bench& bench, const Pass& pass, const std::vector<KvView>& layers) {
  bench.stream().begin_capture();
  for (const KvView& cache : layers) {
    bench.backend().attention({pass.map, pass.q, kHeads, cache, 1 / std::sqrt(static_cast<float>(kHeadDim)), 0, 0,
                               pass.y, pass.workspace, AttentionStore{pass.k, pass.v, kHeadDim, false, pass.table}},
                              bench.stream());
  }
  const std::unique_ptr<Graph> graph = bench.stream().end_capture();
  return bench.seconds(*graph) / static_cast<double>(layers.size());
}

Pass make_pass(Bench& bench, const RowMap& map, const KvView& cache, const float* table) {
  Pass pass{
      map,    bench.matrix(map.rows), bench.matrix(map.rows), bench.matrix(map.rows), bench.matrix(map.rows), table,
      nullptr};
  pass.workspace = bench.memory(bench.backend().attention_workspace(map.rows, kHeads, cache));
  return pass;
}

void decode(Backend& backend, DType dtype, std::int64_t batch) {
  constexpr std::int32_t kCapacity = 1024;
  Bench bench(backend);
  const std::vector<KvView> layers = caches(bench, dtype, batch, kCapacity, kLayers);
  const float* const table = rotations(bench, kCapacity);
  for (const std::int32_t context : {512, 768, 1024}) {
    const Pass pass = make_pass(bench, row_map(bench, batch, context - 1, 1), layers.front(), table);
    const double seconds = seconds_a_layer(bench, pass, layers);
    const double token_bytes = static_cast<double>(kHeads) * (kHeadDim * static_cast<double>(bytes_of(dtype)) +
                                                              (dtype == DType::i8 ? sizeof(float) : 0));
    const double bytes = 2 * token_bytes * static_cast<double>(batch) * context;
    fmt::print("decode  {:4}  batch {:2}  context {:4}  {:8.2f} us  {:7.1f} GB/s\n", name_of(dtype), batch, context,
               seconds * 1e6, bytes / seconds / 1e9);
  }
}

void prefill(Backend& backend, DType dtype, std::int32_t rows) {
  Bench bench(backend);
  const std::vector<KvView> layers = caches(bench, dtype, 1, rows, 8);
  const Pass pass = make_pass(bench, row_map(bench, 1, 0, rows), layers.front(), rotations(bench, rows));
  const double seconds = seconds_a_layer(bench, pass, layers);
  const double flops = 2.0 * rows * (rows + 1.0) * static_cast<double>(kWidth);
  fmt::print("prefill {:4}  rows {:5}  {:8.2f} us  {:6.1f} TFLOP/s, rotation and store included\n", name_of(dtype),
             rows, seconds * 1e6, flops / seconds / 1e12);
}

int run() {
  std::string why;
  if (cuda_device_count(&why) == 0) fail("attention on a GPU cannot be timed: {}", why);
  const std::unique_ptr<Backend> backend = make_cuda_backend(0);
  fmt::print("{}, {} heads of {}\n", backend->device().info().name, kHeads, kHeadDim);
  for (const DType dtype : {DType::f16, DType::i8}) {
    for (const std::int64_t batch : {1, 2, 4, 8, 16}) decode(*backend, dtype, batch);
    prefill(*backend, dtype, 2048);
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main() {
  try {
    return nibble::run();
  } catch (const std::exception& error) {
    fmt::print(stderr, "cuda_attention: {}\n", error.what());
    return 1;
  }
}
