// nibble perplexity: how well a model predicts a text, by a named procedure.
#include "bench/perplexity.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "core/progress.h"
#include "report/table.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>

namespace nibble {
namespace {

struct Arguments {
  ModelOptions model;
  std::string dataset;
  std::string procedure = "gptq2048";
  std::int64_t context = 0;
  std::int64_t stride = 0;
  std::int64_t windows = 0;
  std::string format = "markdown";
};

int run(const Arguments& arguments) {
  const PerplexityOptions options =
      perplexity_options(arguments.procedure,
                         {.context = arguments.context, .stride = arguments.stride, .max_windows = arguments.windows});
  const TableFormat format = table_format_from_name(arguments.format);
  const std::shared_ptr<const Checkpoint> checkpoint = arguments.model.open();
  const Tokenizer tokenizer = Tokenizer::load(checkpoint->folder());
  EngineOptions engine_options = arguments.model.engine_options();
  engine_options.max_tokens = std::max(engine_options.max_tokens, options.context);
  engine_options.max_logit_rows = kPerplexityRows;
  Engine engine(checkpoint, engine_options);
  // How many windows there are is known once the text is tokenised.
  std::unique_ptr<Progress> progress;
  const PerplexityResult result = measure_perplexity_of_file(
      engine, tokenizer, arguments.dataset, options, [&progress](std::int64_t done, std::int64_t total) {
        if (!progress) progress = std::make_unique<Progress>("perplexity", total);
        progress->update(done);
      });
  progress->finish(fmt::format("{} windows", result.windows));

  Table table;
  table.columns = {{"procedure", "procedure"}, {"context", "context"},
                   {"dtype", "dtype"},         {"perplexity", "perplexity", 4},
                   {"error", "+-", 4},         {"mean_of_running", "mean of running", 4},
                   {"windows", "windows"},     {"scored_tokens", "scored tokens"},
                   {"tokens", "tokens"}};
  table.rows.push_back({std::string(name_of(options.procedure)), options.context,
                        std::string(name_of(engine.compute())), result.perplexity, result.error, result.mean_of_running,
                        result.windows, result.scored_tokens, result.tokens});
  fmt::print("{}", render(table, format));
  return 0;
}

const CommandRegistration kRegistration(
    {"perplexity", "how well a model predicts a text", [](CLI::App& app) {
       auto arguments = std::make_shared<Arguments>();
       arguments->model.add_to(app);
       app.add_option("--dataset", arguments->dataset, "a text file (UTF-8), scored as it is")->required();
       app.add_option("--procedure", arguments->procedure, "gptq2048, autogptq, llama.cpp, strided")
           ->capture_default_str();
       app.add_option("--context", arguments->context, "tokens a window (by the procedure: 2048, 512, 512, 1024)")
           ->check(CLI::PositiveNumber);
       app.add_option("--stride", arguments->stride, "strided: tokens from one window's end to the next (512)")
           ->check(CLI::PositiveNumber);
       app.add_option("--windows", arguments->windows, "windows at most (all)")->check(CLI::PositiveNumber);
       app.add_option("--format", arguments->format, "markdown, csv, json, jsonl")->capture_default_str();
       return [arguments] { return run(*arguments); };
     }});

}  // namespace
}  // namespace nibble
