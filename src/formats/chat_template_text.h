// Python's methods of str, as chat templates use them. Texts are valid UTF-8; positions count characters.
#pragma once

#include "formats/chat_template_value.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::chat {

/// The text without white space at its ends, or without the characters of `characters`.
std::string_view strip(std::string_view text, bool left, bool right, const std::string* characters, Budget& budget);

/// Python's split and rsplit: at runs of white space, or at each `separator` (not empty); at most `limit` cuts if >= 0.
std::vector<Value> split(std::string_view text, const std::string* separator, std::int64_t limit, bool from_right,
                         Budget& budget);
std::vector<Value> split_lines(std::string_view text, Budget& budget);
/// At most `limit` replacements if >= 0; an empty `from` is between all characters.
std::string replace(std::string_view text, std::string_view from, std::string_view to, std::int64_t limit,
                    Budget& budget);
std::int64_t count_text(std::string_view text, std::string_view part, Budget& budget);
/// The number of characters.
std::int64_t length(std::string_view text);
/// The position in characters of the first occurrence, or -1.
std::int64_t find_text(std::string_view text, std::string_view part, Budget& budget);
/// The first line, then the others after `width` blanks; empty lines stay empty unless `blank`.
std::string indent(std::string_view text, std::string_view blanks, bool first, bool blank, Budget& budget);
std::string escape_html(std::string_view text, Budget& budget);

/// The positions that Python's slice of a sequence of `size` elements takes, in order. A step of 0 throws Error.
std::vector<std::size_t> slice_positions(std::size_t size, std::optional<std::int64_t> start,
                                         std::optional<std::int64_t> stop, std::optional<std::int64_t> step);

}  // namespace nibble::chat
