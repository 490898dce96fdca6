#include "quant/quantizer.h"

#include "core/file.h"
#include "core/float_convert.h"
#include "formats/gptq_tensors.h"
#include "model_folders.h"
#include "models/family.h"
#include "quant/block_runner.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstring>
#include <fstream>
#include <set>

namespace nibble {
namespace {

namespace fs = std::filesystem;
using test::all_logits;
using test::expect_error;
using test::random_sequences;
using test::small_config;
using test::TempFolder;

SynthOptions full(DType dtype) {
  SynthOptions options;
  options.dtype = dtype;
  return options;
}

fs::path make_model(const TempFolder& folder, const nlohmann::ordered_json& config, DType dtype = DType::f32) {
  synthesise(config, folder.path() / "model", full(dtype));
  return folder.path() / "model";
}

QuantizeOptions groups_of_32() {
  QuantizeOptions options;
  options.gptq.group_size = 32;
  return options;
}

std::string bytes_of_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::set<std::string> entries(const fs::path& folder) {
  std::set<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) out.insert(entry.path().filename());
  return out;
}

TEST(BlockRunnerTest, ItsHiddenStatesLeadToTheEnginesLogits) {
  const TempFolder folder;
  for (const char* type : {"llama", "qwen2"}) {
    auto config = small_config(type);
    const fs::path model = folder.path() / type;
    synthesise(config, model, full(DType::f32));
    const Checkpoint checkpoint(model);
    const Program program = program_from_checkpoint(checkpoint);
    const std::vector<std::vector<std::int32_t>> sequences = {random_sequences(1, 20, 128, 1)[0],
                                                              random_sequences(1, 33, 128, 2)[0]};
    BlockRunner runner(program, checkpoint, sequences);
    EXPECT_EQ(runner.tokens(), 53);
    const auto load = [&](const LinearNode& node) {
      std::vector<DenseLinear> parts;
      for (std::size_t i = 0; i < node.parts.size(); ++i) {
        LoadedLinear loaded;
        load_linear(checkpoint, std::nullopt, node, i, loaded);
        parts.push_back({to_float(loaded.tensors.weight),
                         loaded.tensors.bias.empty() ? std::vector<float>() : to_float(loaded.tensors.bias)});
      }
      return parts;
    };
    for (int layer = 0; layer < program.layers; ++layer) {
      // Going back to saved states and running a block again changes nothing.
      runner.save();
      for (int time = 0; time < 2; ++time) {
        if (time == 1) runner.restore();
        runner.begin(layer);
        int stops = 0;
        for (; runner.linear() != nullptr; ++stops) runner.apply(load(*runner.linear()));
        EXPECT_EQ(stops, 4);
      }
    }
    runner.begin(static_cast<int>(program.layers));
    ASSERT_NE(runner.linear(), nullptr);
    const MatrixRef x = runner.inputs();
    const std::vector<float> head = load(*runner.linear())[0].weight;
    const std::vector<float> expected = all_logits(model, sequences);
    ASSERT_EQ(x.rows, 53);
    ASSERT_EQ(expected.size(), 53U * 128U);
    for (std::int64_t r = 0; r < x.rows; ++r) {
      for (std::int64_t n = 0; n < 128; ++n) {
        double sum = 0;
        for (std::int64_t k = 0; k < 64; ++k)
          sum += static_cast<double>(x.f32_row(r)[k]) * head[static_cast<std::size_t>(n * 64 + k)];
        EXPECT_NEAR(sum, expected[static_cast<std::size_t>(r * 128 + n)], 1e-3)
            << type << " row " << r << " token " << n;
      }
    }
  }
}

TEST(QuantizerTest, TheFolderLoadsAsTheWeightsThatTheAlgorithmChose) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config("qwen2"));
  const Checkpoint checkpoint(model);
  const auto sequences = random_sequences(6, 64, 128, 3);
  for (const int bits : {2, 3, 4, 8}) {
    for (const ZeroFormat zeros : {ZeroFormat::v1, ZeroFormat::v2}) {
      QuantizeOptions options = groups_of_32();
      options.gptq.bits = bits;
      options.gptq.symmetric = zeros == ZeroFormat::v1 && bits != 3;
      options.gptq.order = bits == 4 ? ColumnOrder::activation : ColumnOrder::original;
      options.zeros = zeros;
      options.overwrite = true;
      const fs::path out = folder.path() / "out";
      const QuantizeReport report = quantize_checkpoint(checkpoint, sequences, out, options);
      ASSERT_EQ(report.linears.size(), 14U);
      EXPECT_EQ(report.tokens, 6 * 64);

      const Checkpoint quantised(out);
      const auto config = find_quant_config(out);
      ASSERT_TRUE(config.has_value());
      EXPECT_EQ(config->linear.bits, bits);
      EXPECT_EQ(config->linear.sym, options.gptq.symmetric);
      EXPECT_EQ(config->linear.desc_act, bits == 4);
      EXPECT_EQ(config->zeros, zeros);
      EXPECT_EQ(quantised.config().at("torch_dtype"), "float16");

      // The first block's q, k and v by hand: their inputs do not depend on what else was quantised.
      const Program program = program_from_checkpoint(checkpoint);
      BlockRunner runner(program, checkpoint, sequences);
      runner.begin(0);
      Hessian hessian(64);
      hessian.add(runner.inputs());
      for (const LinearDesc& part : runner.linear()->parts) {
        const std::vector<float> weight = to_float(checkpoint.tensor(part.name + ".weight"));
        GptqOptions gptq = options.gptq;
        gptq.least_zero = zeros == ZeroFormat::v1 ? 1 : 0;
        std::vector<float> expected(weight.size());
        quantize_layer(weight, part.out_features, hessian, gptq).dequantize(expected);
        const GptqTensors stored = load_gptq(quantised, part.name, *config, part.in_features, part.out_features);
        EXPECT_EQ(stored.act_order, bits == 4);
        std::vector<float> row(64);
        for (std::int64_t n = 0; n < part.out_features; ++n) {
          stored.dequantize_row(n, row.data());
          for (std::size_t k = 0; k < 64; ++k)
            ASSERT_EQ(row[k], expected[static_cast<std::size_t>(n) * 64 + k]) << part.name << " " << bits;
        }
        ASSERT_EQ(stored.bias.size(), static_cast<std::size_t>(part.out_features));
        const std::vector<float> bias = to_float(checkpoint.tensor(part.name + ".bias"));
        for (std::size_t n = 0; n < bias.size(); ++n) EXPECT_EQ(stored.bias[n], half_to_float(float_to_half(bias[n])));
      }
      EXPECT_FALSE(quantised.has("model.layers.0.self_attn.q_proj.weight"));
      EXPECT_EQ(quantised.tensor("model.embed_tokens.weight").dtype, DType::f16);
    }
  }
}

// GPTQModel refuses zero points of their own in v1 unless it wrote them; every program reads symmetric codes in v1.
TEST(QuantizerTest, WritesTheZeroFormatThatIsReadWidest) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config());
  const Checkpoint checkpoint(model);
  QuantizeOptions options = groups_of_32();
  options.method = QuantMethod::rtn;
  const auto format_of = [&] {
    options.overwrite = true;
    const fs::path out = folder.path() / "out";
    quantize_checkpoint(checkpoint, {}, out, options);
    return nlohmann::json::parse(read_text_file(out / "quantize_config.json", 1 << 20)).at("checkpoint_format");
  };
  EXPECT_EQ(format_of(), "gptq");
  options.gptq.symmetric = false;
  EXPECT_EQ(format_of(), "gptq_v2");
  options.zeros = ZeroFormat::v1;
  EXPECT_EQ(format_of(), "gptq");
  options.gptq.symmetric = true;
  options.zeros = ZeroFormat::v2;
  EXPECT_EQ(format_of(), "gptq_v2");
}

TEST(QuantizerTest, PredictsBetterThanRoundToNearest) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config());
  const Checkpoint checkpoint(model);
  const auto calibration = random_sequences(12, 96, 128, 5);
  const auto unseen = random_sequences(6, 64, 128, 99);
  const std::vector<float> reference = all_logits(model, unseen);
  const auto divergence_of = [&](const QuantizeOptions& options) {
    const fs::path out = folder.path() / "out";
    QuantizeOptions replaced = options;
    replaced.overwrite = true;
    quantize_checkpoint(checkpoint, calibration, out, replaced);
    return test::divergence(reference, all_logits(out, unseen), 128);
  };
  QuantizeOptions options = groups_of_32();
  options.gptq.bits = 3;
  options.method = QuantMethod::rtn;
  const double plain = divergence_of(options);
  options.method = QuantMethod::gptq;
  const double gptq = divergence_of(options);
  EXPECT_LT(gptq, 0.85 * plain);
  options.true_sequential = false;
  EXPECT_LT(divergence_of(options), 0.85 * plain);
  options.gptq.bits = 8;
  EXPECT_LT(divergence_of(options), 0.02 * gptq);
}

TEST(QuantizerTest, TheSameInputsGiveTheSameBytes) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config());
  const Checkpoint checkpoint(model);
  const auto sequences = random_sequences(4, 50, 128, 8);
  quantize_checkpoint(checkpoint, sequences, folder.path() / "a", groups_of_32());
  quantize_checkpoint(checkpoint, sequences, folder.path() / "b", groups_of_32());
  EXPECT_EQ(bytes_of_file(folder.path() / "a/model.safetensors"), bytes_of_file(folder.path() / "b/model.safetensors"));
}

TEST(QuantizerTest, CopiesCompanionsKeepsTiesAndTypes) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config("llama", true), DType::bf16);
  folder.write("model/tokenizer.json", "{}");
  folder.write("model/generation_config.json", R"({"eos_token_id": 2})");
  folder.write("model/notes.bin", "not ours");
  QuantizeOptions options = groups_of_32();
  options.method = QuantMethod::rtn;
  options.keep_dtype = true;
  quantize_checkpoint(Checkpoint(model), {}, folder.path() / "out", options);
  EXPECT_EQ(entries(folder.path() / "out"),
            (std::set<std::string>{"config.json", "generation_config.json", "model.safetensors", "quantize_config.json",
                                   "tokenizer.json"}));
  EXPECT_EQ(entries(folder.path()), (std::set<std::string>{"model", "out"}));
  const Checkpoint out(folder.path() / "out");
  EXPECT_FALSE(out.has("lm_head.weight"));
  EXPECT_EQ(out.tensor("model.embed_tokens.weight").dtype, DType::bf16);
  EXPECT_EQ(out.config().at("torch_dtype"), "bfloat16");
  EXPECT_EQ(out.config().at("tie_word_embeddings"), true);
}

TEST(QuantizerTest, QuantisesAHeadThatIsNotTied) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config());
  QuantizeOptions options = groups_of_32();
  options.lm_head = true;
  quantize_checkpoint(Checkpoint(model), random_sequences(4, 40, 128, 8), folder.path() / "out", options);
  const Checkpoint out(folder.path() / "out");
  EXPECT_TRUE(out.has("lm_head.qweight"));
  EXPECT_FALSE(out.has("lm_head.weight"));
  EXPECT_TRUE(find_quant_config(out.folder())->lm_head);

  const fs::path tied = folder.path() / "tied";
  synthesise(small_config("llama", true), tied, SynthOptions{});
  expect_error("tied to its embedding",
               [&] { quantize_checkpoint(Checkpoint(tied), {}, folder.path() / "no", options); });
}

TEST(QuantizerTest, RefusalsLeaveNothingBehind) {
  const TempFolder folder;
  const fs::path model = make_model(folder, small_config());
  const auto sequences = random_sequences(2, 40, 128, 8);
  const Checkpoint checkpoint(model);
  const fs::path out = folder.path() / "out";
  folder.write("out/keep.txt", "mine");
  expect_error("--overwrite", [&] { quantize_checkpoint(checkpoint, sequences, out, groups_of_32()); });
  QuantizeOptions options = groups_of_32();
  options.overwrite = true;
  expect_error("not in the model's vocabulary", [&] { quantize_checkpoint(checkpoint, {{5, 128}}, out, options); });
  expect_error("no calibration tokens", [&] { quantize_checkpoint(checkpoint, {}, out, options); });
  EXPECT_EQ(entries(folder.path()), (std::set<std::string>{"model", "out"}));
  EXPECT_EQ(entries(out), std::set<std::string>{"keep.txt"});

  quantize_checkpoint(checkpoint, sequences, out, options);
  EXPECT_FALSE(fs::exists(out / "keep.txt"));
  expect_error("quantised already",
               [&] { quantize_checkpoint(Checkpoint(out), sequences, folder.path() / "again", options); });

  // A value that f16 cannot hold.
  auto config = small_config();
  synthesise(config, folder.path() / "large", full(DType::bf16));
  {
    std::string bytes = bytes_of_file(folder.path() / "large/model.safetensors");
    const Checkpoint large(folder.path() / "large");
    const std::string whole(reinterpret_cast<const char*>(large.tensor("model.norm.weight").bytes.data()), 128);
    const std::uint16_t value = float_to_bf16(1e6F);
    std::memcpy(bytes.data() + bytes.find(whole), &value, 2);
    folder.write("large/model.safetensors", bytes);
  }
  expect_error("--keep-dtype", [&] {
    quantize_checkpoint(Checkpoint(folder.path() / "large"), sequences, folder.path() / "no", options);
  });
}

}  // namespace
}  // namespace nibble
