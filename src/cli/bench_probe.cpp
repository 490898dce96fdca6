// nibble bench probe JSON: what a benchmark must know of its device, as it asks in a process of its own. Not for
// people.
#include "bench/probe.h"
#include "cli/command.h"
#include "core/progress.h"

#include <CLI/CLI.hpp>

#include <memory>

namespace nibble {
namespace {

const CommandRegistration kRegistration({"bench probe", "what a benchmark asks of a device", [](CLI::App& app) {
                                           app.group("");  // not in --help
                                           auto json = std::make_shared<std::string>();
                                           app.add_option("question", *json, "the question as JSON")->required();
                                           return [json] {
                                             Progress::disable();
                                             return answer_probe(*json);
                                           };
                                         }});

}  // namespace
}  // namespace nibble
