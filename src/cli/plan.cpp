// nibble plan: what a run would need of the memory, without running or reading weights.
#include "bench/open_device.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "core/error.h"
#include "engine/configuration.h"
#include "report/table.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <map>
#include <memory>

namespace nibble {
namespace {

constexpr double kMb = 1e6;

struct Arguments {
  ModelOptions model;
  std::int64_t batch_size = 1;
  std::int64_t prompt_length = 512;
  std::int64_t new_tokens = 512;
  std::string format = "markdown";
  bool items = false;
};

/// Plans for other batch sizes come from the same checkpoint and options.
class Planner {
 public:
  explicit Planner(const Arguments& arguments)
      : checkpoint_(arguments.model.open()), options_(arguments.model.engine_options()) {
    if (options_.max_tokens == 0) options_.max_tokens = arguments.prompt_length + arguments.new_tokens;
    opened_ = open_device(options_);
  }

  const OpenedDevice& opened() const { return opened_; }
  const DeviceInfo& device() const { return opened_.backend->device().info(); }

  EngineConfiguration plan(std::int64_t batch) {
    options_.max_batch = batch;
    return configure_engine(*checkpoint_, options_, *opened_.backend);
  }

  bool fits(std::int64_t batch) {
    const MemoryPlan made = plan(batch).plan;
    return made.total() <= made.device_memory;
  }

  /// The largest batch that fits, up to 65536; 0 where not even one does. Need grows with the batch, so halving finds
  /// it.
  std::int64_t largest_batch() {
    // Past this a plan says more about the model's size than about a batch.
    constexpr std::int64_t kMost = std::int64_t{1} << 16;
    std::int64_t low = 0;
    std::int64_t high = 1;
    while (fits(high)) {
      low = high;
      if (low == kMost) return low;
      high *= 2;
    }
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return low;
  }

  std::int64_t max_tokens() const { return options_.max_tokens; }

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  EngineOptions options_;
  OpenedDevice opened_;
};

int run(const Arguments& arguments) {
  Planner planner(arguments);
  const EngineConfiguration made = planner.plan(arguments.batch_size);
  const MemoryPlan& plan = made.plan;
  std::map<std::string, std::int64_t> kernels;
  for (const LoweredNode& node : made.nodes) {
    if (node.linear() != nullptr) ++kernels[std::string(node.kernel->name())];
  }
  std::string sites;
  for (const auto& [name, count] : kernels) sites += fmt::format("{}{} x{}", sites.empty() ? "" : ", ", name, count);

  const bool gpu = planner.device().kind != DeviceKind::cpu;
  Table table;
  table.caption = fmt::format(
      "{} on {}: batch {}, {} tokens a sequence, {} rows a pass; computes in {}, KV cache in {}; sites: {}.",
      made.program.architecture, planner.device().name, made.sizes.max_batch, made.sizes.max_tokens,
      made.sizes.max_rows, name_of(made.compute), name_of(made.kv_dtype), sites);
  table.columns = {{"part", "part"}, {"mb", "MB"}};
  const auto add = [&table](std::string name, std::size_t bytes) {
    table.rows.push_back({std::move(name), static_cast<double>(bytes) / kMb});
  };
  if (arguments.items) {
    for (const PlanItem& item : plan.items) add(item.name, item.bytes);
  } else {
    add("weights", plan.weights);
    add(gpu ? "embedding" : "embedding (the file's own pages)", plan.embedding);
    add("KV cache", plan.kv_cache);
    add("activations", plan.arena);
    add("scratch of kernels", plan.workspace);
    add("total", plan.total());
    add(gpu ? "the device has free" : "the device has", plan.device_memory);
    // It is there before anything is planned: what is free is free beside it.
    if (planner.opened().context > 0) add("beside it: the GPU's context", planner.opened().context);
  }
  fmt::print("{}", render(table, table_format_from_name(arguments.format)));
  const bool fits = plan.total() <= plan.device_memory;
  if (table_format_from_name(arguments.format) == TableFormat::markdown) {
    const std::int64_t largest = planner.largest_batch();
    fmt::print("\n{}\n",
               fits ? fmt::format("This fits. The largest batch that does is {}.", largest)
               : largest > 0
                   ? fmt::format("This does not fit; the largest batch that does is {}.", largest)
                   : "This does not fit, at any batch size: take fewer tokens (--max-tokens) or a smaller model.");
  }
  return fits ? 0 : 1;
}

const CommandRegistration kRegistration(
    {"plan", "what a run needs of the memory, without running", [](CLI::App& app) {
       auto arguments = std::make_shared<Arguments>();
       arguments->model.add_to(app);
       app.add_option("--batch-size", arguments->batch_size, "sequences at a time")
           ->capture_default_str()
           ->check(CLI::PositiveNumber);
       app.add_option("--prompt-length", arguments->prompt_length, "tokens a prompt")
           ->capture_default_str()
           ->check(CLI::PositiveNumber);
       app.add_option("--new-tokens", arguments->new_tokens, "tokens generated")
           ->capture_default_str()
           ->check(CLI::PositiveNumber);
       app.add_flag("--items", arguments->items, "every part by itself");
       app.add_option("--format", arguments->format, "markdown, csv, json, jsonl")->capture_default_str();
       return [arguments] { return run(*arguments); };
     }});

}  // namespace
}  // namespace nibble
