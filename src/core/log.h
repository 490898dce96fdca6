// Messages for people, always on stderr; what a program reads goes to stdout and never through here.
#pragma once

#include <string_view>

namespace nibble {

enum class LogLevel { debug, info, warn, error, off };

void set_log_level(LogLevel level);
void log_debug(std::string_view message);
void log_info(std::string_view message);
void log_warn(std::string_view message);

}  // namespace nibble
