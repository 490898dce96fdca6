// Encoders of short sequences, whose q, k and v and attention are one kernel on Hopper: what the eager path computes in
// f32, whatever else is in a sequence's batch, and the same bits from captured passes.
#include "engine/encoder.h"

#include "core/error.h"
#include "cuda/encoder_options.h"
#include "cuda/gpu.h"
#include "engine/lowering.h"
#include "quant/synth.h"
#include "support/temp_folder.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <random>

namespace nibble {
namespace {

using test::on_gpu;

constexpr std::int32_t kShort = 64;
constexpr std::int32_t kLongest = 90;

nlohmann::ordered_json config(std::int64_t heads) {
  return {{"architectures", {"BertModel"}}, {"model_type", "bert"},         {"vocab_size", 500},
          {"max_position_embeddings", 200}, {"type_vocab_size", 2},         {"pad_token_id", 0},
          {"hidden_act", "gelu"},           {"hidden_size", 256},           {"intermediate_size", 512},
          {"num_hidden_layers", 3},         {"num_attention_heads", heads}, {"layer_norm_eps", 1e-12}};
}

struct Batch {
  std::vector<std::int32_t> ids, lengths;
  EncoderBatch ref() const { return {static_cast<std::int64_t>(lengths.size()), kLongest, ids, lengths, {}}; }
};

// A sequence's tokens depend on its place alone.
Batch batch_of(std::vector<std::int32_t> lengths) {
  Batch out;
  out.lengths = std::move(lengths);
  std::mt19937 random(1);
  for (std::size_t i = 0; i < out.lengths.size() * kLongest; ++i)
    out.ids.push_back(static_cast<std::int32_t>(1 + random() % 499));
  return out;
}

std::vector<std::vector<std::int32_t>> lengths() {
  std::vector<std::vector<std::int32_t>> out = {
      {1}, {kShort}, {5, 9, 64, 33, 1, 2}, {64, 64, 64, 64, 64, 64, 64, 64}, {60, 5, 60, 5, 60, 5, 60}};
  out.push_back(std::vector<std::int32_t>(70, 3));
  std::mt19937 random(2);
  for (const int sequences : {16, 40}) {
    out.emplace_back();
    for (int i = 0; i < sequences; ++i) out.back().push_back(1 + static_cast<std::int32_t>(random() % kShort));
  }
  return out;
}

class ShortSequences : public testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override {
    NIBBLE_NEEDS_GPU();
    if (test::gpu().device().info().isa != "sm_90") GTEST_SKIP() << "needs a GPU of compute capability 9.0";
    SynthOptions options;
    options.dtype = DType::f16;
    synthesise(config(GetParam()), folder_.path() / "model", options);
    checkpoint_ = std::make_shared<const Checkpoint>(folder_.path() / "model");
  }

  const test::TempFolder folder_;
  std::shared_ptr<const Checkpoint> checkpoint_;
};

TEST_P(ShortSequences, AreWhatTheEagerPathMakesOfThem) {
  EncoderEngine eager(checkpoint_, on_gpu(EncoderPath::eager, DType::f32));
  for (const DType type : {DType::f16, DType::bf16}) {
    EncoderEngine fast(checkpoint_, on_gpu(EncoderPath::fast, type));
    const auto joined = std::count_if(fast.nodes().begin(), fast.nodes().end(),
                                      [](const LoweredNode& node) { return node.attention.has_value(); });
    ASSERT_EQ(joined, 3);
    const double bound = type == DType::f16 ? 0.01 : 0.06;
    for (const std::vector<std::int32_t>& some : lengths()) {
      SCOPED_TRACE(std::to_string(some.size()) + " sequences, " + std::string(name_of(type)));
      const Batch batch = batch_of(some);
      EncoderResult want, got;
      eager.forward(batch.ref(), {}, want);
      fast.forward(batch.ref(), {}, got);
      EXPECT_LT(largest_difference(batch.ref(), got.hidden, want.hidden), bound);
      // With a longer one in the batch, attention is a kernel of its own.
      Batch longer = batch;
      longer.lengths.push_back(kLongest);
      longer.ids.resize(longer.lengths.size() * kLongest, 7);
      fast.forward(longer.ref(), {}, got);
      got.hidden.resize(want.hidden.size());
      EXPECT_LT(largest_difference(batch.ref(), got.hidden, want.hidden), bound);
    }
  }
}

// Captures of one size are replayed for other lengths.
TEST_P(ShortSequences, GiveTheSameBitsFromCaptures) {
  EncoderOptions uncaptured = on_gpu(EncoderPath::fast, DType::f16);
  uncaptured.capture = false;
  EncoderEngine plain(checkpoint_, uncaptured);
  EncoderEngine captured(checkpoint_, on_gpu(EncoderPath::fast, DType::f16));
  captured.reserve(8, kLongest);
  for (const std::vector<std::int32_t>& some : {std::vector<std::int32_t>{64, 64, 64, 64, 64, 64, 64, 64},
                                                {60, 64, 58, 64, 63, 64, 64, 62},
                                                {9, 60, 64, 64, 64, 64, 64, 64},
                                                {90, 60, 64, 64, 64, 22, 64, 64},
                                                {61, 64, 60, 64, 63, 64, 64, 61}}) {
    const Batch batch = batch_of(some);
    EncoderResult first, second;
    captured.forward(batch.ref(), {}, first);
    captured.forward(batch.ref(), {}, second);
    EXPECT_EQ(first.hidden, second.hidden);
    EncoderResult direct;
    plain.forward(batch.ref(), {}, direct);
    EXPECT_LT(largest_difference(batch.ref(), first.hidden, direct.hidden), 0.01);
  }
}

INSTANTIATE_TEST_SUITE_P(Gpu, ShortSequences, testing::Values(std::int64_t{4}, std::int64_t{8}),
                         [](const testing::TestParamInfo<std::int64_t>& heads) {
                           return "heads_of_" + std::to_string(256 / heads.param);
                         });

}  // namespace
}  // namespace nibble
