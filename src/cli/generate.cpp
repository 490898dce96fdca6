// nibble generate: text from a model, streamed to stdout.
#include "cli/command.h"
#include "cli/engine_options.h"

#include "core/error.h"
#include "core/log.h"
#include "engine/chat.h"
#include "engine/generator.h"
#include "engine/stop_tokens.h"
#include "formats/tokenizer.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>

namespace nibble {
namespace {

struct Options {
  ModelOptions model;
  std::vector<std::string> prompts;
  std::string prompt_file;
  std::string system;
  bool chat = false;
  bool ids = false;
  bool no_special = false;
  bool ignore_eos = false;
  bool stats = false;
  bool profile = false;
  std::int64_t max_new_tokens = 128;
  SampleParams sampling;
};

std::vector<std::string> read_prompts(const Options& o) {
  std::vector<std::string> out = o.prompts;
  if (!o.prompt_file.empty()) {
    constexpr std::size_t kLimit = std::size_t{64} << 20;  // far beyond any context
    if (o.prompt_file == "-") {
      std::stringstream text;
      text << std::cin.rdbuf();
      out.push_back(text.str());
    } else {
      out.push_back(read_text_file(o.prompt_file, kLimit));
    }
  }
  if (out.empty())
    fail_usage("nibble generate needs a prompt: --prompt TEXT, or --prompt-file FILE (- for standard input)");
  return out;
}

// Prints each sequence's text as it grows; with several sequences, each when it is complete.
class Printer {
 public:
  Printer(const Tokenizer& tokenizer, std::size_t count) : tokenizer_(tokenizer), stream_(count == 1), texts_(count) {
    for (std::size_t i = 0; i < count; ++i) decoders_.emplace_back(tokenizer, true);
  }
  void token(std::size_t sequence, std::int32_t id) { put(sequence, decoders_[sequence].push(id)); }
  void finish() {
    for (std::size_t i = 0; i < decoders_.size(); ++i) {
      put(i, decoders_[i].finish());
      if (stream_) {
        fmt::print("\n");
      } else {
        fmt::print("[{}] {}\n", i, texts_[i]);
      }
    }
    std::fflush(stdout);
  }

 private:
  void put(std::size_t sequence, const std::string& text) {
    if (!stream_) {
      texts_[sequence] += text;
    } else if (!text.empty()) {
      fmt::print("{}", text);
      std::fflush(stdout);
    }
  }
  const Tokenizer& tokenizer_;
  bool stream_;
  std::vector<StreamingDecoder> decoders_;
  std::vector<std::string> texts_;
};

// Where a decode step's time goes: medians over 25 steps, nodes of all layers with one name together, the longest
// first.
void print_profile(Engine& engine) {
  constexpr int kSteps = 25;
  std::vector<std::vector<double>> seconds;  // [node][step]
  std::vector<NodeTime> nodes;
  for (int step = 0; step < kSteps; ++step) {
    nodes = engine.profile_step();
    seconds.resize(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) seconds[i].push_back(nodes[i].seconds);
  }
  std::map<std::string, std::pair<double, int>> by_name;
  double total = 0;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    std::nth_element(seconds[i].begin(), seconds[i].begin() + kSteps / 2, seconds[i].end());
    const double median = seconds[i][kSteps / 2];
    by_name[nodes[i].name].first += median;
    by_name[nodes[i].name].second += 1;
    total += median;
  }
  std::vector<std::pair<std::string, std::pair<double, int>>> sorted(by_name.begin(), by_name.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.first > b.second.first; });
  for (const auto& [name, time] : sorted) {
    fmt::print(stderr, "{:9.3f} ms {:5.1f}%  {:4} x {}\n", time.first * 1e3, 100 * time.first / total, time.second,
               name);
  }
  fmt::print(stderr, "{:9.3f} ms  a step, node by node (replayed in one go it has no fork and join a node)\n",
             total * 1e3);
}

int run(const Options& o) {
  const std::vector<std::string> texts = read_prompts(o);
  const auto checkpoint = o.model.open();
  const Tokenizer tokenizer = Tokenizer::load(checkpoint->folder());
  std::vector<std::vector<std::int32_t>> prompts;
  std::int64_t longest = 0;
  for (const std::string& text : texts) {
    if (o.chat) {
      std::vector<ChatMessage> messages;
      if (!o.system.empty()) messages.push_back({"system", o.system});
      messages.push_back({"user", text});
      prompts.push_back(chat_prompt(checkpoint->folder(), tokenizer, messages));
    } else {
      prompts.push_back(tokenizer.encode(text, !o.no_special));
    }
    if (prompts.back().empty()) fail("the prompt \"{}\" has no tokens", text);
    longest = std::max(longest, static_cast<std::int64_t>(prompts.back().size()));
  }

  EngineOptions engine_options = o.model.engine_options();
  engine_options.max_batch = static_cast<std::int64_t>(prompts.size());
  if (engine_options.max_tokens == 0) engine_options.max_tokens = longest + o.max_new_tokens;
  Engine engine(checkpoint, engine_options);

  GenerateOptions options;
  options.max_new_tokens = std::min(o.max_new_tokens, engine.max_tokens() - longest + 1);
  options.stop_tokens = stop_tokens(*checkpoint);
  options.ignore_stop = o.ignore_eos;
  options.sampling = o.sampling;
  Printer printer(tokenizer, prompts.size());
  if (!o.ids) {
    options.on_token = [&printer](std::int64_t sequence, std::int32_t id) {
      printer.token(static_cast<std::size_t>(sequence), id);
    };
  }
  const Generation result = generate(engine, prompts, options);
  if (o.ids) {
    for (const auto& tokens : result.tokens) fmt::print("{}\n", nlohmann::json(tokens).dump());
  } else {
    printer.finish();
  }
  if (o.stats) {
    std::int64_t prompt_tokens = 0;
    std::int64_t new_tokens = 0;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      prompt_tokens += static_cast<std::int64_t>(prompts[i].size());
      new_tokens += static_cast<std::int64_t>(result.tokens[i].size());
    }
    const double decode = result.total_seconds - result.prefill_seconds;
    log_info(fmt::format(
        "load {:.2f} s; prompt {} tokens in {:.1f} ms; {} new tokens, {:.2f} ms a step, {:.1f} tokens/s",
        engine.load_times().total, prompt_tokens, result.prefill_seconds * 1e3, new_tokens,
        result.step_seconds.empty() ? 0.0 : decode * 1e3 / static_cast<double>(result.step_seconds.size()),
        decode > 0 ? static_cast<double>(new_tokens - static_cast<std::int64_t>(prompts.size())) / decode : 0.0));
  }
  if (o.profile) print_profile(engine);
  return 0;
}

const CommandRegistration kRegistration(
    {"generate", "generate text from a model", [](CLI::App& app) -> std::function<int()> {
       auto o = std::make_shared<Options>();
       o->model.add_to(app);
       app.add_option("--prompt", o->prompts, "text to continue; several make a batch")->take_all();
       app.add_option("--prompt-file", o->prompt_file, "a file to continue, - for standard input");
       app.add_flag("--chat", o->chat, "the prompt is a user's message: apply the model's chat template");
       app.add_option("--system", o->system, "with --chat: the system message");
       app.add_flag("--no-special-tokens", o->no_special,
                    "do not add the tokenizer's special tokens (BOS) to the prompt");
       app.add_option("--max-new-tokens", o->max_new_tokens, "tokens to generate at most")
           ->capture_default_str()
           ->check(CLI::PositiveNumber);
       app.add_flag("--ignore-eos", o->ignore_eos, "do not stop at the end-of-sequence token");
       app.add_option("--temperature", o->sampling.temperature, "0: greedy")
           ->capture_default_str()
           ->check(CLI::NonNegativeNumber);
       app.add_option("--top-k", o->sampling.top_k, "draw from the k most likely tokens (0: all)")
           ->check(CLI::NonNegativeNumber);
       app.add_option("--top-p", o->sampling.top_p, "draw from the least set of tokens with this probability")
           ->check(CLI::Range(0.0, 1.0));
       app.add_option("--min-p", o->sampling.min_p,
                      "leave out tokens less likely than this share of the most likely one")
           ->check(CLI::Range(0.0, 1.0));
       app.add_option("--repetition-penalty", o->sampling.repetition_penalty,
                      "above 1: make tokens seen so far less likely")
           ->check(CLI::PositiveNumber);
       app.add_option("--seed", o->sampling.seed, "of the random draws")->capture_default_str();
       app.add_flag("--ids", o->ids, "print the new token ids as JSON, one line a prompt, instead of text");
       app.add_flag("--profile", o->profile, "print to stderr where the time of a decode step goes");
       app.add_flag("--stats", o->stats, "print times to stderr");
       return [o] { return run(*o); };
     }});

}  // namespace
}  // namespace nibble
