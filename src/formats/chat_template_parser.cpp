#include "formats/chat_template_parser.h"

#include "core/error.h"
#include "formats/chat_template_lexer.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <optional>

namespace nibble::chat {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(lex_template(source)) {}

  Template run() {
    template_.body = parse_block({});
    return std::move(template_);
  }

 private:
  // --- Tokens ---

  const Token& peek(std::size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[std::min(at_++, tokens_.size() - 1)]; }

  [[noreturn]] void refuse(std::string_view what) const { fail("chat template, line {}: {}", peek().line, what); }

  [[noreturn]] void refuse_token(std::string_view expected) const {
    const Token& found = peek();
    std::string_view what = found.text;
    if (found.kind == TokenKind::end) what = "the end of the template";
    if (found.kind == TokenKind::block_end) what = "%}";
    if (found.kind == TokenKind::print_end) what = "}}";
    fail("chat template, line {}: expected {}, found \"{}\"", found.line, expected, what.substr(0, 40));
  }

  bool is_symbol(std::string_view text, std::size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::symbol && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, std::size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::name && peek(ahead).text == text;
  }
  bool take_symbol(std::string_view text) {
    if (!is_symbol(text)) return false;
    ++at_;
    return true;
  }
  bool take_name(std::string_view text) {
    if (!is_name(text)) return false;
    ++at_;
    return true;
  }
  void need_symbol(std::string_view text) {
    if (!take_symbol(text)) refuse_token(fmt::format("\"{}\"", text));
  }
  std::string need_name(std::string_view what) {
    if (peek().kind != TokenKind::name) refuse_token(what);
    return next().text;
  }
  void need_block_end() {
    if (peek().kind != TokenKind::block_end) refuse_token("\"%}\"");
    ++at_;
  }

  /// Counts how deep the parser has called itself.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kMaxNesting) parser_.refuse(fmt::format("nested deeper than {} levels", kMaxNesting));
    }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    ~Nesting() { --parser_.nesting_; }

   private:
    Parser& parser_;
  };

  // --- Statements ---

  Stmt* add(StmtKind kind) {
    Stmt& stmt = template_.statements.emplace_back();
    stmt.kind = kind;
    stmt.line = peek().line;
    return &stmt;
  }

  /// Statements up to a tag that begins with one of `ends`, which is left unread but for its "{%"; with none, up to the
  /// end of the template.
  Block parse_block(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    Block block;
    while (true) {
      switch (peek().kind) {
        case TokenKind::end:
          if (ends.size() > 0) refuse(fmt::format("a block has no end ({{% {} %}})", *(ends.end() - 1)));
          return block;
        case TokenKind::text: {
          Stmt* stmt = add(StmtKind::text);
          stmt->text = next().text;
          block.push_back(stmt);
          break;
        }
        case TokenKind::print_begin: {
          ++at_;
          Stmt* stmt = add(StmtKind::print);
          stmt->expr = parse_tuple_or_expression();
          if (peek().kind != TokenKind::print_end) refuse_token("\"}}\"");
          ++at_;
          block.push_back(stmt);
          break;
        }
        default: {
          ++at_;  // block_begin: nothing else stands outside of tags
          const auto is_end = [&](std::string_view end) { return is_name(end); };
          if (std::any_of(ends.begin(), ends.end(), is_end)) return block;
          if (const Stmt* stmt = parse_statement()) block.push_back(stmt);
        }
      }
    }
  }

  const Stmt* parse_statement() {
    const std::string name = peek().text;
    if (peek().kind != TokenKind::name) refuse_token("the name of a statement");
    if (take_name("for")) return parse_for();
    if (take_name("if")) return parse_if();
    if (take_name("set")) return parse_set();
    if (take_name("macro")) return parse_macro();
    if (take_name("generation")) {
      Stmt* stmt = add(StmtKind::scope);
      need_block_end();
      stmt->body = parse_block({"endgeneration"});
      ++at_;
      need_block_end();
      return stmt;
    }
    if (is_name("break") || is_name("continue")) {
      Stmt* stmt = add(is_name("break") ? StmtKind::break_ : StmtKind::continue_);
      if (loops_ == 0) refuse(fmt::format("{} outside of a loop", name));
      ++at_;
      need_block_end();
      return stmt;
    }
    refuse(fmt::format("the statement \"{}\" is not known here or not supported", name.substr(0, 40)));
  }

  const Stmt* parse_for() {
    Stmt* stmt = add(StmtKind::for_);
    stmt->names = parse_targets();
    if (!take_name("in")) refuse_token("\"in\"");
    stmt->expr = parse_or_list();
    if (take_name("if")) stmt->condition = parse_expression();
    if (is_name("recursive")) refuse("recursive loops are not supported");
    need_block_end();
    ++loops_;
    stmt->body = parse_block({"else", "endfor"});
    --loops_;
    if (take_name("else")) {
      need_block_end();
      stmt->other = parse_block({"endfor"});
    }
    ++at_;
    need_block_end();
    return stmt;
  }

  const Stmt* parse_if() {
    Stmt* first = add(StmtKind::if_);
    Stmt* stmt = first;
    while (true) {
      stmt->expr = parse_tuple_or_expression();
      need_block_end();
      stmt->body = parse_block({"elif", "else", "endif"});
      if (!take_name("elif")) break;
      Stmt* other = add(StmtKind::if_);
      stmt->other.push_back(other);
      stmt = other;
    }
    if (take_name("else")) {
      need_block_end();
      stmt->other = parse_block({"endif"});
    }
    if (!take_name("endif")) refuse_token("endif");
    need_block_end();
    return first;
  }

  const Stmt* parse_set() {
    Stmt* stmt = add(StmtKind::set);
    if (peek().kind == TokenKind::name && is_symbol(".", 1)) {
      stmt->names.push_back(next().text);
      ++at_;
      stmt->text = need_name("the name of an attribute");
    } else {
      stmt->names = parse_targets();
    }
    if (take_symbol("=")) {
      stmt->expr = parse_tuple_or_expression();
      need_block_end();
      return stmt;
    }
    if (stmt->names.size() != 1 || !stmt->text.empty()) refuse_token("\"=\"");
    stmt->kind = StmtKind::set_block;
    need_block_end();
    stmt->body = parse_block({"endset"});
    ++at_;
    need_block_end();
    return stmt;
  }

  const Stmt* parse_macro() {
    Stmt* stmt = add(StmtKind::macro);
    stmt->text = need_name("the name of a macro");
    need_symbol("(");
    while (!is_symbol(")")) {
      if (!stmt->names.empty()) need_symbol(",");
      stmt->names.push_back(need_name("the name of a parameter"));
      stmt->defaults.push_back(take_symbol("=") ? parse_expression() : nullptr);
    }
    ++at_;
    need_block_end();
    const int loops = std::exchange(loops_, 0);
    stmt->body = parse_block({"endmacro"});
    loops_ = loops;
    ++at_;
    need_block_end();
    return stmt;
  }

  std::vector<std::string> parse_targets() {
    const bool parenthesized = take_symbol("(");
    std::vector<std::string> names = {need_name("the name of a variable")};
    while (take_symbol(",")) names.push_back(need_name("the name of a variable"));
    if (parenthesized) need_symbol(")");
    return names;
  }

  // --- Expressions, the loosest first ---

  Expr* add(ExprKind kind, std::vector<const Expr*> args = {}) {
    Expr& expr = template_.expressions.emplace_back();
    expr.kind = kind;
    expr.line = peek().line;
    expr.args = std::move(args);
    return &expr;
  }

  const Expr* parse_tuple_or_expression() { return parse_tuple_or(&Parser::parse_expression); }

  /// What a for loop goes through: no conditional, whose "if" would be the loop's.
  const Expr* parse_or_list() { return parse_tuple_or(&Parser::parse_or); }

  /// What `parse` reads, or a tuple of such elements where commas follow. A comma may end it.
  const Expr* parse_tuple_or(const Expr* (Parser::*parse)()) {
    const Expr* first = (this->*parse)();
    if (!is_symbol(",")) return first;
    Expr* tuple = add(ExprKind::tuple, {first});
    while (take_symbol(",")) {
      if (is_symbol(")") || peek().kind == TokenKind::block_end || peek().kind == TokenKind::print_end) break;
      tuple->args.push_back((this->*parse)());
    }
    return tuple;
  }

  const Expr* parse_expression() {
    const Nesting nesting(*this);
    const Expr* value = parse_or();
    while (take_name("if")) {
      const Expr* condition = parse_or();
      const Expr* other = take_name("else") ? parse_expression() : nullptr;
      value = add(ExprKind::conditional, {condition, value, other});
    }
    return value;
  }

  const Expr* parse_or() {
    const Expr* left = parse_and();
    while (take_name("or")) left = add(ExprKind::or_, {left, parse_and()});
    return left;
  }

  const Expr* parse_and() {
    const Expr* left = parse_not();
    while (take_name("and")) left = add(ExprKind::and_, {left, parse_not()});
    return left;
  }

  const Expr* parse_not() {
    if (is_name("not") && !is_name("in", 1)) {
      ++at_;
      const Nesting nesting(*this);
      return add(ExprKind::not_, {parse_not()});
    }
    return parse_comparison();
  }

  std::optional<Op> take_comparison() {
    static constexpr std::pair<std::string_view, Op> kOps[] = {{"==", Op::eq}, {"!=", Op::ne}, {"<", Op::lt},
                                                               {"<=", Op::le}, {">", Op::gt},  {">=", Op::ge}};
    for (const auto& [text, op] : kOps) {
      if (take_symbol(text)) return op;
    }
    if (take_name("in")) return Op::in;
    if (is_name("not") && is_name("in", 1)) {
      at_ += 2;
      return Op::not_in;
    }
    return std::nullopt;
  }

  const Expr* parse_comparison() {
    const Expr* left = parse_sum();
    Expr* comparison = nullptr;
    while (const auto op = take_comparison()) {
      if (comparison == nullptr) comparison = add(ExprKind::comparison, {left});
      comparison->ops.push_back(*op);
      comparison->args.push_back(parse_sum());
    }
    return comparison == nullptr ? left : comparison;
  }

  const Expr* arithmetic(Op op, const Expr* left, const Expr* right) {
    Expr* expr = add(ExprKind::arithmetic, {left, right});
    expr->ops.push_back(op);
    return expr;
  }

  const Expr* parse_sum() {
    const Expr* left = parse_join();
    while (true) {
      if (take_symbol("+")) {
        left = arithmetic(Op::add, left, parse_join());
      } else if (take_symbol("-")) {
        left = arithmetic(Op::subtract, left, parse_join());
      } else {
        return left;
      }
    }
  }

  const Expr* parse_join() {
    const Expr* left = parse_product();
    while (take_symbol("~")) left = arithmetic(Op::join, left, parse_product());
    return left;
  }

  const Expr* parse_product() {
    const Expr* left = parse_power();
    while (true) {
      if (take_symbol("*")) {
        left = arithmetic(Op::multiply, left, parse_power());
      } else if (take_symbol("/")) {
        left = arithmetic(Op::divide, left, parse_power());
      } else if (take_symbol("//")) {
        left = arithmetic(Op::floor_divide, left, parse_power());
      } else if (take_symbol("%")) {
        left = arithmetic(Op::modulo, left, parse_power());
      } else {
        return left;
      }
    }
  }

  const Expr* parse_power() {
    const Expr* left = parse_unary(true);
    while (take_symbol("**")) left = arithmetic(Op::power, left, parse_unary(true));
    return left;
  }

  const Expr* parse_unary(bool with_filters) {
    const Nesting nesting(*this);
    const Expr* value = nullptr;
    if (take_symbol("-")) {
      value = add(ExprKind::negate, {parse_unary(false)});
    } else if (take_symbol("+")) {
      value = add(ExprKind::plus, {parse_unary(false)});
    } else {
      value = parse_primary();
    }
    value = parse_postfix(value);
    return with_filters ? parse_filters(value) : value;
  }

  const Expr* constant(Value value) {
    Expr* expr = add(ExprKind::constant);
    expr->constant = std::move(value);
    return expr;
  }

  const Expr* parse_primary() {
    const Token token = peek();
    switch (token.kind) {
      case TokenKind::name:
        ++at_;
        if (token.text == "true" || token.text == "True") return constant(true);
        if (token.text == "false" || token.text == "False") return constant(false);
        if (token.text == "none" || token.text == "None") return constant(None{});
        return named(ExprKind::name, token.text, {});
      case TokenKind::string: {
        std::string text;
        while (peek().kind == TokenKind::string) text += next().text;
        return constant(std::move(text));
      }
      case TokenKind::integer: {
        std::int64_t number = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
        if (error != std::errc() || end != token.text.data() + token.text.size()) refuse_token("an integer of 64 bits");
        ++at_;
        return constant(number);
      }
      case TokenKind::number: {
        double number = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
        if (error != std::errc() || end != token.text.data() + token.text.size()) refuse_token("a number");
        ++at_;
        return constant(number);
      }
      default:
        break;
    }
    if (take_symbol("(")) {
      if (take_symbol(")")) return add(ExprKind::tuple);
      const Expr* value = parse_tuple_or_expression();
      need_symbol(")");
      return value;
    }
    if (take_symbol("[")) return parse_list();
    if (take_symbol("{")) return parse_dict();
    refuse_token("an expression");
  }

  const Expr* parse_list() {
    Expr* list = add(ExprKind::list);
    while (!is_symbol("]")) {
      if (!list->args.empty()) need_symbol(",");
      if (is_symbol("]")) break;
      list->args.push_back(parse_expression());
    }
    ++at_;
    return list;
  }

  const Expr* parse_dict() {
    Expr* dict = add(ExprKind::dict);
    while (!is_symbol("}")) {
      if (!dict->args.empty()) need_symbol(",");
      if (is_symbol("}")) break;
      dict->args.push_back(parse_expression());
      need_symbol(":");
      dict->args.push_back(parse_expression());
    }
    ++at_;
    return dict;
  }

  Expr* named(ExprKind kind, std::string text, std::vector<const Expr*> args) {
    Expr* expr = add(kind, std::move(args));
    expr->text = std::move(text);
    return expr;
  }

  const Expr* parse_postfix(const Expr* value) {
    while (true) {
      if (take_symbol(".")) {
        if (peek().kind == TokenKind::integer) {
          value = add(ExprKind::item, {value, parse_primary()});
        } else {
          value = named(ExprKind::attribute, need_name("the name of an attribute"), {value});
        }
      } else if (take_symbol("[")) {
        value = parse_subscript(value);
      } else if (is_symbol("(")) {
        Expr* call = add(ExprKind::call, {value});
        parse_arguments(*call);
        value = call;
      } else {
        return value;
      }
    }
  }

  const Expr* parse_subscript(const Expr* value) {
    std::vector<const Expr*> parts = {value};
    bool is_slice = false;
    const Expr* part = nullptr;
    while (!is_symbol("]")) {
      if (take_symbol(":")) {
        is_slice = true;
        parts.push_back(part);
        part = nullptr;
      } else if (part == nullptr) {
        part = parse_expression();
      } else {
        refuse_token("\"]\"");
      }
    }
    parts.push_back(part);
    if (!is_slice && part == nullptr) refuse_token("an index");
    ++at_;
    if (!is_slice) return add(ExprKind::item, std::move(parts));
    if (parts.size() > 4) refuse("a slice has at most three parts");
    parts.resize(4);
    return add(ExprKind::slice, std::move(parts));
  }

  /// "(" arguments ")"; positional ones go after what `call` has.
  void parse_arguments(Expr& call) {
    need_symbol("(");
    bool first = true;
    while (!is_symbol(")")) {
      if (!first) need_symbol(",");
      first = false;
      if (is_symbol(")")) break;
      if (is_symbol("*") || is_symbol("**")) refuse("unpacking of arguments is not supported");
      if (peek().kind == TokenKind::name && is_symbol("=", 1)) {
        std::string name = next().text;
        ++at_;
        call.named.emplace_back(std::move(name), parse_expression());
      } else {
        if (!call.named.empty()) refuse("a positional argument follows a named one");
        call.args.push_back(parse_expression());
      }
    }
    ++at_;
  }

  const Expr* parse_filters(const Expr* value) {
    while (true) {
      if (take_symbol("|")) {
        Expr* filter = named(ExprKind::filter, need_name("the name of a filter"), {value});
        if (is_symbol("(")) parse_arguments(*filter);
        value = filter;
      } else if (take_name("is")) {
        value = parse_test(value);
      } else if (is_symbol("(")) {
        Expr* call = add(ExprKind::call, {value});
        parse_arguments(*call);
        value = call;
      } else {
        return value;
      }
    }
  }

  /// After "is": a name and, in parentheses or bare, its argument.
  const Expr* parse_test(const Expr* value) {
    const bool negated = take_name("not");
    Expr* test = named(ExprKind::test, need_name("the name of a test"), {value});
    const Token& token = peek();
    const bool keyword = token.kind == TokenKind::name &&
                         (token.text == "else" || token.text == "or" || token.text == "and" || token.text == "if" ||
                          token.text == "is" || token.text == "not" || token.text == "in");
    if (is_symbol("(")) {
      parse_arguments(*test);
    } else if (!keyword &&
               (token.kind == TokenKind::name || token.kind == TokenKind::string || token.kind == TokenKind::integer ||
                token.kind == TokenKind::number || is_symbol("[") || is_symbol("{"))) {
      test->args.push_back(parse_postfix(parse_primary()));
    }
    return negated ? add(ExprKind::not_, {test}) : test;
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  Template template_;
};

}  // namespace

Template parse_template(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    fail("the chat template has {} bytes, more than the {} allowed", source.size(), kMaxTemplateBytes);
  }
  return Parser(source).run();
}

}  // namespace nibble::chat
