// Sums that a product of `wgmma` leaves in parts and the norm behind it adds up, against float64: each by itself, and
// both in an encoder of few rows.
#include "cuda/encoder_options.h"
#include "cuda/typed_matrix.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"
#include "ops/backend.h"
#include "quant/synth.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <limits>

namespace nibble::test {
namespace {

constexpr float kEps = 1e-5f;
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

std::vector<float> numbers_around(std::mt19937& numbers, float mean, std::int64_t count) {
  std::normal_distribution<float> normal(mean, 0.5f);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = normal(numbers);
  return out;
}

// About a dozen rows, the last one among them.
std::int64_t step_of(std::int64_t rows) { return std::max<std::int64_t>(1, rows / 12); }

struct Case {
  std::int64_t rows = 1, inputs = 3072, outputs = 768;
  DType type = DType::f16;
  bool bias = true;
};

void check_product(const Case& c, unsigned seed) {
  SCOPED_TRACE(testing::Message() << c.rows << " x " << c.inputs << " x " << c.outputs << " " << name_of(c.type));
  const LinearKernel& kernel = kernel_named("wgmma", DeviceKind::cuda);
  Device& device = gpu().device();
  RandomSiteOptions options;
  options.in_features = c.inputs;
  options.out_features = {c.outputs};
  options.bias = c.bias;
  options.weights = options.compute = options.x_dtype = options.y_dtype = c.type;
  options.seed = seed;
  const RandomSite random(options);
  const int parts = kernel.parts(random.site(), c.rows, device.info());
  ASSERT_GE(parts, 2);
  ASSERT_LE(parts, kMostSumParts);
  const std::unique_ptr<Stream> stream = device.make_stream();
  const std::unique_ptr<PackedLinear> packed = kernel.pack(random.site(), random.tensors(), device, *stream);
  std::mt19937 numbers(seed);
  TypedMatrix x(*stream, c.type, c.rows, c.inputs, 8);
  x.fill(numbers);
  const std::int64_t size = c.rows * c.outputs;
  constexpr std::int64_t kBehind = 4096;
  const std::vector<float> nothing(static_cast<std::size_t>(parts * size + kBehind), kPoison);
  const auto run = [&] {
    TypedMatrix y(*stream, c.type, c.rows, c.outputs);
    const OnDevice<float> sums(*stream, nothing);
    const MatrixRef to = y.ref();
    LinearArgs args;
    args.rows = c.rows;
    args.x = x.ref();
    args.y = std::span(&to, 1);
    args.parts = sums.data();
    kernel.enqueue(*packed, args, *stream);
    y.download();
    EXPECT_TRUE(std::isnan(y.at(0, 0))) << "y was written";
    return sums.read();
  };
  const std::vector<float> got = run();
  const std::vector<float> again = run();
  EXPECT_EQ(std::memcmp(got.data(), again.data(), got.size() * sizeof(float)), 0);
  for (auto at = static_cast<std::size_t>(parts * size); at < got.size(); ++at)
    ASSERT_TRUE(std::isnan(got[at])) << "what lies behind the parts was written";
  const std::vector<float> bias = bias_of(random.tensors()[0]);
  const std::span<const float> w = random.weights(0);
  for (std::int64_t row = (c.rows - 1) % step_of(c.rows); row < c.rows; row += step_of(c.rows)) {
    for (std::int64_t n = 0; n < c.outputs; n += 1 + n % 3) {
      double sum = bias.empty() ? 0 : static_cast<double>(rounded(c.type, bias[static_cast<std::size_t>(n)]));
      double squares = 0;
      for (std::int64_t k = 0; k < c.inputs; ++k) {
        const double term = static_cast<double>(x.at(row, k)) * static_cast<double>(w[n * c.inputs + k]);
        sum += term;
        squares += term * term;
      }
      double added = 0;
      for (int part = 0; part < parts; ++part)
        added += static_cast<double>(got[static_cast<std::size_t>(part * size + row * c.outputs + n)]);
      ASSERT_LE(std::abs(added - sum), 1e-5 * std::sqrt(squares) + 1e-6 * (1 + std::abs(sum)))
          << "[" << row << ", " << n << "]: " << added << ", expected " << sum;
    }
  }
}

TEST(CudaParts, OfProducts) {
  NIBBLE_NEEDS_GPU();
  if (gpu().device().info().isa != "sm_90") GTEST_SKIP() << "wgmma needs compute capability 9.0";
  unsigned seed = 1;
  for (const std::int64_t rows : {1, 63, 84, 195, 300, 448}) {
    for (const auto& [inputs, outputs] :
         {std::pair<std::int64_t, std::int64_t>{3072, 768}, {1536, 384}, {1608, 200}, {2056, 8}}) {
      check_product({.rows = rows,
                     .inputs = inputs,
                     .outputs = outputs,
                     .type = seed % 2 == 0 ? DType::f16 : DType::bf16,
                     .bias = seed % 3 != 0},
                    seed);
      if (testing::Test::HasFailure()) return;
      ++seed;
    }
  }
}

TEST(CudaParts, FewerOfMoreRowsAndNoneOfShortSums) {
  NIBBLE_NEEDS_GPU();
  if (gpu().device().info().isa != "sm_90") GTEST_SKIP() << "wgmma needs compute capability 9.0";
  const LinearKernel& kernel = kernel_named("wgmma", DeviceKind::cuda);
  const DeviceInfo info = gpu().device().info();
  const auto parts = [&](std::int64_t inputs, std::int64_t rows, std::optional<ActivationKind> activation) {
    RandomSiteOptions options;
    options.in_features = inputs;
    options.out_features = {768};
    options.weights = options.compute = options.x_dtype = options.y_dtype = DType::f16;
    if (activation) options.epilogue = {EpilogueKind::activation, *activation};
    return kernel.parts(RandomSite(options).site(), rows, info);
  };
  int before = kMostSumParts;
  for (std::int64_t rows = 1; rows <= 2048; rows += 63) {
    const int now = parts(1536, rows, {});
    EXPECT_LE(now, before) << rows;
    before = now;
  }
  EXPECT_EQ(parts(1536, 1, {}), kMostSumParts);
  EXPECT_EQ(before, 1);
  EXPECT_EQ(parts(768, 1, {}), 1);
  EXPECT_EQ(parts(1536, 1, ActivationKind::gelu), 1);
}

void check_norm(std::int64_t rows, std::int64_t columns, int parts, DType type, unsigned seed) {
  SCOPED_TRACE(testing::Message() << rows << " x " << columns << " " << name_of(type) << ", " << parts << " parts");
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  std::mt19937 numbers(seed);
  TypedMatrix addend(*stream, type, rows, columns, 8);
  addend.fill(numbers);
  const std::vector<float> sums = numbers_around(numbers, 0.3f, parts * rows * columns);
  const std::vector<float> weight = numbers_around(numbers, 1.0f, columns);
  const std::vector<float> bias = numbers_around(numbers, 0.0f, columns);
  const OnDevice<float> sums_there(*stream, sums);
  const OnDevice<float> weight_there(*stream, weight);
  const OnDevice<float> bias_there(*stream, bias);
  const TypedMatrix unread(*stream, type, rows, columns);  // no numbers
  const auto run = [&] {
    TypedMatrix y(*stream, type, rows, columns, 16, 8);
    NormArgs args{NormKind::layer, unread.ref(), 1, weight_there.data(), bias_there.data(), kEps, y.ref()};
    args.addend = addend.ref();
    args.x_parts = sums_there.data();
    args.parts = parts;
    gpu().norm(args, *stream);
    y.download();
    return y;
  };
  const TypedMatrix y = run();
  y.expect_surroundings_untouched();
  EXPECT_EQ(run().values(), y.values());
  for (std::int64_t row = (rows - 1) % step_of(rows); row < rows; row += step_of(rows)) {
    std::vector<double> x;
    x.reserve(static_cast<std::size_t>(columns));
    double mean = 0;
    for (std::int64_t c = 0; c < columns; ++c) {
      double value = static_cast<double>(addend.at(row, c));
      for (int part = 0; part < parts; ++part)
        value += static_cast<double>(sums[static_cast<std::size_t>((part * rows + row) * columns + c)]);
      x.push_back(value);
      mean += value / static_cast<double>(columns);
    }
    double variance = 0;
    for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(columns);
    for (std::int64_t c = 0; c < columns; ++c) {
      const auto at = static_cast<std::size_t>(c);
      const double want =
          (x[at] - mean) / std::sqrt(variance + static_cast<double>(kEps)) * static_cast<double>(weight[at]) +
          static_cast<double>(bias[at]);
      ASSERT_LE(std::abs(static_cast<double>(y.at(row, c)) - want), 1.01 * rounding_of(type) * std::abs(want) + 2e-5)
          << "[" << row << ", " << c << "]: " << y.at(row, c) << ", expected " << want;
    }
  }
}

TEST(CudaParts, AddedUpByNorms) {
  NIBBLE_NEEDS_GPU();
  unsigned seed = 100;
  for (const std::int64_t rows : {1, 63, 300}) {
    for (const std::int64_t columns : {8, 30, 384, 768, 1024, 1280}) {
      for (int parts = 2; parts <= kMostSumParts; ++parts) {
        check_norm(rows, columns, parts, kActivationTypes[seed % 3], seed);
        if (testing::Test::HasFailure()) return;
        ++seed;
      }
    }
  }
}

TEST(CudaParts, AreRefusedWhereTheyCannotBeAddedUp) {
  NIBBLE_NEEDS_GPU();
  const std::unique_ptr<Stream> stream = gpu().device().make_stream();
  const TypedMatrix x(*stream, DType::f16, 2, 64);
  const std::vector<float> ones(64 * 2 * 5, 1.0f);
  const OnDevice<float> there(*stream, ones);
  NormArgs args{NormKind::layer, x.ref(), 1, there.data(), there.data(), kEps, x.ref()};
  args.addend = x.ref();
  args.x_parts = there.data();
  args.parts = kMostSumParts + 1;
  expect_error("expected 2 to 4 with one", [&] { gpu().norm(args, *stream); });
}

TEST(CudaParts, InAnEncoder) {
  NIBBLE_NEEDS_GPU();
  const TempFolder folder;
  const nlohmann::ordered_json config = {
      {"architectures", {"BertModel"}}, {"model_type", "bert"},     {"vocab_size", 500},
      {"max_position_embeddings", 200}, {"type_vocab_size", 2},     {"pad_token_id", 0},
      {"hidden_act", "gelu"},           {"hidden_size", 192},       {"intermediate_size", 1600},
      {"num_hidden_layers", 3},         {"num_attention_heads", 3}, {"layer_norm_eps", 1e-12}};
  SynthOptions synth;
  synth.dtype = DType::f32;
  synthesise(config, folder.path() / "model", synth);
  const auto checkpoint = std::make_shared<const Checkpoint>(folder.path() / "model");
  EncoderOptions on_cpu;
  on_cpu.compute = DType::f32;
  EncoderEngine cpu(checkpoint, on_cpu);
  // Of four parts to those of none.
  const std::vector<std::vector<std::int32_t>> batches = {
      {1}, {5, 9}, {40, 1, 17}, {200, 150, 3, 77, 200}, std::vector<std::int32_t>(14, 171)};
  for (const DType type : {DType::f16, DType::bf16}) {
    for (const bool capture : {false, true}) {
      EncoderOptions options = on_gpu(EncoderPath::fast, type);
      options.capture = capture;
      EncoderEngine engine(checkpoint, options);
      const std::vector<LoweredNode>& nodes = engine.nodes();
      ASSERT_EQ(std::any_of(nodes.begin(), nodes.end(), [](const LoweredNode& n) { return n.in_parts; }),
                engine.device().info().isa == "sm_90");
      for (const std::vector<std::int32_t>& lengths : batches) {
        SCOPED_TRACE(testing::Message() << lengths.size() << " sequences, " << name_of(type) << ", " << capture);
        const auto length = std::int64_t{*std::max_element(lengths.begin(), lengths.end())};
        std::vector<std::int32_t> ids(lengths.size() * static_cast<std::size_t>(length));
        for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(1 + i * 37 % 498);
        const EncoderBatch batch{static_cast<std::int64_t>(lengths.size()), length, ids, lengths, {}};
        EncoderResult expected;
        EncoderResult got;
        EncoderResult again;
        cpu.forward(batch, {}, expected);
        engine.forward(batch, {}, got);
        engine.forward(batch, {}, again);
        EXPECT_LT(largest_difference(batch, got.hidden, expected.hidden), type == DType::f16 ? 0.01 : 0.08);
        EXPECT_EQ(got.hidden, again.hidden);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::test
