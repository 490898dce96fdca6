// Runs a parsed chat template.
#pragma once

#include "formats/chat_template_parser.h"

#include <ctime>
#include <string>
#include <utility>
#include <vector>

namespace nibble::chat {

/// What the template prints with these variables. `budget` bounds its work (chat_template_value.h). Throws Error, with
/// the line, where it fails.
std::string render(const Template& parsed, std::vector<std::pair<std::string, Value>> variables, Budget budget,
                   std::time_t now);

}  // namespace nibble::chat
