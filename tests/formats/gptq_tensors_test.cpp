#include "formats/gptq_tensors.h"

#include "core/float_convert.h"
#include "formats/gptq_pack.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <random>

namespace nibble {
namespace {

using test::expect_error;
using test::TempFolder;

/// The parts of one random linear, and a folder that it can be written to.
class Linear {
 public:
  Linear(int bits, std::int64_t in, std::int64_t out, std::int64_t group_size, bool sym = true)
      : bits_(bits), in_(in), out_(out), group_size_(group_size == -1 ? in : group_size) {
    std::mt19937 random(7);
    groups_ = (in_ + group_size_ - 1) / group_size_;
    codes_.resize(static_cast<std::size_t>(in_ * out_));
    for (auto& code : codes_) code = static_cast<std::uint8_t>(random() & mask());
    for (std::int64_t i = 0; i < groups_ * out_; ++i) {
      scales_.push_back(float_to_half(0.01f + 0.001f * static_cast<float>(random() % 100)));
      zeros_.push_back(static_cast<std::uint16_t>(sym ? 1u << (bits_ - 1) : random() & mask()));
    }
    for (std::int64_t k = 0; k < in_; ++k) g_idx_.push_back(static_cast<std::int32_t>(k / group_size_));
    config_.linear = {bits_, group_size, false, sym};
  }

  std::uint32_t mask() const { return (1u << bits_) - 1u; }

  /// Writes the tensors; `change` may alter them first.
  Checkpoint write(const std::function<void(std::map<std::string, Tensor>&)>& change = [](auto&) {}) {
    PackedGptq packed = pack_gptq({bits_, in_, out_, codes_, scales_, zeros_, g_idx_}, config_.zeros);
    std::map<std::string, Tensor> tensors;
    tensors.emplace("l.qweight", std::move(packed.qweight));
    tensors.emplace("l.qzeros", std::move(packed.qzeros));
    tensors.emplace("l.scales", std::move(packed.scales));
    tensors.emplace("l.g_idx", std::move(packed.g_idx));
    change(tensors);
    folder_.write("config.json", "{}");
    std::vector<TensorDeclaration> declared;
    for (const auto& [name, tensor] : tensors) declared.push_back({name, tensor.dtype(), tensor.shape()});
    SafetensorsWriter writer(folder_.path() / "model.safetensors", declared);
    for (const auto& [name, tensor] : tensors) writer.append(name, tensor.bytes());
    writer.commit();
    return Checkpoint(folder_.path());
  }

  void expect_loaded(const GptqTensors& loaded) const {
    EXPECT_EQ(loaded.bits, bits_);
    EXPECT_EQ(loaded.groups, groups_);
    EXPECT_EQ(loaded.group_size, group_size_);
    EXPECT_EQ(loaded.zeros, zeros_);
    EXPECT_EQ(loaded.g_idx, g_idx_);
    std::vector<std::uint8_t> codes(codes_.size());
    loaded.codes(0, in_, 0, out_, codes.data());
    EXPECT_EQ(codes, codes_);
    std::vector<float> row(static_cast<std::size_t>(in_));
    for (std::int64_t n = 0; n < out_; ++n) {
      loaded.dequantize_row(n, row.data());
      for (std::int64_t k = 0; k < in_; ++k) {
        const std::int64_t at = g_idx_[k] * out_ + n;
        ASSERT_EQ(row[k], half_to_float(scales_[at]) * static_cast<float>(codes_[k * out_ + n] - zeros_[at]))
            << n << ", " << k;
      }
    }
  }

  int bits_;
  std::int64_t in_, out_, group_size_, groups_ = 0;
  std::vector<std::uint8_t> codes_;
  std::vector<std::uint16_t> scales_, zeros_;
  std::vector<std::int32_t> g_idx_;
  QuantConfig config_;
  TempFolder folder_;
};

void fill_words(Tensor& tensor, const std::vector<std::uint32_t>& pattern) {
  auto words = tensor.as<std::uint32_t>();
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = pattern[i % pattern.size()];
}

class GptqTensorsTest : public testing::TestWithParam<int> {};

TEST_P(GptqTensorsTest, RoundTripsBothZeroFormatsAndAllKindsOfGroups) {
  for (const ZeroFormat format : {ZeroFormat::v1, ZeroFormat::v2}) {
    for (const std::int64_t group_size : {32, 64, -1}) {  // 64 does not divide 96: the last group is short
      for (const bool sym : {true, false}) {
        Linear linear(GetParam(), 96, 32, group_size, sym);
        linear.config_.zeros = format;
        const Checkpoint checkpoint = linear.write();
        const GptqTensors loaded = load_gptq(checkpoint, "l", linear.config_, 96, 32);
        linear.expect_loaded(loaded);
        EXPECT_EQ(loaded.sym, sym);
        EXPECT_FALSE(loaded.act_order);
        EXPECT_TRUE(loaded.bias.empty());
      }
    }
  }
}

TEST_P(GptqTensorsTest, TellsZeroFormatsApartByTheConstantsOfSymmetricFiles) {
  for (const ZeroFormat written : {ZeroFormat::v1, ZeroFormat::v2}) {
    Linear linear(GetParam(), 64, 32, 32);
    linear.config_.zeros = written;
    const Checkpoint checkpoint = linear.write();
    linear.config_.zeros = written == ZeroFormat::v1 ? ZeroFormat::v2 : ZeroFormat::v1;
    linear.expect_loaded(load_gptq(checkpoint, "l", linear.config_, 64, 32));
  }
}

TEST_P(GptqTensorsTest, BelievesShapesAboutTheWidth) {
  Linear linear(GetParam(), 64, 32, 32);
  const Checkpoint checkpoint = linear.write();
  linear.config_.linear.bits = GetParam() == 4 ? 8 : 4;
  linear.expect_loaded(load_gptq(checkpoint, "l", linear.config_, 64, 32));
}

INSTANTIATE_TEST_SUITE_P(Widths, GptqTensorsTest, testing::Values(2, 3, 4, 8));

TEST(GptqTensorsLoadTest, FindsActOrderInTheGroupNumbers) {
  Linear linear(4, 96, 32, 32);
  std::shuffle(linear.g_idx_.begin(), linear.g_idx_.end(), std::mt19937(1));
  const Checkpoint checkpoint = linear.write();
  const GptqTensors loaded = load_gptq(checkpoint, "l", linear.config_, 96, 32);
  linear.expect_loaded(loaded);
  EXPECT_TRUE(loaded.act_order);
}

TEST(GptqTensorsLoadTest, WorksWithoutGroupNumbers) {
  for (const bool placeholder : {false, true}) {
    Linear linear(4, 96, 32, 64);
    const Checkpoint checkpoint = linear.write([&](auto& tensors) {
      tensors.erase("l.g_idx");
      if (placeholder) tensors.emplace("l.g_idx", Tensor(DType::i32, {0}));
    });
    linear.expect_loaded(load_gptq(checkpoint, "l", linear.config_, 96, 32));
  }
}

TEST(GptqTensorsLoadTest, BelievesTensorsAboutTheGroupSize) {
  Linear linear(4, 128, 32, 32);
  const Checkpoint with_numbers = linear.write();
  linear.config_.linear.group_size = 128;
  linear.expect_loaded(load_gptq(with_numbers, "l", linear.config_, 128, 32));
  const Checkpoint without = linear.write([](auto& tensors) { tensors.erase("l.g_idx"); });
  linear.expect_loaded(load_gptq(without, "l", linear.config_, 128, 32));
}

TEST(GptqTensorsLoadTest, CutsPaddedOutputs) {
  Linear padded(4, 64, 64, 32, false);
  const Checkpoint checkpoint = padded.write([](auto& tensors) {
    Tensor bias(DType::f16, {64});
    for (auto& b : bias.as<std::uint16_t>()) b = float_to_half(0.5f);
    tensors.emplace("l.bias", std::move(bias));
  });
  const GptqTensors loaded = load_gptq(checkpoint, "l", padded.config_, 64, 40);
  EXPECT_EQ(loaded.out_features, 40);
  EXPECT_EQ(loaded.qweight_columns, 64);
  EXPECT_EQ(loaded.bias, std::vector<float>(40, 0.5f));
  ASSERT_EQ(loaded.zeros.size(), 2U * 40U);
  for (std::int64_t n = 0; n < 40; ++n) {
    EXPECT_EQ(loaded.zeros[40 + n], padded.zeros_[64 + n]);
    EXPECT_EQ(loaded.scales[40 + n], half_to_float(padded.scales_[64 + n]));
  }
  std::uint8_t code = 0;
  loaded.codes(63, 64, 39, 40, &code);
  EXPECT_EQ(code, padded.codes_[63 * 64 + 39]);
  expect_error("24 columns", [&] { load_gptq(checkpoint, "l", padded.config_, 64, 24); });
}

TEST(GptqTensorsLoadTest, DropsBiasesThatAreAllZero) {
  Linear linear(4, 64, 32, 32);
  const Checkpoint checkpoint = linear.write([](auto& tensors) {
    Tensor bias(DType::f32, {32});
    for (float& b : bias.as<float>()) b = 0.0f;
    tensors.emplace("l.bias", std::move(bias));
  });
  EXPECT_TRUE(load_gptq(checkpoint, "l", linear.config_, 64, 32).bias.empty());
}

// A z = 0 next to others, packed as GPTQModel does it: one subtraction over the whole word.
TEST(GptqTensorsLoadTest, UndoesTheWordArithmeticOfGptqModel) {
  Linear linear(4, 64, 32, 64, false);
  linear.zeros_[3] = 0;
  linear.zeros_[4] = 5;
  linear.config_.zeros = ZeroFormat::v2;
  const Checkpoint checkpoint = linear.write([](auto& tensors) {
    for (auto& word : tensors.at("l.qzeros").template as<std::uint32_t>()) word -= 0x11111111u;
  });
  linear.config_.zeros = ZeroFormat::v1;
  linear.config_.quantizers = {"gptqmodel:2.0.0"};
  linear.expect_loaded(load_gptq(checkpoint, "l", linear.config_, 64, 32));
}

// A field of all ones is z = 0 in v1: -1 did not fit.
TEST(GptqTensorsLoadTest, WrapsAStoredMinusOne) {
  Linear linear(4, 64, 32, 64, false);
  std::fill(linear.zeros_.begin(), linear.zeros_.end(), std::uint16_t{0});
  const Checkpoint checkpoint = linear.write([](auto& tensors) { fill_words(tensors.at("l.qzeros"), {0xFFFFFFFFu}); });
  linear.expect_loaded(load_gptq(checkpoint, "l", linear.config_, 64, 32));
}

TEST(GptqTensorsLoadTest, RepairsThreeBitZerosOfOldGptqModel) {
  Linear linear(3, 64, 64, 32);
  const Checkpoint checkpoint =
      linear.write([](auto& tensors) { fill_words(tensors.at("l.qzeros"), {0x00000000u, 0xB6DB6DB7u, 0x49249249u}); });
  linear.expect_loaded(load_gptq(checkpoint, "l", linear.config_, 64, 64));
}

TEST(GptqTensorsLoadTest, ReadsWordsAtOddAddresses) {
  Linear linear(4, 64, 32, 32);
  linear.write();
  // The same file with a header that ends at an odd byte.
  const auto path = linear.folder_.path() / "model.safetensors";
  std::string file = read_text_file(path, 1 << 20);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  std::string header = file.substr(8, length);
  header.erase(header.find_last_not_of(' ') + 1);
  while ((header.size() + 8) % 4 != 1) header += ' ';
  const std::uint64_t new_length = header.size();
  std::string changed(8, '\0');
  std::memcpy(changed.data(), &new_length, sizeof new_length);
  write_text_file(path, changed + header + file.substr(8 + length));
  const Checkpoint checkpoint(linear.folder_.path());
  const GptqTensors loaded = load_gptq(checkpoint, "l", linear.config_, 64, 32);
  EXPECT_NE(loaded.qweight_copy, nullptr);
  const GptqTensors copy = loaded;
  linear.expect_loaded(copy);
}

TEST(GptqTensorsLoadTest, NamesTheTensorThatDoesNotFit) {
  const auto refused = [](std::string_view part, const std::function<void(std::map<std::string, Tensor>&)>& change) {
    Linear linear(4, 64, 32, 32);
    const Checkpoint checkpoint = linear.write(change);
    expect_error(part, [&] { load_gptq(checkpoint, "l", linear.config_, 64, 32); });
  };
  const auto replace = [](const char* name, DType dtype, Shape shape) {
    return [=](std::map<std::string, Tensor>& tensors) {
      Tensor tensor(dtype, shape);
      std::fill(tensor.bytes().begin(), tensor.bytes().end(), std::byte{1});
      tensors.insert_or_assign(name, std::move(tensor));
    };
  };
  refused("has no tensor l.qweight", [](auto& tensors) { tensors.erase("l.qweight"); });
  refused("has no tensor l.scales", [](auto& tensors) { tensors.erase("l.scales"); });
  refused("has no tensor l.qzeros", [](auto& tensors) { tensors.erase("l.qzeros"); });
  refused("l.qweight is i32 of shape [9, 32], but 64 inputs, 32 outputs and 4 bits need 8 rows",
          replace("l.qweight", DType::i32, {9, 32}));
  refused("need 32 columns", replace("l.qweight", DType::i32, {8, 16}));
  refused("an i32 tensor of 2 dimensions", replace("l.qweight", DType::f32, {8, 32}));
  refused("an i32 tensor of 2 dimensions", replace("l.qweight", DType::i32, {256}));
  refused("l.scales is f16 of shape [2, 16]", replace("l.scales", DType::f16, {2, 16}));
  refused("l.scales is i32", replace("l.scales", DType::i32, {2, 32}));
  refused("l.scales is f16 of shape [0, 32]", replace("l.scales", DType::f16, {0, 32}));
  refused("l.qzeros is i32 of shape [2, 3]", replace("l.qzeros", DType::i32, {2, 3}));
  refused("l.qzeros is i32 of shape [1, 4]", replace("l.qzeros", DType::i32, {1, 4}));
  refused("an i32 tensor of 1 dimension", replace("l.g_idx", DType::i32, {1, 64}));
  refused("l.g_idx is i32 of shape [63]", replace("l.g_idx", DType::i32, {63}));
  refused("l.g_idx puts input feature 0 in group 16843009", replace("l.g_idx", DType::i32, {64}));
  refused("l.bias is f16 of shape [31]", replace("l.bias", DType::f16, {31}));
}

TEST(GptqTensorsLoadTest, RefusesNegativeGroupsAndImpossibleSizes) {
  Linear linear(4, 64, 32, 32);
  const Checkpoint checkpoint =
      linear.write([](auto& tensors) { tensors.at("l.g_idx").template as<std::int32_t>()[5] = -1; });
  expect_error("input feature 5 in group -1", [&] { load_gptq(checkpoint, "l", linear.config_, 64, 32); });
  expect_error("makes no sense", [&] { load_gptq(checkpoint, "l", linear.config_, 0, 32); });
  expect_error("makes no sense", [&] { load_gptq(checkpoint, "l", linear.config_, INT64_MAX, 32); });
}

TEST(GptqTensorsLoadTest, RefusesAModuleThatDynamicExcludes) {
  Linear linear(4, 64, 32, 32);
  const Checkpoint checkpoint = linear.write();
  const QuantConfig config = parse_quant_config(R"({"bits": 4, "group_size": 32, "dynamic": {"-:l": {}}})", "q.json");
  expect_error("says that this module is not quantised", [&] { load_gptq(checkpoint, "l", config, 64, 32); });
}

TEST(PackGptqTest, RefusesPartsThatDoNotFit) {
  const std::vector<std::uint8_t> codes(32 * 8, 4);
  const std::vector<std::uint16_t> scales(8, 1);
  const std::vector<std::uint16_t> zeros(8, 3);
  const std::vector<std::uint16_t> wide_zeros(8, 8);
  const std::vector<std::int32_t> g_idx(32, 0);
  const std::vector<std::int32_t> far_groups(32, 1);
  EXPECT_NO_THROW(pack_gptq({4, 32, 8, codes, scales, zeros, g_idx}, ZeroFormat::v1));
  expect_error("code does not fit in 2 bits",
               [&] { pack_gptq({2, 32, 8, codes, scales, zeros, g_idx}, ZeroFormat::v1); });
  expect_error("zero point does not fit in 3 bits",
               [&] { pack_gptq({3, 32, 8, codes, scales, wide_zeros, g_idx}, ZeroFormat::v1); });
  expect_error("not below 1", [&] { pack_gptq({4, 32, 8, codes, scales, zeros, far_groups}, ZeroFormat::v1); });
  expect_error("codes of 5 bits", [&] { pack_gptq({5, 32, 8, codes, scales, zeros, g_idx}, ZeroFormat::v1); });
  expect_error("do not fit each other", [&] { pack_gptq({4, 32, 9, codes, scales, zeros, g_idx}, ZeroFormat::v1); });
}

}  // namespace
}  // namespace nibble
