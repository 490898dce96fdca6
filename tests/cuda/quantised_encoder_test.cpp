// Quantised encoders on the GPU: every kernel, both paths, against what the CPU makes of the same checkpoint.
#include "engine/encoder.h"

#include "bench/run_encoder_case.h"
#include "core/error.h"
#include "cuda/encoder_options.h"
#include "cuda/gpu.h"
#include "kernels/registry.h"
#include "quant/synth.h"
#include "support/temp_folder.h"

#include <nlohmann/json.hpp>

#include <set>

namespace nibble {
namespace {

nlohmann::ordered_json config() {
  return {{"architectures", {"BertModel"}}, {"model_type", "bert"},     {"vocab_size", 500},
          {"max_position_embeddings", 200}, {"type_vocab_size", 2},     {"pad_token_id", 0},
          {"hidden_act", "gelu"},           {"hidden_size", 128},       {"intermediate_size", 384},
          {"num_hidden_layers", 2},         {"num_attention_heads", 4}, {"layer_norm_eps", 1e-12}};
}

std::vector<LinearQuant> formats() {
  // Bits, group size, act-order, symmetric.
  return {{4, 128, false, true}, {4, 64, true, false},  {4, -1, false, true},
          {8, 128, false, true}, {3, 32, false, false}, {2, 64, true, true}};
}

struct Batch {
  std::vector<std::int32_t> ids, lengths;
  std::int64_t length = 0;
  EncoderBatch ref() const { return {static_cast<std::int64_t>(lengths.size()), length, ids, lengths, {}}; }
};

Batch batch_of(std::vector<std::int32_t> lengths, std::int64_t length) {
  Batch out;
  out.lengths = std::move(lengths);
  out.length = length;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(out.lengths.size()) * length; ++i)
    out.ids.push_back(static_cast<std::int32_t>(1 + i * 37 % 498));
  return out;
}

double head_difference(const EncoderResult& got, const EncoderResult& want) {
  const std::vector<std::int32_t> one = {1};
  return largest_difference({1, 1, {}, one, {}}, got.head, want.head);
}

// Rows of few and of many of a product, and more than a pass of the small kernel takes.
TEST(CudaQuantisedEncoder, IsWhatTheCpuMakesOfIt) {
  NIBBLE_NEEDS_GPU();
  const std::vector<Batch> batches = {batch_of({1}, 3), batch_of({5, 9}, 9), batch_of({40, 1, 17}, 40),
                                      batch_of({200, 150, 3, 77, 200}, 200)};
  for (const LinearQuant& quant : formats()) {
    const test::TempFolder folder;
    SynthOptions options;
    options.dtype = DType::f32;
    options.gptq = quant;
    synthesise(config(), folder.path() / "model", options);
    const auto checkpoint = std::make_shared<const Checkpoint>(folder.path() / "model");
    EncoderOptions of_cpu;
    of_cpu.compute = DType::f32;
    EncoderEngine cpu(checkpoint, of_cpu);
    std::vector<EncoderResult> expected(batches.size());
    for (std::size_t i = 0; i < batches.size(); ++i)
      cpu.forward(batches[i].ref(), {.hidden = true, .head = true}, expected[i]);
    std::set<std::string> ran;
    for (const LinearKernel* kernel : kernels_for(DeviceKind::cuda)) {
      if (!kernel->traits().in_all) continue;
      for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
        for (const EncoderPath path : {EncoderPath::eager, EncoderPath::fast}) {
          SCOPED_TRACE(testing::Message() << kernel->name() << ", " << quant.bits << " bits, groups of "
                                          << quant.group_size << ", " << name_of(type) << ", " << name_of(path));
          EncoderOptions of_gpu = test::on_gpu(path, type);
          of_gpu.kernel = std::string(kernel->name());
          std::unique_ptr<EncoderEngine> engine;
          try {
            engine = std::make_unique<EncoderEngine>(checkpoint, of_gpu);
          } catch (const Error& e) {
            // Not every kernel takes every format and type.
            EXPECT_NE(std::string(e.what()).find("cannot run"), std::string::npos) << e.what();
            continue;
          }
          ran.insert(std::string(kernel->name()));
          // Weights of 2 and 3 bits have no smaller errors of rounding than others: both sides have the same weights.
          const double bound = type == DType::f32 ? 1e-4 : type == DType::f16 ? 0.03 : 0.15;
          for (std::size_t i = 0; i < batches.size(); ++i) {
            EncoderResult got;
            engine->forward(batches[i].ref(), {.hidden = true, .head = true}, got);
            EXPECT_LT(largest_difference(batches[i].ref(), got.hidden, expected[i].hidden), bound);
            EXPECT_LT(head_difference(got, expected[i]), bound);
          }
        }
      }
    }
    EXPECT_TRUE(ran.contains("nibble"));
    EXPECT_GE(ran.size(), 2U);
  }
}

TEST(CudaQuantisedEncoder, IsMeasured) {
  NIBBLE_NEEDS_GPU();
  const test::TempFolder folder;
  SynthOptions options;
  options.gptq = LinearQuant{4, 128, false, true};
  synthesise(config(), folder.path() / "model", options);
  BenchCase one;
  one.folder = (folder.path() / "model").string();
  one.device = "cuda:0";
  one.batch_size = 2;
  one.prompt_length = 33;
  one.new_tokens = 1;
  one.num_batches = 3;
  const BenchResult result =
      run_encoder_case(one, std::make_shared<const Checkpoint>(one.folder), [](std::string_view, double) {});
  EXPECT_EQ(result.total_seconds.size(), 3U);
  EXPECT_EQ(result.dtype, "f16");
  EXPECT_GT(result.verified_sites, 0);
  EXPECT_LE(result.verified_error, 1);
  EXPECT_GT(result.gpu.context, 0U);
}

}  // namespace
}  // namespace nibble
