// How fast each CPU kernel runs the linear sites of SmolLM2-135M (and, where named, two of Llama-2-7B) by itself,
// beside this machine's read bandwidth and, for full precision, beside oneDNN. Calls go over rotating copies of a site,
// captured as one graph as a decode step is; --footprint says how much memory the copies take together: much for
// weights that come from memory, little for weights that come from a cache. What is timed are pieces of about 1 ms, so
// that some meet no other process; the best one counts.
#include "bench/bandwidth.h"
#include "core/cpu.h"
#include "core/cpu_device.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "kernels/cpu/dense.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"
#include "kernels/verify.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <limits>

namespace nibble {
namespace {

struct Shape2 {
  std::string_view name;
  std::int64_t inputs;
  std::vector<std::int64_t> outputs;
  Prologue prologue;
  Epilogue epilogue;
};

const std::vector<Shape2>& shapes() {
  static const Prologue norm{PrologueKind::rms_norm, 1e-5f};
  static const std::vector<Shape2> all = {
      {"qkv", 576, {576, 192, 192}, norm, {EpilogueKind::store, ActivationKind::silu}},
      {"o", 576, {576}, {}, {EpilogueKind::residual, ActivationKind::silu}},
      {"gate-up", 576, {1536, 1536}, norm, {EpilogueKind::gated, ActivationKind::silu}},
      {"down", 1536, {576}, {}, {EpilogueKind::residual, ActivationKind::silu}},
      {"head", 576, {49152}, norm, {EpilogueKind::store, ActivationKind::silu}},
      {"7b-o", 4096, {4096}, {}, {EpilogueKind::residual, ActivationKind::silu}},
      {"7b-down", 11008, {4096}, {}, {EpilogueKind::residual, ActivationKind::silu}},
  };
  return all;
}

struct Options {
  std::vector<std::string> kernels;
  std::vector<std::string> sites;
  std::vector<std::int64_t> rows = {1, 2, 4, 8, 16, 32, 64, 512};
  std::string compute = "bf16";
  int bits = 4;
  std::int64_t group_size = 64;
  std::size_t footprint_mib = 1024;
  int threads = 0;
  double seconds = 0.3;
  bool onednn = false;
};

using Clock = std::chrono::steady_clock;

// Seconds of the fastest of the pieces [0, count), which are run in turn for `budget` seconds, and all at least twice.
template <typename Piece>
double best_seconds(double budget, std::size_t count, Piece piece) {
  double best = std::numeric_limits<double>::infinity();
  const auto begin = Clock::now();
  for (int round = 0; round < 3 || std::chrono::duration<double>(Clock::now() - begin).count() < budget; ++round) {
    for (std::size_t i = 0; i < count; ++i) {
      const auto start = Clock::now();
      piece(i);
      if (round > 0) best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
  }
  return best;
}

// Copies a piece: enough for some 16 MB of weights and 2 GFLOP, so that it takes about 1 ms.
std::size_t copies_a_piece(const Cost& cost, std::size_t copies) {
  const double wanted = std::min(16e6 / cost.bytes, 2e9 / cost.flops);
  return std::clamp<std::size_t>(static_cast<std::size_t>(wanted), 1, copies);
}

void print(std::string_view kernel, std::string_view site, std::int64_t rows, double seconds, const Cost& cost,
           double bandwidth) {
  fmt::print("{:12} {:8} {:5} {:10.1f} us {:8.1f} GB/s {:6.1f} % {:9.1f} GFLOP/s\n", kernel, site, rows, seconds * 1e6,
             cost.bytes / seconds / 1e9, 100 * cost.bytes / seconds / bandwidth, cost.flops / seconds / 1e9);
  std::fflush(stdout);
}

std::size_t copies_for(const Options& options, std::size_t bytes) {
  return std::clamp<std::size_t>((options.footprint_mib << 20) / std::max<std::size_t>(bytes, 1), 1, 4096);
}

MatrixRef matrix(const Buffer& buffer, std::int64_t rows, std::int64_t columns) {
  return {buffer.data(), DType::f32, rows, columns, columns};
}

void run_kernel(const LinearKernel& kernel, std::string_view label, const Shape2& shape, const Options& options,
                double bandwidth) {
  Device& device = cpu_device();
  RandomSiteOptions random_options{.in_features = shape.inputs,
                                   .out_features = shape.outputs,
                                   .weights = DType::bf16,
                                   .compute = options.compute == "f32" ? DType::f32 : DType::bf16,
                                   .prologue = shape.prologue,
                                   .epilogue = shape.epilogue};
  const std::int64_t most = *std::max_element(options.rows.begin(), options.rows.end());
  // A kernel for full precision gets it, the others GPTQ.
  RandomSite random(random_options);
  if (!kernel.fit(random.site(), device.info(), most).ok) {
    random_options.gptq = GptqFormat{options.bits, options.group_size, false, true};
    random = RandomSite(random_options);
  }
  const Fit fit = kernel.fit(random.site(), device.info(), most);
  if (!fit.ok) {
    fmt::print("{:12} {:8} {}\n", label, shape.name, fit.reason);
    return;
  }
  const LinearSite site = fused_site(random.site(), fit);
  const std::unique_ptr<Stream> stream = device.make_stream();
  std::vector<std::unique_ptr<PackedLinear>> copies;
  for (std::size_t i = copies_for(options, kernel.packed_bytes(site)); i > 0; --i) {
    copies.push_back(kernel.pack(site, random.tensors(), device, *stream));
  }
  const auto check = verify(kernel, *copies.front(), site, random.tensors(), {.rows = 3}, device);
  if (!check.ok) fail("{}", check.sentence);

  for (const std::int64_t rows : options.rows) {
    if (rows > 64 && shape.outputs.front() > 10000) continue;  // a model computes the logits of few rows
    const auto bytes = [](std::int64_t m, std::int64_t n) { return static_cast<std::size_t>(m * n) * 4; };
    const std::unique_ptr<Buffer> x = device.allocate(bytes(rows, shape.inputs), "inputs");
    Random numbers(1);
    for (std::int64_t i = 0; i < rows * shape.inputs; ++i) reinterpret_cast<float*>(x->data())[i] = numbers.normal();
    const std::vector<float> norm(static_cast<std::size_t>(shape.inputs), 1.0f);
    std::vector<std::unique_ptr<Buffer>> outputs;
    std::vector<MatrixRef> y;
    const std::size_t count = site.epilogue.kind == EpilogueKind::gated ? 1 : shape.outputs.size();
    for (std::size_t i = 0; i < count; ++i) {
      outputs.push_back(device.allocate(bytes(rows, shape.outputs[i]), "outputs"));
      y.push_back(matrix(*outputs.back(), rows, shape.outputs[i]));
    }
    const std::unique_ptr<Buffer> residual = device.allocate(bytes(rows, shape.outputs.front()), "residual");
    const std::unique_ptr<Buffer> workspace = device.allocate(kernel.workspace(site, rows), "workspace");
    LinearArgs args;
    args.rows = rows;
    args.x = matrix(*x, rows, shape.inputs);
    args.norm_weight = norm.data();
    args.y = y;
    args.residual = matrix(*residual, rows, shape.outputs.front());
    args.workspace = workspace->data();
    const Cost cost = kernel.cost(site, rows);
    const std::size_t together = copies_a_piece(cost, copies.size());
    std::vector<std::unique_ptr<Graph>> pieces;
    for (std::size_t first = 0; first + together <= copies.size(); first += together) {
      stream->begin_capture();
      for (std::size_t i = first; i < first + together; ++i) kernel.enqueue(*copies[i], args, *stream);
      pieces.push_back(stream->end_capture());
    }
    const double seconds =
        best_seconds(options.seconds, pieces.size(), [&](std::size_t i) { stream->launch(*pieces[i]); });
    print(label, shape.name, rows, seconds / static_cast<double>(together), cost, bandwidth);
  }
}

// oneDNN with weights in its own layout and inputs in the type it wants, without norm, gate or residual: the least it
// takes.
void run_onednn(const Shape2& shape, const Options& options, double bandwidth) {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::data_type type = options.compute == "f32" ? memory::data_type::f32 : memory::data_type::bf16;
  std::int64_t outputs = 0;
  for (const std::int64_t n : shape.outputs) outputs += n;
  for (const std::int64_t rows : options.rows) {
    if (rows > 64 && shape.outputs.front() > 10000) continue;
    const memory::desc x({rows, shape.inputs}, type, memory::format_tag::ab);
    const memory::desc w({shape.inputs, outputs}, type, memory::format_tag::any);
    const memory::desc y({rows, outputs}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc desc({x, w, y}, engine);
    const dnnl::matmul primitive(desc);
    memory xs(desc.src_desc(), engine);
    memory ys(desc.dst_desc(), engine);
    Random numbers(1);
    // Patterns of floats and of pairs of bf16 near 1.
    const auto fill = [&](memory& at) {
      auto* words = static_cast<std::uint32_t*>(at.get_data_handle());
      for (std::size_t i = 0; i < at.get_desc().get_size() / 4; ++i)
        words[i] = 0x3f003f00u | (static_cast<std::uint32_t>(numbers.next()) & 0x00ff00ffu);
    };
    fill(xs);
    std::vector<memory> copies;
    for (std::size_t i = copies_for(options, desc.weights_desc().get_size()); i > 0; --i) {
      copies.emplace_back(desc.weights_desc(), engine);
      fill(copies.back());
    }
    LinearSite site;
    site.parts = {{"onednn", shape.inputs, outputs, false, {}}};
    site.compute = options.compute == "f32" ? DType::f32 : DType::bf16;
    const Cost cost = minimal_cost(site, rows);
    const std::size_t together = copies_a_piece(cost, copies.size());
    const double seconds = best_seconds(options.seconds, copies.size() / together, [&](std::size_t piece) {
      for (std::size_t i = 0; i < together; ++i) {
        primitive.execute(stream,
                          {{DNNL_ARG_SRC, xs}, {DNNL_ARG_WEIGHTS, copies[piece * together + i]}, {DNNL_ARG_DST, ys}});
      }
      stream.wait();
    });
    print("(oneDNN)", shape.name, rows, seconds / static_cast<double>(together), cost, bandwidth);
  }
}

bool wanted(const std::vector<std::string>& list, std::string_view name) {
  return list.empty() || std::find(list.begin(), list.end(), name) != list.end();
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Times each CPU kernel on the linear sites of SmolLM2-135M.");
  app.add_option("--kernel", options.kernels, "kernels; all but the reference when not given")->delimiter(',');
  app.add_option("--site", options.sites,
                 "qkv, o, gate-up, down, head, or 7b-o, 7b-down; the first five when not given")
      ->delimiter(',');
  app.add_option("--rows", options.rows, "numbers of rows")->delimiter(',')->check(CLI::Range(1, 4096));
  app.add_option("--compute", options.compute, "f32 or bf16")->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--bits", options.bits, "of GPTQ codes")->check(CLI::IsMember({2, 3, 4, 8}));
  app.add_option("--group-size", options.group_size, "of GPTQ, -1 for one group");
  app.add_option("--footprint", options.footprint_mib, "MiB of weights that calls rotate over")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", options.threads, "threads of the pool");
  app.add_option("--seconds", options.seconds, "time for each figure");
  app.add_flag("--onednn", options.onednn,
               "time oneDNN's matmul too: by itself, and as `dense` uses it at 256 rows and more");
  CLI11_PARSE(app, argc, argv);

  const int most = options.threads > 0 ? options.threads : ThreadPool::instance().threads();
  double bandwidth = 0;
  for (int threads = 1; threads <= most; ++threads) {
    ThreadPool::instance().set_threads(threads);
    bandwidth = measure_read_bandwidth(options.footprint_mib << 20, 1.0).bytes_per_second;
    fmt::print("read bandwidth, {} threads, {} MiB: {:.1f} GB/s\n", threads, options.footprint_mib, bandwidth / 1e9);
  }
  fmt::print(
      "{}, {} threads, {}, compute {}; GB/s and % of the read bandwidth count what a call must move at the least\n",
      cpu_model(), most, name_of(active_isa()), options.compute);
  for (const Shape2& shape : shapes()) {
    if (options.sites.empty() ? shape.name.starts_with("7b") : !wanted(options.sites, shape.name)) continue;
    for (const LinearKernel* kernel : kernels_for(DeviceKind::cpu)) {
      if (options.kernels.empty() ? kernel->traits().in_all : wanted(options.kernels, kernel->name())) {
        run_kernel(*kernel, kernel->name(), shape, options, bandwidth);
      }
    }
    if (options.onednn) {
      run_kernel(*make_dense(LibraryUse::never), "dense, own", shape, options, bandwidth);
      run_kernel(*make_dense(LibraryUse::wherever_possible), "dense, lib", shape, options, bandwidth);
      run_onednn(shape, options, bandwidth);
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  try {
    return nibble::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_kernels_micro: {}\n", error.what());
    return dynamic_cast<const nibble::UsageError*>(&error) != nullptr ? 2 : 1;
  }
}
