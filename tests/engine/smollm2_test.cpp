// The default model, the real one: greedy text equal to transformers' on the same weights.
#include "support/golden.h"

#include "engine/engine.h"
#include "engine/generator.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <fstream>

namespace nibble {
namespace {

TEST(SmolLm2, GreedyTokensAreThoseOfTransformers) {
  const char* folder = std::getenv("NIBBLE_SMOLLM2");
  if (folder == nullptr || *folder == '\0')
    GTEST_SKIP() << "NIBBLE_SMOLLM2 does not name the imported model's folder (`make test` sets it)";
  const nlohmann::json golden =
      nlohmann::json::parse(std::ifstream(std::filesystem::path(NIBBLE_TEST_DATA) / "smollm2_greedy.json"));
  std::vector<std::vector<std::int32_t>> prompts, expected;
  for (const nlohmann::json& entry : golden.at("prompts")) {
    prompts.push_back(entry.at("ids").get<std::vector<std::int32_t>>());
    expected.push_back(entry.at("greedy").get<std::vector<std::int32_t>>());
  }
  ASSERT_EQ(prompts.size(), 5U);

  EngineOptions options;
  options.kernel = "dense";
  options.compute = DType::f32;
  options.kv_dtype = DType::f32;
  options.max_batch = 5;
  options.max_tokens = 256;
  Engine engine(std::make_shared<const Checkpoint>(folder), options);
  GenerateOptions generation;
  generation.max_new_tokens = 64;
  generation.ignore_stop = true;
  // All five together, of unequal lengths, and each by itself.
  const auto together = generate(engine, prompts, generation).tokens;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_EQ(expected[i].size(), 64U);
    EXPECT_EQ(together[i], expected[i]) << "prompt " << i << " in a ragged batch";
    EXPECT_EQ(generate(engine, {&prompts[i], 1}, generation).tokens[0], expected[i]) << "prompt " << i << " alone";
  }
}

}  // namespace
}  // namespace nibble
