// Cuts a chat template into text, and what stands in tags into tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::chat {

enum class TokenKind {
  text,
  print_begin,
  print_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  number,
  symbol,
  end
};

struct Token {
  TokenKind kind = TokenKind::end;
  int line = 0;
  std::string text;  // of strings: the value
};

/// The tokens of a template, the last of kind end. White space is treated as transformers sets Jinja up: the first line
/// break after a block tag or comment goes (trim_blocks), as do blanks from the start of a line to one (lstrip_blocks);
/// the marks - and + at the ends of tags override. Line breaks become \n, and a last one of the whole is dropped.
/// Throws Error, with the line, for a tag without its end or what no token begins with.
std::vector<Token> lex_template(std::string_view source);

}  // namespace nibble::chat
