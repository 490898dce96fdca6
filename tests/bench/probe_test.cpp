#include "bench/probe.h"

#include "support/expect_error.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace nibble {
namespace {

const std::string kQuantised = std::string(NIBBLE_TEST_DATA) + "/golden/gptq_b4_g32";

/// A child that is a shell script; the question is its $0.
ProbeAnswer ask(const std::string& script) {
  return probe_in_child("/bin/sh", {"-c", script}, {"cuda:0", true, "/a model", "f16"});
}

TEST(Probe, TakesTheChildsAnswer) {
  const ProbeAnswer answer = ask(
      R"sh(printf '{"error":"","name":"GPU","copy":3e12,"read":2e12,"footprint":4,"f32":1,"bf16":2,"f16":3,"kernels":["a","b"]}\n' >&3)sh");
  EXPECT_EQ(answer.name, "GPU");
  EXPECT_EQ(answer.ceilings.memory.copy_bytes_per_second, 3e12);
  EXPECT_EQ(answer.ceilings.memory.footprint, 4u);
  EXPECT_EQ(answer.ceilings.gemm.f16, 3);
  EXPECT_EQ(answer.kernels, (std::vector<std::string>{"a", "b"}));
}

TEST(Probe, WhatGoesWrongIsASentence) {
  test::expect_error("out of cards", [] {
    ask(R"sh(printf '{"error":"out of cards","name":"","copy":0,"read":0,"footprint":0,"f32":0,"bf16":0,"f16":0,"kernels":[]}\n' >&3)sh");
  });
  test::expect_error("the process that looks at cuda:0 ended with exit code 5", [] { ask("exit 5"); });
  test::expect_error("is not as expected", [] { ask("echo '{}' >&3"); });
}

TEST(Probe, KernelsThatRunAreThoseOfAll) {
  const std::vector<std::string> kernels = kernels_that_run(kQuantised, "cpu", "f32");
  const auto has = [&](const char* name) { return std::find(kernels.begin(), kernels.end(), name) != kernels.end(); };
  EXPECT_TRUE(has("dequant"));
  // It takes part when named, and dense does not take quantised weights.
  EXPECT_FALSE(has("reference"));
  EXPECT_FALSE(has("dense"));
}

}  // namespace
}  // namespace nibble
