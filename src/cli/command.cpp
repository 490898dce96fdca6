#include "cli/command.h"

#include "core/cpu.h"
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/thread_pool.h"

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <exception>
#include <map>
#include <new>
#include <string_view>

namespace nibble {
namespace {

constexpr const char* kVersion = "nibble " NIBBLE_VERSION;

std::vector<Command>& registry() {
  static std::vector<Command> all;
  return all;
}

// CLI11 takes a word between brackets, such as [MASK], for a list, and drops the brackets. No option here is such a
// list: these words get an end that nobody can type, which is taken off before their values are used.
constexpr char kEndOfWord = '\0';

void keep_brackets(std::vector<std::string>& words) {
  for (std::string& word : words) {
    if (word.ends_with(']') && word.find('[') != std::string::npos) word += kEndOfWord;
  }
}

void take_off_ends(CLI::App& app) {
  const CLI::Validator take_off(
      [](std::string& word) {
        if (word.ends_with(kEndOfWord)) word.pop_back();
        return std::string();
      },
      "");
  for (CLI::Option* option : app.get_options()) option->transform(take_off);
}

}  // namespace

CommandRegistration::CommandRegistration(Command command) {
  auto& all = registry();
  all.push_back(std::move(command));
  std::sort(all.begin(), all.end(), [](const Command& a, const Command& b) { return a.name < b.name; });
}

const std::vector<Command>& commands() { return registry(); }

int run_cli(int argc, const char* const* argv) {
  CLI::App app{"Runs, quantises and measures Hugging Face transformer checkpoints.", "nibble"};
  app.set_version_flag("--version", kVersion);
  app.require_subcommand(1);
  app.fallthrough();
  int threads = 0;
  std::string isa;
  bool quiet = false;
  bool verbose = false;
  app.add_option("--threads", threads, "threads to use (default: the CPUs this process may use)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--isa", isa,
                 "instruction set to use at most: scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx");
  app.add_flag("--quiet", quiet, "no progress and no messages but errors");
  app.add_flag("--verbose", verbose, "more messages");

  std::map<std::string, CLI::App*> groups;
  std::function<int()> chosen;
  for (const Command& command : commands()) {
    CLI::App* parent = &app;
    std::string name = command.name;
    if (const std::size_t space = name.find(' '); space != std::string::npos) {
      const std::string group = name.substr(0, space);
      name = name.substr(space + 1);
      auto& made = groups[group];
      if (made == nullptr) {
        made = app.add_subcommand(group, "group of commands");
        made->require_subcommand(1);
        made->fallthrough();
      }
      parent = made;
      made->description("commands: " + group);
    }
    CLI::App* sub = parent->add_subcommand(name, command.summary);
    sub->fallthrough();
    const std::function<int()> run = command.setup(*sub);
    take_off_ends(*sub);
    sub->final_callback([run, &chosen] { chosen = run; });
  }

  // `benchmark_gptq ...` is `nibble bench gptq --classic ...`: optimum's script by its own name, with its own table.
  std::vector<std::string> words(argv + 1, argv + argc);
  const std::string_view path = argc > 0 ? argv[0] : "";
  const std::string_view program = path.substr(path.rfind('/') + 1);
  constexpr std::string_view kScripts = "benchmark_";
  if (program.starts_with(kScripts)) {
    std::string_view bench = program.substr(kScripts.size());
    // The script for images is the same benchmark.
    constexpr std::string_view kImages = "_vit";
    if (bench.ends_with(kImages)) bench.remove_suffix(kImages.size());
    words.insert(words.begin(), {"bench", std::string(bench), "--classic"});
  }
  keep_brackets(words);
  std::reverse(words.begin(), words.end());  // CLI11 takes them last first
  try {
    app.parse(words);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }

  try {
    if (quiet) {
      set_log_level(LogLevel::error);
      Progress::disable();
    } else if (verbose) {
      set_log_level(LogLevel::debug);
    }
    if (!isa.empty()) {
      const auto known = isa_from_name(isa);
      if (!known) fail_usage("--isa {}: expected scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16 or amx", isa);
      set_isa(*known);
    }
    if (threads > 0) ThreadPool::instance().set_threads(threads);
    return chosen();
  } catch (const UsageError& e) {
    fmt::print(stderr, "nibble: {}\n", e.what());
    return 2;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "nibble: the system gave no more memory; `nibble plan` shows what a run needs\n");
    return 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "nibble: {}\n", e.what());
    return 1;
  }
}

}  // namespace nibble
