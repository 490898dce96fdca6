// nibble bench case JSON: one case of a benchmark, as the benchmark starts it in a process of its own. Not for people.
#include "bench/sweep.h"
#include "cli/command.h"
#include "core/progress.h"

#include <CLI/CLI.hpp>

#include <memory>

namespace nibble {
namespace {

const CommandRegistration kRegistration({"bench case", "one case of a benchmark", [](CLI::App& app) {
                                           app.group("");  // not in --help
                                           auto json = std::make_shared<std::string>();
                                           app.add_option("case", *json, "the case as JSON")->required();
                                           return [json] {
                                             Progress::disable();
                                             return answer_case(*json);
                                           };
                                         }});

}  // namespace
}  // namespace nibble
