// Perplexity, by the procedures in use; they give different numbers for the same model and text, so each has a name.
#pragma once

#include "engine/engine.h"
#include "formats/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// EngineOptions::max_logit_rows that suits: so many rows of logits at a time are 33 MB for a vocabulary of 128k.
inline constexpr std::int64_t kPerplexityRows = 64;

enum class PerplexityProcedure {
  /// The GPTQ paper's: windows of 2048 tokens that do not overlap, the last incomplete one dropped; each scored but for
  /// its
  /// first token; exp of the mean of the windows' means. A BOS token only at the very front of the text, if at all.
  gptq2048,
  /// AutoGPTQ's class Perplexity: windows of 512; in each the first token becomes BOS; only the second half is scored
  /// (positions 256 to 510 predict the next). optimum's benchmark prints the mean of the running values after each
  /// window.
  autogptq,
  /// llama-perplexity's: as autogptq, but BOS only where the tokenizer adds one, and at least two windows.
  llama_cpp,
  /// transformers' documentation: windows of 1024 that end every 512 tokens; what the window before has scored serves
  /// as
  /// context only; the remainder counts too; mean over all scored tokens.
  strided,
};

struct PerplexityOptions {
  PerplexityProcedure procedure = PerplexityProcedure::gptq2048;
  std::int64_t context = 2048;   // tokens a window
  std::int64_t stride = 0;       // strided only
  std::int64_t max_windows = 0;  // > 0: only the first so many, for a quick look
};

/// What a user may set of a procedure; 0: its own.
struct PerplexityChoices {
  std::int64_t context = 0;
  std::int64_t stride = 0;
  std::int64_t max_windows = 0;
};

/// A procedure by its name (gptq2048, autogptq, llama.cpp, strided) with what the user set. Where only the context is
/// set and the procedure's own stride is longer, strides are a whole context. UsageError that lists the names for
/// another name, for a stride beyond the context, and for one where the procedure has none.
PerplexityOptions perplexity_options(std::string_view name, const PerplexityChoices& choices = {});
std::string_view name_of(PerplexityProcedure procedure);

struct PerplexityResult {
  double perplexity = 0;       // the procedure's final value
  double mean_of_running = 0;  // mean of the values after each window
  double error = 0;            // perplexity * sqrt(variance of the tokens' losses / (scored tokens - 1))
  std::int64_t tokens = 0;     // of the text
  std::int64_t scored_tokens = 0;
  std::int64_t windows = 0;
  std::int64_t context = 0;
  std::vector<double> running;  // after each window
};

/// Takes one sequence through a model from nothing: Engine::score.
using ScoreFunction = std::function<void(
    std::span<const std::int32_t> tokens, std::int64_t first,
    const std::function<void(std::int64_t first_row, std::int64_t rows, const float* logits)>& consume)>;

/// What the tokenizer has to do with it: its BOS token, and whether it puts one before a text.
struct BosRule {
  std::optional<std::int32_t> token;
  bool added = false;
};

/// `tokens` is the whole text, BOS included where the tokenizer adds one; logits have `vocab` columns. Log-softmax is
/// taken of the f32 logits and summed in double. Throws Error where the text is too short for the procedure, where it
/// needs a BOS token and there is none, and where a loss is not finite.
PerplexityResult measure_perplexity(const ScoreFunction& score, std::int64_t vocab,
                                    std::span<const std::int32_t> tokens, const BosRule& bos,
                                    const PerplexityOptions& options,
                                    const std::function<void(std::int64_t done, std::int64_t windows)>& progress);

/// The same for a UTF-8 text file, as it is, on an engine whose max_tokens is at least the context.
PerplexityResult measure_perplexity_of_file(
    Engine& engine, const Tokenizer& tokenizer, const std::filesystem::path& file, const PerplexityOptions& options,
    const std::function<void(std::int64_t done, std::int64_t windows)>& progress);

}  // namespace nibble
