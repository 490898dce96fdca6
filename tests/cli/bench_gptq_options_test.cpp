#include "cli/bench_gptq_options.h"

#include "ops/cuda_loader.h"
#include "support/expect_error.h"

#include <gtest/gtest.h>
#include <CLI/CLI.hpp>

#include <algorithm>

namespace nibble {
namespace {

const std::string kDense = std::string(NIBBLE_TEST_DATA) + "/golden/qwen2";
const std::string kQuantised = std::string(NIBBLE_TEST_DATA) + "/golden/gptq_b4_g32";

/// On the CPU, unless words say otherwise: the kernels that these tests name are the CPU's.
BenchGptqOptions parse(std::vector<std::string> words) {
  BenchGptqOptions options;
  if (std::find(words.begin(), words.end(), "--device") == words.end()) words.insert(words.end(), {"--device", "cpu"});
  CLI::App app;
  options.add_to(app);
  std::reverse(words.begin(), words.end());
  app.parse(words);
  return options;
}

BenchSweep sweep_of(std::vector<std::string> words) { return parse(std::move(words)).to_sweep(); }

using Ints = std::vector<std::int64_t>;

TEST(BenchGptqOptions, DefaultsAreOptimums) {
  const BenchSweep sweep = sweep_of({"--classic", "--model", kDense});
  EXPECT_EQ(sweep.batch_sizes, Ints{1});
  EXPECT_EQ(sweep.prompt_lengths, Ints{256});
  EXPECT_EQ(sweep.new_tokens, Ints{256});
  EXPECT_EQ(sweep.base.num_batches, 10);
  ASSERT_EQ(sweep.systems.size(), 1u);
  EXPECT_FALSE(sweep.systems[0].gptq);
  EXPECT_EQ(sweep.systems[0].kernel, "dense");
}

TEST(BenchGptqOptions, TheCommandsOfOptimumsPageRun) {
  const BenchSweep full =
      sweep_of({"--classic", "--model", kDense, "--sweep", "--num-batches", "4", "--task", "text-generation"});
  EXPECT_EQ(full.batch_sizes, (Ints{1, 2, 4, 8, 16}));
  EXPECT_EQ(full.prompt_lengths, Ints{512});
  EXPECT_EQ(full.new_tokens, Ints{512});
  EXPECT_EQ(full.base.num_batches, 4);
  const std::vector<std::string> gptq = {"--classic", "--model", kDense,           "--gptq-model",
                                         kQuantised,  "--sweep", "--num-batches",  "4",
                                         "--gptq",    "--task",  "text-generation"};
  const BenchSweep quantised = sweep_of(gptq);
  ASSERT_EQ(quantised.systems.size(), 1u);
  EXPECT_TRUE(quantised.systems[0].gptq);
  EXPECT_EQ(quantised.systems[0].folder, kQuantised);
  EXPECT_EQ(quantised.systems[0].kernel, "auto");
  std::vector<std::string> plain = gptq;
  plain.emplace_back("--disable-exllama");
  plain.insert(plain.end(), {"--kernel", "reference"});
  EXPECT_EQ(sweep_of(plain).systems[0].kernel, "reference");
}

TEST(BenchGptqOptions, PrefillAndDecodeShortenOneSide) {
  const BenchSweep prefill = sweep_of({"--model", kDense, "--sweep", "--generate", "--prefill"});
  EXPECT_EQ(prefill.new_tokens, Ints{1});
  EXPECT_EQ(prefill.prompt_lengths, Ints{512});
  const BenchSweep decode = sweep_of({"--model", kDense, "--sweep", "--num-batches", "5", "--generate", "--decode"});
  EXPECT_EQ(decode.new_tokens, Ints{512});
  EXPECT_EQ(decode.prompt_lengths, Ints{1});
  EXPECT_EQ(decode.base.num_batches, 5);
  test::expect_error("contradict", [] { sweep_of({"--model", kDense, "--prefill", "--decode"}); });
}

TEST(BenchGptqOptions, ListsAreTakenEverywhere) {
  const BenchSweep sweep =
      sweep_of({"--model", kDense, "--gptq-model", kQuantised, "--batch-size", "1,2", "--batch-size", "4",
                "--prompt-length", "8,16", "--new-tokens", "3,5", "--dtype", "f32,bf16", "--kernel", "reference,auto"});
  EXPECT_EQ(sweep.batch_sizes, (Ints{1, 2, 4}));
  EXPECT_EQ(sweep.prompt_lengths, (Ints{8, 16}));
  EXPECT_EQ(sweep.new_tokens, (Ints{3, 5}));
  // Full precision and two kernels, each in two types.
  ASSERT_EQ(sweep.systems.size(), 6u);
  EXPECT_EQ(sweep.systems[0], (BenchSystem{kDense, kDense, false, "dense", "f32"}));
  EXPECT_EQ(sweep.systems[1].dtype, "bf16");
  EXPECT_EQ(sweep.systems[2], (BenchSystem{kQuantised, kQuantised, true, "reference", "f32"}));
  EXPECT_EQ(sweep.systems[5], (BenchSystem{kQuantised, kQuantised, true, "auto", "bf16"}));
  EXPECT_EQ(cases_of(sweep).size(), 3u * 2 * 2 * 6);
}

TEST(BenchGptqOptions, OneModelCanBeNamedByEitherFlag) {
  EXPECT_TRUE(sweep_of({"--model", kQuantised}).systems[0].gptq);
  EXPECT_TRUE(sweep_of({"--gptq-model", kQuantised}).systems[0].gptq);
  EXPECT_TRUE(sweep_of({"--classic", "--gptq", "--model", kQuantised}).systems[0].gptq);
  EXPECT_EQ(sweep_of({"--gptq", "--model", kDense, "--gptq-model", kQuantised}).systems.size(), 1u);
  EXPECT_EQ(sweep_of({"--model", kDense, "--gptq-model", kQuantised}).systems.size(), 2u);
  // As optimum's script does without --gptq.
  EXPECT_FALSE(sweep_of({"--classic", "--model", kDense, "--gptq-model", kQuantised}).systems[0].gptq);
}

TEST(BenchGptqOptions, ShortKeepsWhatIsGivenAndSaysSo) {
  const BenchGptqOptions options = parse({"--model", kDense, "--short", "--sweep", "--new-tokens", "32"});
  const BenchSweep sweep = options.to_sweep();
  EXPECT_EQ(sweep.batch_sizes, (Ints{1, 2, 4, 8, 16}));
  EXPECT_EQ(sweep.new_tokens, Ints{32});
  EXPECT_LT(sweep.prompt_lengths[0], 512);
  EXPECT_LT(sweep.base.num_batches, 10);
  EXPECT_NE(options.caption().find("shortened protocol"), std::string::npos);
  EXPECT_EQ(parse({"--model", kDense}).caption().find("shortened"), std::string::npos);
}

TEST(BenchGptqOptions, PerplexityHasOptimumsMeaning) {
  const BenchGptqOptions classic = parse({"--classic", "--model", kDense, "--ppl", "text.txt"});
  EXPECT_FALSE(classic.measures_speed());
  EXPECT_EQ(classic.to_sweep().base.perplexity_procedure, "autogptq");
  EXPECT_TRUE(parse({"--classic", "--model", kDense, "--ppl", "text.txt", "--generate"}).measures_speed());
  const BenchGptqOptions rich = parse({"--model", kDense, "--ppl", "text.txt", "--windows", "3"});
  EXPECT_TRUE(rich.measures_speed());
  EXPECT_EQ(rich.to_sweep().base.perplexity_procedure, "gptq2048");
  EXPECT_EQ(perplexity_cases_of(rich.to_sweep()).size(), 1u);
  test::expect_error("--ppl needs a text file", [] { sweep_of({"--model", kDense, "--ppl"}); });
}

TEST(BenchGptqOptions, WindowsOfThePerplexityReachItsCases) {
  const std::vector<std::string> words = {"--model", kDense, "--ppl", "text.txt", "--procedure", "strided"};
  std::vector<std::string> chosen = words;
  chosen.insert(chosen.end(), {"--context", "64", "--stride", "16", "--windows", "3"});
  const std::vector<SweepCase> cases = perplexity_cases_of(sweep_of(chosen));
  ASSERT_EQ(cases.size(), 1u);
  const BenchCase& one = cases[0].bench_case;
  EXPECT_EQ(one.perplexity_procedure, "strided");
  EXPECT_EQ(one.perplexity_context, 64);
  EXPECT_EQ(one.perplexity_stride, 16);
  EXPECT_EQ(one.perplexity_windows, 3);
  EXPECT_EQ(sweep_of(words).base.perplexity_stride, 0);
  // What is wrong is said before any row is measured.
  test::expect_error("--stride 16: windows of the procedure gptq2048",
                     [] { sweep_of({"--model", kDense, "--ppl", "text.txt", "--stride", "16"}); });
  test::expect_error("--procedure wikitext",
                     [] { sweep_of({"--model", kDense, "--ppl", "text.txt", "--procedure", "wikitext"}); });
}

TEST(BenchGptqOptions, WhatThisDeviceLacksIsASentence) {
  test::expect_error("there is no bitsandbytes row", [] { sweep_of({"--model", kDense, "--bitsandbytes"}); });
  test::expect_error("--use-marlin", [] { sweep_of({"--model", kDense, "--use-marlin"}); });
  test::expect_error("--use-exllama", [] { sweep_of({"--model", kDense, "--use-exllama"}); });
  test::expect_error("--exllama-version", [] { sweep_of({"--model", kDense, "--exllama-version", "2"}); });
  test::expect_error("--task text2text-generation",
                     [] { sweep_of({"--model", kDense, "--task", "text2text-generation"}); });
  EXPECT_THROW(sweep_of({"--model", kDense, "--use-marlin"}), UsageError);
}

TEST(BenchGptqOptions, TheDeviceIsChosenOnce) {
  EXPECT_EQ(sweep_of({"--model", kDense}).base.device, "cpu");
  test::expect_error("there is no device \"tpu\"", [] { sweep_of({"--model", kDense, "--device", "tpu"}); });
  std::string why;
  if (cuda_device_count(&why) > 0) {
    EXPECT_EQ(sweep_of({"--model", kDense, "--device", "auto"}).base.device, "cuda:0");
    EXPECT_EQ(sweep_of({"--model", kDense, "--device", "cuda"}).base.device, "cuda:0");
  } else {
    EXPECT_EQ(sweep_of({"--model", kDense, "--device", "auto"}).base.device, "cpu");
    test::expect_error("--device cuda: " + why, [] { sweep_of({"--model", kDense, "--device", "cuda"}); });
  }
}

TEST(BenchGptqOptions, OneKernelIsAskedFor) {
  test::expect_error("name different kernels",
                     [] { parse({"--disable-exllama", "--use-exllama"}).check(DeviceChoice{DeviceKind::cuda, 0}); });
  EXPECT_THROW(parse({"--exllama-version", "3"}), CLI::ParseError);
}

TEST(BenchGptqOptions, OnAGpuTheRowsAreOptimums) {
  const DeviceChoice gpu{DeviceKind::cuda, 0};
  const auto kernel_of = [&](std::vector<std::string> words, const std::string& model = "gptq_b4_g32") {
    return parse(std::move(words)).default_kernel(std::string(NIBBLE_TEST_DATA) + "/golden/" + model, gpu);
  };
  EXPECT_EQ(kernel_of({"--classic"}), "exllama");
  EXPECT_EQ(kernel_of({"--classic", "--disable-exllama"}), "cuda-old");
  EXPECT_EQ(kernel_of({"--classic", "--disable-exllama"}, "gptq_b4_g32_actorder"), "cuda");
  EXPECT_EQ(kernel_of({"--classic", "--use-exllama"}), "exllamav2");
  EXPECT_EQ(kernel_of({"--classic", "--use-exllama", "--exllama-version", "1"}), "exllama");
  EXPECT_EQ(kernel_of({"--classic", "--exllama-version", "2"}), "exllamav2");
  EXPECT_EQ(kernel_of({"--use-marlin"}), "marlin");
  EXPECT_EQ(kernel_of({}), "auto");
  EXPECT_EQ(kernel_of({"--disable-exllama"}), "cuda-old");
  const DeviceChoice cpu;
  EXPECT_EQ(parse({"--classic"}).default_kernel(kQuantised, cpu), "auto");
  EXPECT_EQ(parse({"--classic", "--disable-exllama"}).default_kernel(kQuantised, cpu), "dequant");
}

TEST(BenchGptqOptions, WrongUsageIsASentence) {
  test::expect_error("--model is missing", [] { sweep_of({"--sweep"}); });
  test::expect_error("is not a GPTQ model", [] { sweep_of({"--gptq", "--model", kDense}); });
  test::expect_error("there is no GPTQ configuration", [] { sweep_of({"--gptq-model", kDense}); });
  test::expect_error("add --gptq", [] { sweep_of({"--classic", "--model", kQuantised}); });
  test::expect_error("no kernel named \"warp\"", [] { sweep_of({"--model", kQuantised, "--kernel", "warp"}); });
  test::expect_error("--format xml", [] { sweep_of({"--model", kDense, "--format", "xml"}); });
  EXPECT_THROW(parse({"--batch-size", "0"}), CLI::ParseError);
  EXPECT_THROW(parse({"--batch-size", "1,x"}), CLI::ParseError);
  EXPECT_THROW(parse({"--num-batches", "-1"}), CLI::ParseError);
}

}  // namespace
}  // namespace nibble
