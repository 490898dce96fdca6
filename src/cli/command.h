// A subcommand of `nibble`: one file each, which registers itself.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace nibble {

struct Command {
  std::string name;     // "generate"; "bench gptq" is a subcommand of the group "bench"
  std::string summary;  // one line for `nibble --help`
  /// Adds options to `app` and returns what to run once they are parsed: the exit code.
  std::function<std::function<int()>(CLI::App& app)> setup;
};

class CommandRegistration {
 public:
  explicit CommandRegistration(Command command);
};

/// All commands, by name.
const std::vector<Command>& commands();

/// Parses and runs; prints one sentence for an error. Returns the exit code: 0, 1 (failure), 2 (wrong usage).
int run_cli(int argc, const char* const* argv);

}  // namespace nibble
