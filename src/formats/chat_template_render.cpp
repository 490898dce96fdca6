#include "formats/chat_template_render.h"

#include "core/error.h"
#include "formats/chat_template_builtins.h"
#include "formats/chat_template_text.h"
#include "formats/unicode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <optional>

namespace nibble::chat {
namespace {

/// How deep evaluation may call itself: expressions in expressions, blocks in blocks, macros in macros. Each level
/// takes up to some KiB of stack (more under a sanitizer), of which there are 8 MiB.
constexpr int kMaxDepth = 500;

enum class Flow { normal, break_, continue_ };

/// A line is put before a sentence once, by the innermost expression that fails.
class TemplateError : public Error {
 public:
  using Error::Error;
};

class Renderer {
 public:
  Renderer(std::vector<std::pair<std::string, Value>> variables, Budget budget, std::time_t now) {
    session_.budget = budget;
    session_.now = now;
    frames_.push_back({std::move(variables)});
  }

  std::string run(const Block& body) {
    run_block(body);
    return std::move(out_);
  }

 private:
  using Variables = std::vector<std::pair<std::string, Value>>;
  struct Frame {
    Variables variables;
  };

  /// Counts depth, and names the line of what fails within.
  template <typename Action>
  auto at_line(int line, Action&& action) {
    struct Depth {
      explicit Depth(int& value) : depth(value) { ++depth; }
      Depth(const Depth&) = delete;
      Depth& operator=(const Depth&) = delete;
      ~Depth() { --depth; }
      int& depth;
    };
    const Depth depth(depth_);
    try {
      if (depth_ > kMaxDepth) fail("evaluation goes deeper than {} levels", kMaxDepth);
      session_.budget.charge(4);
      return action();
    } catch (const TemplateError&) {
      throw;
    } catch (const Error& error) {
      throw TemplateError(fmt::format("chat template, line {}: {}", line, error.what()));
    }
  }

  // --- Variables: the frames from the innermost to that of the macro which runs, then the outermost ---

  static const Value* find_in(const Variables& variables, std::string_view name) {
    const auto found =
        std::find_if(variables.begin(), variables.end(), [&](const auto& item) { return item.first == name; });
    return found == variables.end() ? nullptr : &found->second;
  }

  Value look_up(const std::string& name) {
    for (std::size_t i = frames_.size(); i-- > base_;) {
      session_.budget.charge(frames_[i].variables.size() / 8);
      if (const Value* found = find_in(frames_[i].variables, name)) return *found;
    }
    if (const Value* found = find_in(frames_.front().variables, name)) return *found;
    if (name == "range") return Function::range;
    if (name == "namespace") return Function::namespace_;
    if (name == "dict") return Function::dict;
    if (name == "raise_exception") return Function::raise_exception;
    if (name == "strftime_now") return Function::strftime_now;
    return Value::undefined(name);
  }

  static void assign(Variables& variables, const std::string& name, Value value) {
    const auto found =
        std::find_if(variables.begin(), variables.end(), [&](const auto& item) { return item.first == name; });
    if (found == variables.end()) {
      variables.emplace_back(name, std::move(value));
    } else {
      found->second = std::move(value);
    }
  }

  void assign(const std::string& name, Value value) {
    session_.budget.charge(frames_.back().variables.size() / 8);
    assign(frames_.back().variables, name, std::move(value));
  }

  /// One name takes the value; several take the elements of a list of as many.
  void assign_targets(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) {
      assign(names[0], value);
      return;
    }
    const std::vector<Value> items = to_items(value, session_.budget);
    if (items.size() != names.size()) fail("{} names cannot take {} values", names.size(), items.size());
    for (std::size_t i = 0; i < names.size(); ++i) assign(names[i], items[i]);
  }

  // --- Statements ---

  Flow run_block(const Block& block) {
    for (const Stmt* stmt : block) {
      const Flow flow = at_line(stmt->line, [&] { return run_statement(*stmt); });
      if (flow != Flow::normal) return flow;
    }
    return Flow::normal;
  }

  void print(std::string_view text) {
    session_.budget.charge(text.size());
    out_ += text;
  }

  /// The block's output as a text, with variables of its own.
  std::string capture(const Block& body, Frame frame) {
    std::string outer = std::exchange(out_, std::string());
    frames_.push_back(std::move(frame));
    run_block(body);
    frames_.pop_back();
    return std::exchange(out_, std::move(outer));
  }

  Flow run_statement(const Stmt& stmt) {
    switch (stmt.kind) {
      case StmtKind::text:
        print(stmt.text);
        return Flow::normal;
      case StmtKind::print:
        print(to_text(evaluate(stmt.expr), session_.budget));
        return Flow::normal;
      case StmtKind::for_:
        run_for(stmt);
        return Flow::normal;
      case StmtKind::if_:
        return run_if(stmt);
      case StmtKind::set:
        run_set(stmt);
        return Flow::normal;
      case StmtKind::set_block:
        assign(stmt.names[0], capture(stmt.body, {}));
        return Flow::normal;
      case StmtKind::macro:
        session_.budget.charge(64);
        assign(stmt.text, &macros_.emplace_back(Macro{&stmt}));
        return Flow::normal;
      case StmtKind::scope: {
        frames_.emplace_back();
        const Flow flow = run_block(stmt.body);
        frames_.pop_back();
        return flow;
      }
      case StmtKind::break_:
        return Flow::break_;
      case StmtKind::continue_:
        return Flow::continue_;
    }
    return Flow::normal;
  }

  /// A chain of elif is a chain of statements, walked here without recursion.
  Flow run_if(const Stmt& first) {
    for (const Stmt* stmt = &first;; stmt = stmt->other[0]) {
      session_.budget.charge(1);
      if (is_true(evaluate(stmt->expr))) return run_block(stmt->body);
      if (stmt->other.size() != 1 || stmt->other[0]->kind != StmtKind::if_) return run_block(stmt->other);
    }
  }

  void run_set(const Stmt& stmt) {
    const Value value = evaluate(stmt.expr);
    if (stmt.text.empty()) {
      assign_targets(stmt.names, value);
      return;
    }
    const Value object = look_up(stmt.names[0]);
    Namespace* space = object.as_namespace();
    if (space == nullptr)
      fail("only attributes of a namespace can be set, and \"{}\" is a {}", stmt.names[0], type_name(object));
    session_.budget.charge(space->items.size() / 8);
    assign(space->items, stmt.text, value);
  }

  void run_for(const Stmt& stmt) {
    std::vector<Value> items = to_items(evaluate(stmt.expr), session_.budget);
    if (stmt.condition != nullptr) {
      std::vector<Value> kept;
      for (Value& item : items) {
        frames_.emplace_back();
        assign_targets(stmt.names, item);
        if (is_true(evaluate(stmt.condition))) kept.push_back(std::move(item));
        frames_.pop_back();
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      frames_.emplace_back();
      run_block(stmt.other);
      frames_.pop_back();
      return;
    }
    session_.budget.charge(64);
    Loop& loop = loops_.emplace_back();
    loop.items = Value::list(std::move(items));
    const std::int64_t count = static_cast<std::int64_t>(loop.items.as_list().size());
    for (; loop.index0 < count; ++loop.index0) {
      session_.budget.charge(4);
      frames_.emplace_back();
      assign("loop", Value(static_cast<const Loop*>(&loop)));
      assign_targets(stmt.names, loop.items.as_list()[static_cast<std::size_t>(loop.index0)]);
      const Flow flow = run_block(stmt.body);
      frames_.pop_back();
      if (flow == Flow::break_) break;
    }
  }

  // --- Expressions ---

  Value evaluate(const Expr* expr) {
    return at_line(expr->line, [&] { return evaluate_kind(*expr); });
  }

  Value evaluate_kind(const Expr& expr) {
    switch (expr.kind) {
      case ExprKind::constant:
        return expr.constant;
      case ExprKind::name:
        return look_up(expr.text);
      case ExprKind::list:
        return Value::list(evaluate_all(expr.args, 0));
      case ExprKind::tuple:
        return Value::tuple(evaluate_all(expr.args, 0));
      case ExprKind::dict:
        return make_dict(expr);
      case ExprKind::attribute:
        return get_attribute(evaluate(expr.args[0]), expr.text, session_);
      case ExprKind::item:
        return get_item(evaluate(expr.args[0]), evaluate(expr.args[1]), session_);
      case ExprKind::slice:
        return make_slice(expr);
      case ExprKind::call:
        return call(expr);
      case ExprKind::filter:
        return filter(expr);
      case ExprKind::test:
        return apply_test(expr.text, evaluate(expr.args[0]), arguments(expr), session_);
      case ExprKind::negate:
      case ExprKind::plus:
        return sign(expr);
      case ExprKind::not_:
        return !is_true(evaluate(expr.args[0]));
      case ExprKind::and_:
      case ExprKind::or_: {
        Value left = evaluate(expr.args[0]);
        return is_true(left) == (expr.kind == ExprKind::and_) ? evaluate(expr.args[1]) : left;
      }
      case ExprKind::arithmetic:
        return arithmetic(expr.ops[0], evaluate(expr.args[0]), evaluate(expr.args[1]));
      case ExprKind::comparison:
        return compare_chain(expr);
      case ExprKind::conditional:
        if (is_true(evaluate(expr.args[0]))) return evaluate(expr.args[1]);
        return expr.args[2] == nullptr ? Value::undefined("the else of a conditional") : evaluate(expr.args[2]);
    }
    fail("an unknown expression");
  }

  std::vector<Value> evaluate_all(const std::vector<const Expr*>& exprs, std::size_t skip) {
    std::vector<Value> out;
    out.reserve(exprs.size() - skip);
    for (std::size_t i = skip; i < exprs.size(); ++i) out.push_back(evaluate(exprs[i]));
    return out;
  }

  /// Arguments of a call, filter or test: those after the subject.
  Arguments arguments(const Expr& expr) {
    Arguments out{evaluate_all(expr.args, 1), {}};
    for (const auto& [name, value] : expr.named) out.named.emplace_back(name, evaluate(value));
    return out;
  }

  Value make_dict(const Expr& expr) {
    Variables items;
    for (std::size_t i = 0; i + 1 < expr.args.size(); i += 2) {
      const Value key = evaluate(expr.args[i]);
      if (!key.is_text()) fail("a key of a dict should be a text, not {}", type_name(key));
      session_.budget.charge(items.size() / 8 + key.as_text().size());
      assign(items, key.as_text(), evaluate(expr.args[i + 1]));
    }
    return Value::dict(std::move(items));
  }

  Value make_slice(const Expr& expr) {
    const Value base = evaluate(expr.args[0]);
    std::array<std::optional<std::int64_t>, 3> bounds;
    for (std::size_t i = 0; i < 3; ++i) {
      if (expr.args[i + 1] == nullptr) continue;
      const Value bound = evaluate(expr.args[i + 1]);
      if (bound.is_none()) continue;
      if (!bound.is_int() && !bound.is_bool()) fail("a slice needs integers, not {}", type_name(bound));
      bounds[i] = bound.as_int();
    }
    if (base.is_undefined()) fail("\"{}\" is undefined, so it has no slices", *base.as_undefined().name);
    if (base.is_text()) return slice_text(base.as_text(), bounds[0], bounds[1], bounds[2]);
    if (!base.is_list()) fail("a value of type {} has no slices", type_name(base));
    const std::vector<Value>& items = base.as_list();
    session_.budget.charge(items.size());
    std::vector<Value> out;
    for (const std::size_t at : slice_positions(items.size(), bounds[0], bounds[1], bounds[2]))
      out.push_back(items[at]);
    return base.is_tuple() ? Value::tuple(std::move(out)) : Value::list(std::move(out));
  }

  Value slice_text(const std::string& text, std::optional<std::int64_t> start, std::optional<std::int64_t> stop,
                   std::optional<std::int64_t> step) {
    session_.budget.charge(text.size() * 2);
    std::vector<std::size_t> begins;
    for (std::size_t i = 0; i < text.size(); i += utf8_at(text, i).length) begins.push_back(i);
    begins.push_back(text.size());
    std::string out;
    for (const std::size_t at : slice_positions(begins.size() - 1, start, stop, step)) {
      out.append(text, begins[at], begins[at + 1] - begins[at]);
    }
    return out;
  }

  Value filter(const Expr& expr) {
    Value input = evaluate(expr.args[0]);
    return apply_filter(expr.text, input, arguments(expr), session_);
  }

  Value sign(const Expr& expr) {
    const Value value = evaluate(expr.args[0]);
    if (!value.is_number()) fail("a sign needs a number, not {}", type_name(value));
    if (value.is_float()) return expr.kind == ExprKind::negate ? -value.as_float() : value.as_float();
    return expr.kind == ExprKind::negate ? arithmetic(Op::subtract, std::int64_t{0}, value) : Value(value.as_int());
  }

  Value compare_chain(const Expr& expr) {
    Value left = evaluate(expr.args[0]);
    for (std::size_t i = 0; i < expr.ops.size(); ++i) {
      Value right = evaluate(expr.args[i + 1]);
      if (!holds(expr.ops[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  bool holds(Op op, const Value& left, const Value& right) {
    Budget& budget = session_.budget;
    switch (op) {
      case Op::eq:
        return equal(left, right, budget);
      case Op::ne:
        return !equal(left, right, budget);
      case Op::lt:
        return compare(left, right, budget) < 0;
      case Op::le:
        return compare(left, right, budget) <= 0;
      case Op::gt:
        return compare(left, right, budget) > 0;
      case Op::ge:
        return compare(left, right, budget) >= 0;
      case Op::in:
        return contains(right, left, budget);
      default:
        return !contains(right, left, budget);
    }
  }

  // --- Calls ---

  Value call(const Expr& expr) {
    const Expr& callee = *expr.args[0];
    if (callee.kind == ExprKind::attribute) {
      const Value object = evaluate(callee.args[0]);
      // An attribute that can be called (a macro kept in a namespace) comes before a method.
      if (object.as_namespace() != nullptr)
        return call_value(get_attribute(object, callee.text, session_), callee, expr);
      return call_method(object, callee.text, arguments(expr), session_);
    }
    return call_value(evaluate(&callee), callee, expr);
  }

  Value call_value(const Value& value, const Expr& callee, const Expr& expr) {
    const Arguments given = arguments(expr);
    if (const Function* function = value.as_function()) return call_function(*function, given, session_);
    if (const Macro* macro = value.as_macro()) return call_macro(*macro->stmt, given);
    if (value.is_undefined()) fail("\"{}\" is undefined, so it cannot be called", callee.text);
    fail("a value of type {} cannot be called", type_name(value));
  }

  Value call_macro(const Stmt& macro, const Arguments& given) {
    given.at_most(macro.names.size(), macro.text);
    for (const auto& [name, value] : given.named) {
      if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end()) {
        fail("the macro {} has no parameter \"{}\"", macro.text, name);
      }
    }
    // A macro sees its arguments and the outermost variables, not those where it is called.
    const std::size_t outer_base = std::exchange(base_, frames_.size());
    frames_.emplace_back();
    for (std::size_t i = 0; i < macro.names.size(); ++i) {
      const Value* value = given.find(i, macro.names[i]);
      const Expr* fallback = macro.defaults[i];
      assign(macro.names[i], value != nullptr      ? *value
                             : fallback != nullptr ? evaluate(fallback)
                                                   : Value::undefined(macro.names[i]));
    }
    std::string text = capture(macro.body, {});
    frames_.pop_back();
    base_ = outer_base;
    return text;
  }

  // --- Arithmetic, with Python's rules ---

  Value arithmetic(Op op, const Value& left, const Value& right) {
    if (op == Op::join) return to_text(left, session_.budget) + to_text(right, session_.budget);
    if (left.is_number() && right.is_number()) {
      return left.is_float() || right.is_float() || op == Op::divide
                 ? float_arithmetic(op, left.as_float(), right.as_float())
                 : int_arithmetic(op, left.as_int(), right.as_int());
    }
    if (op == Op::add && left.is_text() && right.is_text()) {
      session_.budget.charge(left.as_text().size() + right.as_text().size());
      return left.as_text() + right.as_text();
    }
    if (op == Op::add && left.is_list() && right.is_list() && left.is_tuple() == right.is_tuple()) {
      session_.budget.charge(8 * (left.as_list().size() + right.as_list().size()));
      std::vector<Value> items = left.as_list();
      items.insert(items.end(), right.as_list().begin(), right.as_list().end());
      return left.is_tuple() ? Value::tuple(std::move(items)) : Value::list(std::move(items));
    }
    if (op == Op::multiply && (right.is_int() || right.is_bool())) return repeat(left, right.as_int());
    if (op == Op::multiply && (left.is_int() || left.is_bool())) return repeat(right, left.as_int());
    for (const Value* side : {&left, &right}) {
      if (side->is_undefined()) fail("\"{}\" is undefined", *side->as_undefined().name);
    }
    fail("this operator does not take {} and {}", type_name(left), type_name(right));
  }

  Value repeat(const Value& value, std::int64_t times) {
    const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(0, times));
    const auto pay = [&](std::uint64_t size) {
      std::uint64_t cost = 0;
      if (__builtin_mul_overflow(size, count, &cost)) fail("the repeated value is too long");
      session_.budget.charge(cost);
    };
    if (value.is_text()) {
      pay(value.as_text().size());
      std::string out;
      if (!value.as_text().empty()) {
        for (std::uint64_t i = 0; i < count; ++i) out += value.as_text();
      }
      return out;
    }
    if (!value.is_list()) fail("a value of type {} cannot be repeated", type_name(value));
    pay(8 * value.as_list().size());
    std::vector<Value> out;
    if (!value.as_list().empty()) {
      for (std::uint64_t i = 0; i < count; ++i) out.insert(out.end(), value.as_list().begin(), value.as_list().end());
    }
    return value.is_tuple() ? Value::tuple(std::move(out)) : Value::list(std::move(out));
  }

  static Value float_arithmetic(Op op, double left, double right) {
    if ((op == Op::divide || op == Op::floor_divide || op == Op::modulo) && right == 0) fail("a division by zero");
    switch (op) {
      case Op::add:
        return left + right;
      case Op::subtract:
        return left - right;
      case Op::multiply:
        return left * right;
      case Op::divide:
        return left / right;
      case Op::floor_divide:
        return std::floor(left / right);
      case Op::modulo:
        return left - right * std::floor(left / right);
      default:
        return std::pow(left, right);
    }
  }

  static Value int_arithmetic(Op op, std::int64_t left, std::int64_t right) {
    std::int64_t out = 0;
    bool overflows = false;
    switch (op) {
      case Op::add:
        overflows = __builtin_add_overflow(left, right, &out);
        break;
      case Op::subtract:
        overflows = __builtin_sub_overflow(left, right, &out);
        break;
      case Op::multiply:
        overflows = __builtin_mul_overflow(left, right, &out);
        break;
      case Op::floor_divide:
      case Op::modulo: {
        if (right == 0) fail("a division by zero");
        // The one quotient that does not fit; its remainder is 0.
        if (right == -1) {
          overflows = op == Op::floor_divide && __builtin_sub_overflow(std::int64_t{0}, left, &out);
          break;
        }
        // C++ rounds towards zero, Python down: they differ where the signs do and something remains.
        const bool adjust = left % right != 0 && (left % right < 0) != (right < 0);
        out = op == Op::modulo ? left % right + (adjust ? right : 0) : left / right - (adjust ? 1 : 0);
        break;
      }
      default: {
        if (right < 0) return std::pow(static_cast<double>(left), static_cast<double>(right));
        out = 1;
        // By squaring: at most 63 rounds, fewer where it overflows.
        for (std::int64_t base = left; right > 0 && !overflows; right >>= 1) {
          if ((right & 1) != 0) overflows = __builtin_mul_overflow(out, base, &out);
          if (right > 1) overflows = __builtin_mul_overflow(base, base, &base) || overflows;
        }
      }
    }
    if (overflows) fail("a result does not fit in 64 bits");
    return out;
  }

  Session session_{Budget(0), 0, {}};
  std::vector<Frame> frames_;
  std::size_t base_ = 0;  // the first frame of the macro that runs
  std::deque<Loop> loops_;
  std::deque<Macro> macros_;
  int depth_ = 0;
  std::string out_;
};

}  // namespace

std::string render(const Template& parsed, std::vector<std::pair<std::string, Value>> variables, Budget budget,
                   std::time_t now) {
  return Renderer(std::move(variables), budget, now).run(parsed.body);
}

}  // namespace nibble::chat
