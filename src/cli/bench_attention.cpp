// nibble bench attention: attention by itself, whole matrices of scores against tiles.
#include "bench/attention_bench.h"
#include "bench/statistics.h"
#include "cli/command.h"
#include "core/error.h"
#include "core/progress.h"
#include "core/thread_pool.h"
#include "engine/configuration.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <string>
#include <vector>

namespace nibble {
namespace {

struct Options {
  std::vector<std::int64_t> batch_size = {8};
  std::vector<std::int64_t> length = {128, 512};
  std::vector<std::int64_t> head_dim = {8, 16, 32, 64, 80, 128, 256};
  std::int64_t hidden = 768;  // of BERT-base: heads are as many as fit
  std::vector<std::string> mask = {"none", "causal", "padding"};
  std::vector<std::string> dtype = {"f32"};
  double seconds = 0.5;
  std::string format = "markdown";
  std::string device = "auto";
};

int run(const Options& o) {
  const TableFormat format = table_format_from_name(o.format);
  EngineOptions engine;
  engine.device = o.device;
  const std::unique_ptr<Backend> backend = make_backend(engine);
  const DeviceInfo& info = backend->device().info();
  const bool gpu = info.kind == DeviceKind::cuda;
  std::vector<AttentionCase> cases;
  for (const std::string& type : o.dtype) {
    const std::optional<DType> compute = dtype_from_name(type);
    if (compute != DType::f32 && compute != DType::bf16 && (compute != DType::f16 || !gpu))
      fail_usage("--dtype {}: expected f32{} or bf16", type, gpu ? ", f16" : "");
    for (const std::string& mask : o.mask) {
      for (const std::int64_t batch : o.batch_size) {
        for (const std::int64_t length : o.length) {
          for (const std::int64_t dim : o.head_dim) {
            cases.push_back(
                {batch, length, std::max<std::int64_t>(1, o.hidden / dim), dim, attention_mask_named(mask), *compute});
          }
        }
      }
    }
  }
  Table table;
  table.caption = fmt::format(
      "{} ({}){}; forward, both ways in turns, medians. Memory is scratch beside q, k, v and the outputs.", info.name,
      info.isa, gpu ? std::string() : fmt::format(", {} threads", ThreadPool::instance().threads()));
  table.columns = {{"dtype", "dtype"},
                   {"mask", "mask"},
                   {"batch_size", "batch"},
                   {"length", "length"},
                   {"heads", "heads"},
                   {"head_dim", "head size"},
                   {"math_ms", "math (ms)", 3},
                   {"fused_ms", "fused (ms)", 3},
                   {"speedup", "math / fused"},
                   {"fused_gflop_s", "fused (GFLOP/s)", 1},
                   {"math_mb", "math (MB)"},
                   {"fused_mb", "fused (MB)"},
                   {"difference", "difference", 7},
                   {"status", "status"}};
  Progress progress("timing attention", static_cast<std::int64_t>(cases.size()));
  std::int64_t done = 0;
  bool failed = false;
  for (const AttentionCase& one : cases) {
    progress.update(done++, fmt::format("length {}, head size {}", one.length, one.head_dim));
    const AttentionResult result = time_attention(one, *backend, o.seconds);
    std::vector<Cell> row = {std::string(name_of(one.compute)),
                             std::string(name_of(one.mask)),
                             one.batch,
                             one.length,
                             one.heads,
                             one.head_dim};
    if (result.error.empty()) {
      const double math = statistics_of(result.math.seconds).median;
      const double fused = statistics_of(result.fused.seconds).median;
      row.insert(row.end(), {math * 1e3, fused * 1e3, math / fused, result.flops / fused / 1e9,
                             static_cast<double>(result.math.workspace) / 1e6,
                             static_cast<double>(result.fused.workspace) / 1e6, result.difference, std::string("ok")});
    } else {
      failed = true;
      row.insert(row.end(), {Cell(), Cell(), Cell(), Cell(), Cell(), Cell(), Cell(), result.error});
    }
    table.rows.push_back(std::move(row));
  }
  progress.update(done);
  fmt::print("{}", render(table, format));
  return failed ? 1 : 0;
}

const CommandRegistration kRegistration(
    {"bench attention", "attention by itself: whole matrices of scores against tiles", [](CLI::App& app) {
       auto o = std::make_shared<Options>();
       const auto sizes = [&app](const std::string& name, std::vector<std::int64_t>& value, const std::string& help) {
         app.add_option(name, value, help)
             ->delimiter(',')
             ->check(CLI::Range(std::int64_t{1}, std::int64_t{65536}))
             ->capture_default_str();
       };
       sizes("--batch-size", o->batch_size, "sequences, a list");
       sizes("--seqlen", o->length, "tokens a sequence, a list");
       sizes("--head-dim", o->head_dim, "elements a head, a list");
       app.add_option("--hidden", o->hidden, "elements a token, divided into heads")
           ->check(CLI::Range(std::int64_t{1}, std::int64_t{65536}))
           ->capture_default_str();
       app.add_option("--mask", o->mask, "none, causal, padding (lengths from 1 to --seqlen), a list")
           ->delimiter(',')
           ->capture_default_str();
       app.add_option("--dtype", o->dtype, "f32, bf16, on a GPU f16, a list")->delimiter(',')->capture_default_str();
       app.add_option("--device", o->device, "auto (a GPU where there is one), cpu, cuda, cuda:N")
           ->capture_default_str();
       app.add_option("--seconds", o->seconds, "for each case")->check(CLI::PositiveNumber)->capture_default_str();
       app.add_option("--format", o->format, "markdown, csv, json, jsonl")->capture_default_str();
       return [o] { return run(*o); };
     }});

}  // namespace
}  // namespace nibble
