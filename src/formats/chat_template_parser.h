// The text of a chat template as a tree. The grammar is Jinja's: https://jinja.palletsprojects.com/templates.
#pragma once

#include "formats/chat_template_value.h"

#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::chat {

enum class ExprKind {
  constant,
  name,         // text
  list,         // args
  tuple,        // args
  dict,         // args: key, value, key, value, ...
  attribute,    // args[0].text
  item,         // args[0][args[1]]
  slice,        // args[0][args[1]:args[2]:args[3]]; each of the last three may be null
  call,         // args[0](args[1..], named)
  filter,       // args[0] | text(args[1..], named)
  test,         // args[0] is text(args[1..])
  negate,       // -args[0]
  plus,         // +args[0]
  not_,         // not args[0]
  and_,         // args[0] and args[1]
  or_,          // args[0] or args[1]
  arithmetic,   // args[0] op args[1]
  comparison,   // args[0] ops[0] args[1] ops[1] args[2] ...
  conditional,  // args[1] if args[0] else args[2]; the last may be null
};

enum class Op {
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  join,
  eq,
  ne,
  lt,
  le,
  gt,
  ge,
  in,
  not_in
};

struct Expr {
  ExprKind kind = ExprKind::constant;
  int line = 0;
  Value constant;
  std::string text;
  std::vector<const Expr*> args;
  std::vector<std::pair<std::string, const Expr*>> named;
  std::vector<Op> ops;
};

enum class StmtKind {
  text,       // text
  print,      // expr
  for_,       // names in expr if condition: body, else: other
  if_,        // expr: body, else: other (an elif is an if in other)
  set,        // names = expr, or names[0].text = expr
  set_block,  // names[0] = what body prints
  macro,      // text(names = defaults): body
  scope,      // body with variables of its own (generation)
  break_,
  continue_,
};

struct Stmt;
using Block = std::vector<const Stmt*>;

struct Stmt {
  StmtKind kind = StmtKind::text;
  int line = 0;
  std::string text;
  std::vector<std::string> names;
  std::vector<const Expr*> defaults;  // of a macro's parameters; null where there is none
  const Expr* expr = nullptr;
  const Expr* condition = nullptr;
  Block body;
  Block other;
};

struct Macro {
  const Stmt* stmt = nullptr;
};

/// A parsed template owns its nodes, which refer to each other.
struct Template {
  std::deque<Expr> expressions;
  std::deque<Stmt> statements;
  Block body;
};

/// The longest template; real ones have up to some 20 KiB.
inline constexpr std::size_t kMaxTemplateBytes = std::size_t{1} << 20;
/// How deep statements and parentheses may nest.
inline constexpr int kMaxNesting = 100;

/// Throws Error, with the line, for text that is no template or uses what is not supported.
Template parse_template(std::string_view source);

}  // namespace nibble::chat
