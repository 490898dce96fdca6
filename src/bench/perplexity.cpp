#include "bench/perplexity.h"

#include "core/error.h"
#include "core/file.h"
#include "core/thread_pool.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

// The limit of the tokenizer: more text takes days to score.
constexpr std::size_t kLargestText = std::size_t{1} << 30;

struct Named {
  std::string_view name;
  PerplexityOptions options;
};
constexpr std::array kProcedures = {
    Named{"gptq2048", {PerplexityProcedure::gptq2048, 2048, 0, 0}},
    Named{"autogptq", {PerplexityProcedure::autogptq, 512, 0, 0}},
    Named{"llama.cpp", {PerplexityProcedure::llama_cpp, 512, 0, 0}},
    Named{"strided", {PerplexityProcedure::strided, 1024, 512, 0}},
};

/// One piece of text that is taken through the model by itself.
struct Window {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t first_scored = 0;  // the first position, in the window, whose prediction of the next token counts
};

std::vector<Window> windows_of(std::int64_t tokens, const PerplexityOptions& o) {
  std::vector<Window> out;
  if (o.procedure == PerplexityProcedure::strided) {
    std::int64_t scored_until = 0;
    for (std::int64_t begin = 0; scored_until < tokens; begin += o.stride) {
      const std::int64_t end = std::min(begin + o.context, tokens);
      // Targets from scored_until on count; the target at t is predicted at t - 1, and the first of a window by
      // nothing.
      const std::int64_t first_target = std::max(scored_until, begin + 1);
      if (first_target < end) out.push_back({begin, end, first_target - 1 - begin});
      scored_until = end;
    }
    return out;
  }
  const bool second_half = o.procedure != PerplexityProcedure::gptq2048;
  // AutoGPTQ skips at most 512 positions, whatever the context.
  const std::int64_t half =
      o.procedure == PerplexityProcedure::autogptq ? std::min<std::int64_t>(512, o.context / 2) : o.context / 2;
  for (std::int64_t begin = 0; begin + o.context <= tokens; begin += o.context) {
    out.push_back({begin, begin + o.context, second_half ? half : 0});
  }
  return out;
}

/// -log softmax(logits)[target]
double loss_of(const float* logits, std::int64_t vocab, std::int32_t target) {
  const float largest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (std::int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - largest);
  return std::log(sum) - (static_cast<double>(logits[target]) - static_cast<double>(largest));
}

void check_options(const PerplexityOptions& o) {
  if (o.context < 4) fail_usage("--context {}: a window should have at least 4 tokens", o.context);
  if (o.procedure == PerplexityProcedure::strided && (o.stride < 1 || o.stride > o.context)) {
    fail_usage("--stride {}: expected 1 to the context ({})", o.stride, o.context);
  }
}

}  // namespace

PerplexityOptions perplexity_options(std::string_view name, const PerplexityChoices& choices) {
  const auto* const found =
      std::find_if(kProcedures.begin(), kProcedures.end(), [name](const Named& one) { return one.name == name; });
  if (found == kProcedures.end()) {
    fail_usage("--procedure {}: expected gptq2048, autogptq, llama.cpp or strided", name);
  }
  PerplexityOptions out = found->options;
  if (choices.context > 0) out.context = choices.context;
  if (choices.stride > 0 && out.procedure != PerplexityProcedure::strided) {
    fail_usage("--stride {}: windows of the procedure {} do not overlap; add --procedure strided, or leave it out",
               choices.stride, name);
  }
  out.stride = choices.stride > 0 ? choices.stride : std::min(out.stride, out.context);
  out.max_windows = choices.max_windows;
  check_options(out);
  return out;
}

std::string_view name_of(PerplexityProcedure procedure) {
  for (const Named& one : kProcedures) {
    if (one.options.procedure == procedure) return one.name;
  }
  return {};
}

PerplexityResult measure_perplexity(const ScoreFunction& score, std::int64_t vocab,
                                    std::span<const std::int32_t> tokens, const BosRule& bos,
                                    const PerplexityOptions& options,
                                    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  check_options(options);
  const bool bos_each = options.procedure == PerplexityProcedure::autogptq ||
                        (options.procedure == PerplexityProcedure::llama_cpp && bos.added);
  if (bos_each && !bos.token) {
    fail("the procedure {} starts every window with a BOS token, and this tokenizer has none: take another procedure",
         name_of(options.procedure));
  }
  std::vector<Window> windows = windows_of(static_cast<std::int64_t>(tokens.size()), options);
  const std::size_t least = options.procedure == PerplexityProcedure::llama_cpp ? 2 : 1;
  if (windows.size() < least) {
    fail("the text has {} tokens, and the procedure {} with a context of {} needs at least {}", tokens.size(),
         name_of(options.procedure), options.context,
         options.procedure == PerplexityProcedure::strided ? 2 : static_cast<std::int64_t>(least) * options.context);
  }
  if (options.max_windows > 0) windows.resize(std::min(windows.size(), static_cast<std::size_t>(options.max_windows)));

  PerplexityResult out;
  out.tokens = static_cast<std::int64_t>(tokens.size());
  out.context = options.context;
  out.windows = static_cast<std::int64_t>(windows.size());
  double sum = 0;
  double squares = 0;
  std::vector<std::int32_t> input;
  std::vector<double> losses;
  for (const Window& window : windows) {
    progress(static_cast<std::int64_t>(out.running.size()), out.windows);
    input.assign(tokens.begin() + window.begin, tokens.begin() + window.end);
    if (bos_each) input[0] = *bos.token;
    const std::int64_t last = window.end - window.begin - 1;  // it has no next token to predict
    score(input, window.first_scored, [&](std::int64_t first_row, std::int64_t rows, const float* logits) {
      const std::int64_t count = std::min(first_row + rows, last) - first_row;
      losses.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, count)), 0);
      ThreadPool::instance().run([&](int thread, int threads) {
        const auto [begin, end] = split_range(count, 1, thread, threads);
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int32_t target = tokens[static_cast<std::size_t>(window.begin + first_row + i + 1)];
          losses[static_cast<std::size_t>(i)] = loss_of(logits + i * vocab, vocab, target);
        }
      });
      for (const double loss : losses) {
        if (!std::isfinite(loss))
          fail("the model's logits for the text from token {} on are not finite", window.begin + first_row);
        sum += loss;
        squares += loss * loss;
        ++out.scored_tokens;
      }
    });
    out.running.push_back(std::exp(sum / static_cast<double>(out.scored_tokens)));
  }
  progress(out.windows, out.windows);
  const double count = static_cast<double>(out.scored_tokens);
  out.perplexity = out.running.back();
  out.mean_of_running =
      std::accumulate(out.running.begin(), out.running.end(), 0.0) / static_cast<double>(out.running.size());
  const double mean = sum / count;
  const double variance = std::max(0.0, squares / count - mean * mean);
  out.error = count > 1 ? out.perplexity * std::sqrt(variance / (count - 1)) : 0;
  return out;
}

PerplexityResult measure_perplexity_of_file(Engine& engine, const Tokenizer& tokenizer,
                                            const std::filesystem::path& file, const PerplexityOptions& options,
                                            const std::function<void(std::int64_t, std::int64_t)>& progress) {
  check_options(options);
  const std::string text = read_text_file(file, kLargestText);
  const std::vector<std::int32_t> tokens = tokenizer.encode(text, true);
  BosRule bos;
  bos.token = tokenizer.special().bos;
  bos.added = bos.token && !tokens.empty() && tokens[0] == *bos.token;
  return measure_perplexity(
      [&engine](auto ids, std::int64_t first, const auto& consume) { engine.score(ids, first, consume); },
      engine.program().vocab, tokens, bos, options, progress);
}

}  // namespace nibble
