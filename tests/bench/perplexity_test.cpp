#include "bench/perplexity.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace nibble {
namespace {

constexpr std::int64_t kVocab = 7;
constexpr std::int32_t kBos = 0;

/// Logits of a toy model: they depend on the token, on its position in the window, and on the window's first token.
float toy_logit(std::int32_t token, std::int64_t position, std::int32_t first, std::int64_t column) {
  return static_cast<float>(
      std::sin(1.7 * token + 0.3 * static_cast<double>(position) + 2.1 * first + 0.9 * static_cast<double>(column)) *
      2);
}

/// The same model behind the interface of an engine, in pieces of three rows.
void toy_score(std::span<const std::int32_t> tokens, std::int64_t first,
               const std::function<void(std::int64_t, std::int64_t, const float*)>& consume) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t row = first; row < n; row += 3) {
    std::vector<float> logits;
    const std::int64_t rows = std::min<std::int64_t>(3, n - row);
    for (std::int64_t i = row; i < row + rows; ++i) {
      for (std::int64_t c = 0; c < kVocab; ++c)
        logits.push_back(toy_logit(tokens[static_cast<std::size_t>(i)], i, tokens[0], c));
    }
    consume(row, rows, logits.data());
  }
}

double toy_loss(std::int32_t token, std::int64_t position, std::int32_t first, std::int32_t target) {
  double sum = 0;
  for (std::int64_t c = 0; c < kVocab; ++c) sum += std::exp(static_cast<double>(toy_logit(token, position, first, c)));
  return std::log(sum) - toy_logit(token, position, first, target);
}

std::vector<std::int32_t> toy_text(std::size_t tokens) {
  std::vector<std::int32_t> out(tokens);
  for (std::size_t i = 0; i < tokens; ++i) out[i] = static_cast<std::int32_t>((i * i * 3 + i * 5 + 1) % kVocab);
  return out;
}

PerplexityResult run(const std::vector<std::int32_t>& text, const PerplexityOptions& options, const BosRule& bos = {}) {
  return measure_perplexity(toy_score, kVocab, text, bos, options, [](std::int64_t, std::int64_t) {});
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

TEST(Perplexity, Gptq2048IsTheExpOfTheMeanOfWindowMeans) {
  PerplexityOptions options = perplexity_options("gptq2048");
  EXPECT_EQ(options.context, 2048);
  options.context = 8;
  const auto text = toy_text(30);  // three windows, six tokens dropped
  std::vector<double> window_means;
  for (std::size_t w = 0; w < 3; ++w) {
    std::vector<double> losses;
    for (std::size_t i = 0; i + 1 < 8; ++i) {
      losses.push_back(toy_loss(text[8 * w + i], static_cast<std::int64_t>(i), text[8 * w], text[8 * w + i + 1]));
    }
    window_means.push_back(mean(losses));
  }
  const PerplexityResult result = run(text, options);
  EXPECT_NEAR(result.perplexity, std::exp(mean(window_means)), 1e-5);
  EXPECT_EQ(result.windows, 3);
  EXPECT_EQ(result.scored_tokens, 21);
  EXPECT_EQ(result.tokens, 30);
}

TEST(Perplexity, AutogptqScoresTheSecondHalfAfterABos) {
  PerplexityOptions options = perplexity_options("autogptq");
  EXPECT_EQ(options.context, 512);
  options.context = 8;
  const auto text = toy_text(20);  // two windows
  std::vector<double> losses;
  std::vector<double> running;
  for (std::size_t w = 0; w < 2; ++w) {
    for (std::size_t i = 4; i <= 6; ++i) {  // positions n_ctx/2 to n_ctx-2
      losses.push_back(toy_loss(text[8 * w + i], static_cast<std::int64_t>(i), kBos, text[8 * w + i + 1]));
    }
    running.push_back(std::exp(mean(losses)));
  }
  const PerplexityResult result = run(text, options, {kBos, false});
  EXPECT_NEAR(result.perplexity, running.back(), 1e-5);
  EXPECT_NEAR(result.mean_of_running, mean(running), 1e-5);
  EXPECT_EQ(result.scored_tokens, 6);
  ASSERT_EQ(result.running.size(), 2u);
  EXPECT_NEAR(result.running[0], running[0], 1e-5);
  test::expect_error("has none", [&] { run(text, options); });
}

TEST(Perplexity, LlamaCppPutsABosOnlyWhereTheTokenizerDoesAndEstimatesItsError) {
  PerplexityOptions options = perplexity_options("llama.cpp");
  options.context = 8;
  const auto text = toy_text(24);
  for (const bool added : {false, true}) {
    std::vector<double> losses;
    for (std::size_t w = 0; w < 3; ++w) {
      for (std::size_t i = 4; i <= 6; ++i) {
        losses.push_back(
            toy_loss(text[8 * w + i], static_cast<std::int64_t>(i), added ? kBos : text[8 * w], text[8 * w + i + 1]));
      }
    }
    double squares = 0;
    for (const double loss : losses) squares += loss * loss / 9;
    const double m = mean(losses);
    const PerplexityResult result = run(text, options, {kBos, added});
    EXPECT_NEAR(result.perplexity, std::exp(m), 1e-5);
    EXPECT_NEAR(result.error, std::exp(m) * std::sqrt((squares - m * m) / 8), 1e-5);
  }
  test::expect_error("needs at least 16", [&] { run(toy_text(15), options); });
}

TEST(Perplexity, StridedScoresEveryTokenOnce) {
  PerplexityOptions options = perplexity_options("strided");
  EXPECT_EQ(options.stride, 512);
  options.context = 8;
  options.stride = 3;
  const auto text = toy_text(19);
  std::vector<double> losses;
  std::size_t scored = 1;  // the first token of the text is predicted by nothing
  for (std::size_t begin = 0; scored < text.size(); begin += 3) {
    const std::size_t end = std::min<std::size_t>(begin + 8, text.size());
    for (; scored < end; ++scored) {
      const std::size_t i = scored - 1 - begin;
      losses.push_back(toy_loss(text[scored - 1], static_cast<std::int64_t>(i), text[begin], text[scored]));
    }
  }
  ASSERT_EQ(losses.size(), 18u);
  const PerplexityResult result = run(text, options);
  EXPECT_EQ(result.scored_tokens, 18);
  EXPECT_NEAR(result.perplexity, std::exp(mean(losses)), 1e-5);
  // Strides of a whole window are windows that do not overlap.
  options.stride = 8;
  EXPECT_EQ(run(toy_text(16), options).scored_tokens, 14);
  options.stride = 9;
  test::expect_error("--stride 9", [&] { run(text, options); });
}

TEST(Perplexity, OfAUniformModelIsTheVocabulary) {
  const auto uniform = [](std::span<const std::int32_t> tokens, std::int64_t first, const auto& consume) {
    const std::vector<float> zeros(tokens.size() * kVocab, 0.25f);
    consume(first, static_cast<std::int64_t>(tokens.size()) - first, zeros.data());
  };
  PerplexityOptions options = perplexity_options("gptq2048");
  options.context = 8;
  options.max_windows = 2;
  const PerplexityResult result =
      measure_perplexity(uniform, kVocab, toy_text(80), {}, options, [](std::int64_t, std::int64_t) {});
  EXPECT_NEAR(result.perplexity, 7.0, 1e-6);
  EXPECT_NEAR(result.error, 0, 1e-6);
  EXPECT_EQ(result.windows, 2);
}

TEST(Perplexity, LogitsThatAreNotFiniteAreAnError) {
  const auto broken = [](std::span<const std::int32_t> tokens, std::int64_t first, const auto& consume) {
    const std::vector<float> bad(tokens.size() * kVocab, std::nanf(""));
    consume(first, static_cast<std::int64_t>(tokens.size()) - first, bad.data());
  };
  PerplexityOptions options = perplexity_options("gptq2048");
  options.context = 8;
  test::expect_error("not finite", [&] {
    measure_perplexity(broken, kVocab, toy_text(16), {}, options, [](std::int64_t, std::int64_t) {});
  });
}

TEST(Perplexity, ProceduresAreNamed) {
  EXPECT_EQ(name_of(perplexity_options("llama.cpp").procedure), "llama.cpp");
  test::expect_error("expected gptq2048, autogptq, llama.cpp or strided", [] { perplexity_options("wikitext"); });
}

TEST(Perplexity, AProcedureKeepsItsOwnWhereNothingIsChosen) {
  const PerplexityOptions own = perplexity_options("strided");
  EXPECT_EQ(own.context, 1024);
  EXPECT_EQ(own.stride, 512);
  EXPECT_EQ(own.max_windows, 0);
  const PerplexityOptions chosen = perplexity_options("strided", {.context = 64, .stride = 16, .max_windows = 3});
  EXPECT_EQ(chosen.context, 64);
  EXPECT_EQ(chosen.stride, 16);
  EXPECT_EQ(chosen.max_windows, 3);
  // A context below the procedure's own stride is no contradiction that the user made.
  EXPECT_EQ(perplexity_options("strided", {.context = 64}).stride, 64);
  EXPECT_EQ(perplexity_options("gptq2048", {.context = 64}).stride, 0);
}

TEST(Perplexity, ChoicesThatContradictAreSentences) {
  test::expect_error("--stride 65: expected 1 to the context (64)",
                     [] { perplexity_options("strided", {.context = 64, .stride = 65}); });
  test::expect_error("--stride 8: windows of the procedure gptq2048 do not overlap",
                     [] { perplexity_options("gptq2048", {.stride = 8}); });
  test::expect_error("--context 3", [] { perplexity_options("autogptq", {.context = 3}); });
}

}  // namespace
}  // namespace nibble
