// Many cases, each in a process of its own.
#pragma once

#include "bench/bench_case.h"

#include <functional>
#include <string>
#include <vector>

namespace nibble {

/// A model with a way of running it: what a row of the table is about.
struct BenchSystem {
  std::string model;  // as the user named it
  std::string folder;
  bool gptq = false;
  std::string kernel;
  std::string dtype;  // empty: the engine's choice

  friend bool operator==(const BenchSystem&, const BenchSystem&) = default;
};

struct BenchSweep {
  std::vector<BenchSystem> systems;
  std::vector<std::int64_t> batch_sizes = {1};
  std::vector<std::int64_t> prompt_lengths = {256};
  std::vector<std::int64_t> new_tokens = {256};
  BenchCase base;  // everything else
};

struct SweepCase {
  BenchSystem system;
  BenchCase bench_case;
};

/// All combinations: batch sizes outermost, then prompt lengths, then new tokens, as optimum's benchmark has them; the
/// systems innermost, so that rows that will be compared are measured close to each other in time.
std::vector<SweepCase> cases_of(const BenchSweep& sweep);

/// One for each system: its perplexity, without speed. Empty where the sweep's base names no text.
std::vector<SweepCase> perplexity_cases_of(const BenchSweep& sweep);

/// Runs one case in a child: `program` with `arguments`, then the case as JSON. The child answers with lines of JSON:
/// {"progress": "warm-up", "share": 0.1}, and at the end {"result": {...}}. A child that ends without a result, or
/// whose result is an error, gives a result whose `error` says so. `interrupted` is set when this process was
/// interrupted.
BenchResult run_in_child(const std::string& program, std::vector<std::string> arguments, const BenchCase& bench_case,
                         const std::function<void(std::string_view what, double share)>& progress, bool& interrupted);

/// The child's side: runs the case and answers on the descriptor that run_child() gives. Returns the exit code.
int answer_case(std::string_view json);

}  // namespace nibble
