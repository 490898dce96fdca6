#include "formats/quant_config.h"

#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using test::expect_error;
using test::TempFolder;

QuantConfig parse(std::string_view text) { return parse_quant_config(text, "q.json"); }

TEST(QuantConfigTest, ReadsWhatAutoGptqWrites) {
  const QuantConfig config =
      parse(R"({"bits": 3, "group_size": -1, "damp_percent": 0.02, "desc_act": true, "static_groups": true,
      "sym": false, "true_sequential": false, "model_name_or_path": null, "model_file_base_name": null, "quant_method": "gptq",
      "checkpoint_format": "gptq_v2"})");
  EXPECT_EQ(config.linear.bits, 3);
  EXPECT_EQ(config.linear.group_size, -1);
  EXPECT_TRUE(config.linear.desc_act);
  EXPECT_FALSE(config.linear.sym);
  EXPECT_TRUE(config.static_groups);
  EXPECT_FALSE(config.true_sequential);
  EXPECT_EQ(config.damp_percent, 0.02);
  EXPECT_EQ(config.zeros, ZeroFormat::v2);
  EXPECT_EQ(config.source, "q.json");
}

TEST(QuantConfigTest, ReadsSynonymsInAnyCase) {
  const QuantConfig config = parse(R"({"Wbits": 8, "Q_Group_Size": 32, "Format": "GPTQ_V2", "method": "gptq"})");
  EXPECT_EQ(config.linear.bits, 8);
  EXPECT_EQ(config.linear.group_size, 32);
  EXPECT_EQ(config.zeros, ZeroFormat::v2);
  EXPECT_EQ(parse(R"({"w_bit": 2, "bits": 4})").linear.bits, 4);
}

TEST(QuantConfigTest, TakesTheUsualMeaningOfAbsentKeys) {
  const QuantConfig config = parse(R"({"bits": 4})");
  EXPECT_EQ(config.linear.group_size, 128);
  EXPECT_TRUE(config.linear.sym);
  EXPECT_FALSE(config.linear.desc_act);
  EXPECT_EQ(config.zeros, ZeroFormat::v1);
  EXPECT_FALSE(config.lm_head);
}

TEST(QuantConfigTest, SaysWhatItDoesNotRead) {
  expect_error("quantised with awq, which nibble does not read",
               [] { parse(R"({"quant_method": "awq", "bits": 4})"); });
  expect_error("quantised with awq",
               [] { parse(R"({"w_bit": 4, "q_group_size": 128, "zero_point": true, "version": "GEMM"})"); });
  expect_error("layout marlin", [] { parse(R"({"bits": 4, "checkpoint_format": "marlin"})"); });
  expect_error("layout marlin", [] { parse(R"({"bits": 4, "is_marlin_format": true})"); });
  expect_error("layout marlin", [] { parse(R"({"bits": 4, "quant_method": "marlin"})"); });
  expect_error("layout bitblas", [] { parse(R"({"bits": 4, "format": "bitblas"})"); });
  expect_error("layout gptq_p", [] { parse(R"({"bits": 4, "format": "gptq_p"})"); });
  expect_error("rotation is \"hadamard\"", [] { parse(R"({"bits": 4, "rotation": "hadamard"})"); });
  expect_error("pack_dtype is int8", [] { parse(R"({"bits": 4, "pack_dtype": "int8"})"); });
  expect_error("bits should be 2, 3, 4 or 8, found 5", [] { parse(R"({"bits": 5})"); });
  expect_error("bits is missing", [] { parse("{}"); });
  expect_error("group_size should be -1 or a positive integer, found 0",
               [] { parse(R"({"bits": 4, "group_size": 0})"); });
  expect_error("sym should be true or false, found \"yes\"", [] { parse(R"({"bits": 4, "sym": "yes"})"); });
  expect_error("should be an object", [] { parse("[]"); });
}

TEST(QuantConfigTest, AppliesTheFirstDynamicRuleInTheOrderOfTheFile) {
  const QuantConfig config = parse(R"({"bits": 4, "group_size": 128, "dynamic": {
      "-:.*\\.v_proj": {},
      "+:.*layers\\.1\\..*": {"bits": 8, "group_size": 32},
      ".*layers\\.1[0-9]\\.": {"desc_act": true, "sym": false},
      ".*": {"bits": 2}}})");
  EXPECT_FALSE(config.for_module("model.layers.1.self_attn.v_proj"));
  EXPECT_EQ(config.for_module("model.layers.1.mlp.up_proj")->bits, 8);
  EXPECT_EQ(config.for_module("model.layers.1.mlp.up_proj")->group_size, 32);
  EXPECT_EQ(config.for_module("model.layers.12.mlp.up_proj")->bits, 4);
  EXPECT_TRUE(config.for_module("model.layers.12.mlp.up_proj")->desc_act);
  EXPECT_FALSE(config.for_module("model.layers.12.mlp.up_proj")->sym);
  EXPECT_EQ(config.for_module("model.layers.2.mlp.up_proj")->bits, 2);
}

TEST(QuantConfigTest, MatchesPatternsFromTheStartOnly) {
  const QuantConfig config =
      parse(R"({"bits": 4, "dynamic": {"layers\\.0": {"bits": 8}, "model\\.layers\\.1": {"bits": 8}}})");
  EXPECT_EQ(config.for_module("model.layers.0.x")->bits, 4);
  EXPECT_EQ(config.for_module("model.layers.10.x")->bits, 8);
}

TEST(QuantConfigTest, RefusesBadAndHostilePatterns) {
  expect_error("is not a regular expression", [] { parse(R"({"bits": 4, "dynamic": {"(": {}}})"); });
  expect_error("dynamic should be an object", [] { parse(R"({"bits": 4, "dynamic": [1]})"); });
  expect_error("dynamic.a.bits should be 2, 3, 4 or 8", [] { parse(R"({"bits": 4, "dynamic": {"a": {"bits": 7}}})"); });
  expect_error("dynamic.a should be an object, found 3", [] { parse(R"({"bits": 4, "dynamic": {"a": 3}})"); });
  expect_error("a pattern of dynamic has 2000 characters",
               [] { parse(R"({"bits": 4, "dynamic": {")" + std::string(2000, 'a') + R"(": {}}})"); });
  const QuantConfig config = parse(R"({"bits": 4, "dynamic": {"(a+a+)+(a+a+)+[bc]": {}}})");
  expect_error("takes too many steps", [&] { (void)config.for_module(std::string(60, 'a')); });
}

TEST(QuantConfigTest, RecognisesGptqModel) {
  EXPECT_TRUE(parse(R"({"bits": 4, "meta": {"quantizer": "gptqmodel:7.3.4"}})").packed_by_gptqmodel());
  EXPECT_TRUE(
      parse(R"({"bits": 4, "meta": {"quantizer": ["optimum:1.2", "gptqmodel:0.9.11"]}})").packed_by_gptqmodel());
  EXPECT_FALSE(parse(R"({"bits": 4, "meta": {"quantizer": "gptqmodel:0.8.9"}})").packed_by_gptqmodel());
  EXPECT_FALSE(parse(R"({"bits": 4, "meta": {"quantizer": "gptqmodel:"}})").packed_by_gptqmodel());
  EXPECT_FALSE(parse(R"({"bits": 4, "meta": {"quantizer": "other:9.0"}})").packed_by_gptqmodel());
  EXPECT_FALSE(parse(R"({"bits": 4})").packed_by_gptqmodel());
}

TEST(QuantConfigTest, WritesWhatItReads) {
  const QuantConfig config =
      parse(R"({"bits": 8, "group_size": 32, "desc_act": true, "sym": false, "format": "gptq_v2", "lm_head": true,
      "static_groups": true, "true_sequential": false, "damp_percent": 0.05, "meta": {"quantizer": "x:1"},
      "modules_in_block_to_quantize": [["a", "b"], ["c"]], "dynamic": {"-:z": {}, "a": {"bits": 2, "sym": true}}})");
  const nlohmann::ordered_json json = config.to_json();
  for (const char* key : {"quant_method", "checkpoint_format", "format", "pack_dtype"})
    EXPECT_TRUE(json[key].is_string()) << key;
  const QuantConfig again = parse(json.dump());
  EXPECT_EQ(again.to_json(), json);
  EXPECT_EQ(again.linear.bits, 8);
  EXPECT_EQ(again.zeros, ZeroFormat::v2);
  EXPECT_TRUE(again.lm_head);
  EXPECT_EQ(again.modules_in_block_to_quantize, (std::vector<std::vector<std::string>>{{"a", "b"}, {"c"}}));
  EXPECT_FALSE(again.for_module("zebra"));
  EXPECT_EQ(again.for_module("a")->bits, 2);
}

TEST(FindQuantConfigTest, LooksInEveryPlaceInOrder) {
  const TempFolder folder;
  EXPECT_FALSE(find_quant_config(folder.path()));
  folder.write("config.json", R"({"quantization_config": null})");
  EXPECT_FALSE(find_quant_config(folder.path()));
  folder.write("quant_config.json", R"({"bits": 2})");
  EXPECT_EQ(find_quant_config(folder.path())->linear.bits, 2);
  folder.write("quantization_config.json", R"({"bits": 3})");
  EXPECT_EQ(find_quant_config(folder.path())->linear.bits, 3);
  folder.write("quantize_config.json", R"({"bits": 4})");
  EXPECT_EQ(find_quant_config(folder.path())->linear.bits, 4);
  folder.write("config.json", R"({"quantization_config": {"bits": 8}})");
  EXPECT_EQ(find_quant_config(folder.path())->linear.bits, 8);
  folder.write("config.json", R"({"quantization_config": {"bits": "x"}})");
  expect_error("config.json: quantization_config: bits should be an integer, found \"x\"",
               [&] { (void)find_quant_config(folder.path()); });
}

}  // namespace
}  // namespace nibble
