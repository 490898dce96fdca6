#include "bench/sweep.h"

#include "bench/child.h"
#include "bench/run_case.h"
#include "core/error.h"
#include "formats/json.h"

#include <nlohmann/json.hpp>

#include <new>
#include <optional>

namespace nibble {
namespace {

BenchCase case_of(const BenchSweep& sweep, const BenchSystem& system) {
  BenchCase out = sweep.base;
  out.folder = system.folder;
  out.kernel = system.kernel;
  out.dtype = system.dtype;
  return out;
}

}  // namespace

std::vector<SweepCase> cases_of(const BenchSweep& sweep) {
  std::vector<SweepCase> out;
  for (const std::int64_t batch : sweep.batch_sizes) {
    for (const std::int64_t prompt : sweep.prompt_lengths) {
      for (const std::int64_t tokens : sweep.new_tokens) {
        for (const BenchSystem& system : sweep.systems) {
          BenchCase one = case_of(sweep, system);
          one.batch_size = batch;
          one.prompt_length = prompt;
          one.new_tokens = tokens;
          one.perplexity_file.clear();
          out.push_back({system, one});
        }
      }
    }
  }
  return out;
}

std::vector<SweepCase> perplexity_cases_of(const BenchSweep& sweep) {
  std::vector<SweepCase> out;
  if (sweep.base.perplexity_file.empty()) return out;
  for (const BenchSystem& system : sweep.systems) {
    BenchCase one = case_of(sweep, system);
    one.speed = false;
    out.push_back({system, one});
  }
  return out;
}

BenchResult run_in_child(const std::string& program, std::vector<std::string> arguments, const BenchCase& bench_case,
                         const std::function<void(std::string_view, double)>& progress, bool& interrupted) {
  arguments.push_back(to_json(bench_case));
  std::optional<BenchResult> result;
  std::string last = "starting";
  const ChildEnd end = run_child(program, arguments, [&](std::string_view line) {
    const nlohmann::json answer = parse_json(line, "the answer of a case");
    if (!answer.is_object()) fail("the answer of a case should be a JSON object, found {}", json_excerpt(answer));
    if (const auto done = answer.find("result"); done != answer.end()) {
      result = bench_result_from_json(done->dump());
    } else {
      last = answer.value("progress", last);
      progress(last, answer.value("share", 0.0));
    }
  });
  interrupted = end.interrupted;
  // A result that came before the process died on its way out is a result.
  if (result) return *result;
  BenchResult out;
  out.error =
      end.interrupted ? "was interrupted" : fmt::format("the case's process {} (while {})", describe(end), last);
  return out;
}

int answer_case(std::string_view json) {
  end_with_parent();
  BenchResult result;
  const auto failed = [&result](std::string_view why) {
    result = BenchResult{};
    result.error = why;
  };
  try {
    const BenchCase bench_case = bench_case_from_json(json);
    result = run_case(bench_case, [](std::string_view what, double share) {
      report_line(nlohmann::json{{"progress", what}, {"share", share}}.dump());
    });
  } catch (const std::bad_alloc&) {
    failed("the system gave no more memory; `nibble plan` shows what a run needs");
  } catch (const std::exception& e) {
    failed(e.what());
  }
  report_line("{\"result\":" + to_json(result) + "}");
  return result.error.empty() ? 0 : 1;
}

}  // namespace nibble
