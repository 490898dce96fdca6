// The engine against transformers: logits of every position, greedy continuations, and that mistakes would show.
#include "support/golden.h"

#include "core/error.h"
#include "engine/engine.h"
#include "engine/generator.h"
#include "formats/quant_config.h"
#include "kernels/registry.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <fstream>
#include <sstream>

namespace nibble {
namespace {

using test::Golden;
using test::GoldenRow;

// Largest difference over the largest logit.
double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  double largest = 0;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    worst = std::isnan(difference) ? 1e30 : std::max(worst, difference);
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return worst / largest;
}

EngineOptions f32_options(const std::string& kernel) {
  EngineOptions options;
  options.kernel = kernel;
  options.compute = DType::f32;
  options.kv_dtype = DType::f32;
  options.max_tokens = 96;
  options.max_batch = 3;
  options.max_logit_rows = 96;
  return options;
}

std::vector<float> all_logits(Engine& engine, const std::vector<std::int32_t>& ids) {
  std::vector<float> out;
  engine.score(ids, 0, [&](std::int64_t first, std::int64_t rows, const float* logits) {
    EXPECT_EQ(first * engine.program().vocab, static_cast<std::int64_t>(out.size()));
    out.insert(out.end(), logits, logits + rows * engine.program().vocab);
  });
  return out;
}

double worst_difference(Engine& engine, const Golden& golden) {
  double worst = 0;
  for (const GoldenRow& row : golden.rows)
    worst = std::max(worst, relative_difference(all_logits(engine, row.ids), row.logits));
  return worst;
}

std::vector<std::vector<std::int32_t>> greedy(Engine& engine, const std::vector<std::vector<std::int32_t>>& prompts) {
  GenerateOptions options;
  options.max_new_tokens = 16;
  options.ignore_stop = true;
  return generate(engine, prompts, options).tokens;
}

// Kernels that can run a model's blocks in f32 with activations as exact as float32.
std::vector<std::string> kernels_of(const Checkpoint& checkpoint) {
  const bool quantised = find_quant_config(checkpoint.folder()).has_value();
  std::vector<std::string> out = {"reference"};
  for (const LinearKernel* kernel : kernels_for(DeviceKind::cpu)) {
    if (kernel->name() == "reference" || !kernel->traits().exact_activations) continue;
    if ((kernel->name() == "dense") != quantised) out.emplace_back(kernel->name());
  }
  return out;
}

// float32 stays within 2e-4 of the largest logit. `packed` rounds activations to 16 bits (1.5e-5 of a group's largest,
// where float32 has 6e-8), which these models of large random weights amplify some 60-fold, most with a whole row in
// one group.
double tolerance(const std::string& kernel) { return kernel == "packed" ? 5e-3 : 2e-4; }

class GoldenModel : public testing::TestWithParam<std::string> {};

TEST_P(GoldenModel, LogitsAndGreedyTokensAreThoseOfTransformers) {
  const Golden golden = test::read_golden(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  std::vector<std::vector<std::int32_t>> prompts;
  prompts.reserve(golden.rows.size());
  for (const GoldenRow& row : golden.rows) prompts.push_back(row.ids);
  for (const std::string& kernel : kernels_of(*checkpoint)) {
    SCOPED_TRACE("kernel " + kernel);
    Engine engine(checkpoint, f32_options(kernel));
    EXPECT_LT(worst_difference(engine, golden), tolerance(kernel));
    const auto together = greedy(engine, prompts);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(together[i], golden.rows[i].greedy) << "row " << i << " in a ragged batch";
      EXPECT_EQ(greedy(engine, {prompts[i]})[0], golden.rows[i].greedy) << "row " << i << " alone";
    }
  }
}

TEST_P(GoldenModel, ChunksFusionAndCaptureChangeNothingThatMatters) {
  const Golden golden = test::read_golden(GetParam());
  const auto checkpoint = std::make_shared<const Checkpoint>(golden.folder);
  std::vector<std::vector<std::int32_t>> prompts;
  prompts.reserve(golden.rows.size());
  for (const GoldenRow& row : golden.rows) prompts.push_back(row.ids);
  EngineOptions options = f32_options(kernels_of(*checkpoint).back());
  options.prefill_chunk = 7;  // divides no prompt, so that chunks begin and end inside of sequences
  options.fuse = false;
  options.capture = false;
  Engine engine(checkpoint, options);
  EXPECT_LT(worst_difference(engine, golden), tolerance(options.kernel));
  const auto tokens = greedy(engine, prompts);
  for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(tokens[i], golden.rows[i].greedy) << "row " << i;
}

TEST(QueuedSteps, ChooseWhatStepsOneAtATimeDo) {
  const Golden golden = test::read_golden(test::golden_names().front());
  EngineOptions options = f32_options("auto");
  Engine engine(std::make_shared<const Checkpoint>(golden.folder), options);
  const std::vector<std::vector<std::int32_t>> prompts = {golden.rows.front().ids};
  const SampleParams params;
  EXPECT_THROW(engine.await_step(), Error);
  engine.prefill(prompts, std::span(&params, 1));
  std::vector<std::vector<std::int32_t>> one_at_a_time;
  for (int step = 0; step < 5; ++step) {
    engine.decode_step();
    one_at_a_time.push_back(engine.next_tokens());
  }
  engine.prefill(prompts, std::span(&params, 1));
  for (int step = 0; step < 5; ++step) engine.queue_step();
  for (int step = 0; step < 5; ++step) EXPECT_EQ(engine.await_step(), one_at_a_time[static_cast<std::size_t>(step)]);
  EXPECT_TRUE(engine.has_room());
  while (engine.has_room()) engine.queue_step();
  EXPECT_THROW(engine.queue_step(), Error) << "beyond what the run was planned for";
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel, testing::ValuesIn(test::golden_names()),
                         [](const testing::TestParamInfo<std::string>& param) { return param.param; });

// A copy of a fixture whose config.json has `from` replaced by `to`.
void make_mutant(const std::string& name, const std::string& from, const std::string& to,
                 const std::filesystem::path& folder) {
  const std::filesystem::path source = test::golden_folder() / name;
  for (const auto& entry : std::filesystem::directory_iterator(source)) {
    if (entry.path().filename() != "config.json") std::filesystem::copy(entry.path(), folder / entry.path().filename());
  }
  std::stringstream text;
  text << std::ifstream(source / "config.json").rdbuf();
  std::string config = text.str();
  const std::size_t at = config.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  config.replace(at, from.size(), to);
  std::ofstream(folder / "config.json") << config;
}

TEST(GoldenMutation, DoubledRopeThetaIsFound) {
  const test::TempFolder folder;
  make_mutant("llama_mha", "\"rope_theta\": 10000.0", "\"rope_theta\": 20000.0", folder.path());
  Engine engine(std::make_shared<const Checkpoint>(folder.path()), f32_options("reference"));
  EXPECT_GT(worst_difference(engine, test::read_golden("llama_mha")), 2e-3);
}

TEST(GoldenMutation, WindowOffByOneIsFound) {
  const test::TempFolder folder;
  const Golden golden = test::read_golden("mistral_window");
  const std::int64_t window = Checkpoint(golden.folder).config().at("sliding_window").get<std::int64_t>();
  make_mutant("mistral_window", "\"sliding_window\": " + std::to_string(window),
              "\"sliding_window\": " + std::to_string(window + 1), folder.path());
  Engine engine(std::make_shared<const Checkpoint>(folder.path()), f32_options("reference"));
  EXPECT_GT(worst_difference(engine, golden), 2e-3);
}

TEST(GoldenMutation, KeysHiddenByOneAreFound) {
  // A prompt without its first token: every row sees one key less, as with a causal mask that is off by one.
  const Golden golden = test::read_golden("llama_mha");
  Engine engine(std::make_shared<const Checkpoint>(golden.folder), f32_options("reference"));
  const GoldenRow& row = golden.rows[1];
  const std::vector<std::int32_t> shorter(row.ids.begin() + 1, row.ids.end());
  const std::vector<float> expected(row.logits.begin() + engine.program().vocab, row.logits.end());
  EXPECT_GT(relative_difference(all_logits(engine, shorter), expected), 2e-3);
}

TEST(Engine, Bf16StaysCloseToFloat) {
  const Golden golden = test::read_golden("llama_mha");
  EngineOptions options = f32_options("dense");
  options.compute = DType::bf16;
  options.kv_dtype = DType::bf16;
  Engine engine(std::make_shared<const Checkpoint>(golden.folder), options);
  const double difference = worst_difference(engine, golden);
  EXPECT_LT(difference,
            0.2);  // bf16 rounds an operand by up to 0.4%, which this model of large random weights amplifies
  EXPECT_GT(difference, 1e-5);  // and it really is bf16
}

TEST(Engine, MemoryPlanCountsWhatIsPacked) {
  const auto checkpoint = std::make_shared<const Checkpoint>(test::golden_folder() / "llama_mha");
  Engine engine(checkpoint, f32_options("reference"));
  std::size_t packed = 0;
  for (const SiteInfo& site : engine.sites()) packed += site.packed_bytes;
  EXPECT_GE(engine.plan().weights, packed);
  EXPECT_LT(engine.plan().weights, packed + 64 * 1024);  // the norms
  std::size_t items = 0;
  for (const PlanItem& item : engine.plan().items) items += item.bytes;
  EXPECT_EQ(items, engine.plan().total());
}

}  // namespace
}  // namespace nibble
