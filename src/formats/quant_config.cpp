#define PCRE2_CODE_UNIT_WIDTH 8

#include "formats/quant_config.h"

#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "formats/json.h"

#include <pcre2.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

namespace nibble {

/// A regular expression as GPTQModel takes it: matched at the start of a name only.
struct QuantConfig::Rule::Pattern {
  Pattern(const std::string& text, std::string_view where) {
    int code = 0;
    PCRE2_SIZE offset = 0;
    compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                             PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &offset, nullptr);
    if (compiled == nullptr) {
      std::array<PCRE2_UCHAR, 256> message{};
      pcre2_get_error_message(code, message.data(), message.size());
      fail("{}: the pattern {} of dynamic is not a regular expression: {} (at {})", where, text,
           reinterpret_cast<const char*>(message.data()), offset);
    }
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
  ~Pattern() { pcre2_code_free(compiled); }

  bool matches(std::string_view module, const std::string& expression) const {
    struct Free {
      void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
      void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
    };
    const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create_from_pattern(compiled, nullptr));
    const std::unique_ptr<pcre2_match_context, Free> context(pcre2_match_context_create(nullptr));
    if (!data || !context) fail("no memory to match the pattern {}", expression);
    // Names have some 50 characters; a pattern that needs more steps than this backtracks without end.
    constexpr std::uint32_t kStepLimit = 100'000;
    pcre2_set_match_limit(context.get(), kStepLimit);
    const int result = pcre2_match(compiled, reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0, 0,
                                   data.get(), context.get());
    if (result < PCRE2_ERROR_NOMATCH)
      fail("the pattern {} of dynamic cannot be matched against {}: it takes too many steps", expression, module);
    return result >= 0;
  }

  pcre2_code* compiled = nullptr;
};

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::size_t kConfigLimit = std::size_t{16} << 20;
/// More rules, or longer ones, than any real file has: each costs a compiled pattern.
constexpr std::size_t kRuleLimit = 10'000;
constexpr std::size_t kPatternLimit = 1'000;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

/// Copies an object with lower-case keys, synonyms replaced by the usual name; the usual name wins over a synonym.
Json normalised(const nlohmann::ordered_json& object) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kSynonyms = {
      {{"w_bit", "bits"},
       {"wbits", "bits"},
       {"q_group_size", "group_size"},
       {"method", "quant_method"},
       {"format", "checkpoint_format"}}};
  Json out = Json::object();
  for (const auto& [key, value] : object.items()) out[lower(key)] = Json(value);
  for (const auto& [synonym, name] : kSynonyms) {
    const auto it = out.find(synonym);
    if (it != out.end() && !out.contains(name)) out[std::string(name)] = *it;
  }
  return out;
}

int read_bits(const JsonView& view) {
  const std::int64_t bits = view.integer("bits");
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) view.refuse("bits", "2, 3, 4 or 8");
  return static_cast<int>(bits);
}

std::int64_t read_group_size(const JsonView& view) {
  const std::int64_t group_size = view.integer("group_size");
  if (group_size != -1 && group_size <= 0) view.refuse("group_size", "-1 or a positive integer");
  return group_size;
}

[[noreturn]] void refuse_method(std::string_view where, std::string_view what) {
  fail(
      "{}: the model is quantised with {}, which nibble does not read; use a checkpoint of the GPTQ method in format "
      "gptq or gptq_v2, "
      "or quantise the original model with `nibble quantize`",
      where, what);
}

void check_supported(const JsonView& view) {
  const std::string& where = view.where();
  std::string method = lower(view.text("quant_method", "gptq"));
  std::string format = lower(view.text("checkpoint_format", ""));
  // AutoAWQ's own file names no method; only it has these keys.
  if (!view.has("quant_method") && view.has("zero_point") && view.has("version")) method = "awq";
  if (method == "marlin" || method == "bitblas") {
    format = method;
    method = "gptq";
  }
  if (method != "gptq") refuse_method(where, method);
  const bool says_marlin = view.has("is_marlin_format") && view.boolean("is_marlin_format");
  if (says_marlin) format = "marlin";
  if (!format.empty() && format != "gptq" && format != "gptq_v2") {
    refuse_method(where, fmt::format("GPTQ in the tensor layout {}", format));
  }
  if (const std::string word = view.text("pack_dtype", "int32"); lower(word) != "int32") {
    fail("{}: pack_dtype is {}, but nibble reads GPTQ tensors packed in int32 words only", where, word);
  }
  if (view.has("rotation")) {
    fail("{}: rotation is {}: the model needs its inputs rotated as it runs, which nibble does not do", where,
         json_excerpt(view.value().at("rotation")));
  }
  if (view.has("adapter"))
    log_warn(fmt::format("{}: the adapter is ignored; only the quantised base model is used", where));
}

std::vector<std::vector<std::string>> read_module_groups(const JsonView& view) {
  constexpr std::string_view kKey = "modules_in_block_to_quantize";
  std::vector<std::vector<std::string>> groups;
  if (!view.has(kKey)) return groups;
  const Json& list = view.value().at(std::string(kKey));
  if (!list.is_array()) view.refuse(kKey, "a list of lists of names");
  for (const Json& group : list) {
    // Some files have one flat list, which stands for groups of one.
    if (group.is_string()) {
      groups.push_back({group.get<std::string>()});
      continue;
    }
    if (!group.is_array()) view.refuse(kKey, "a list of lists of names");
    groups.emplace_back();
    for (const Json& name : group) {
      if (!name.is_string()) view.refuse(kKey, "a list of lists of names");
      groups.back().push_back(name.get<std::string>());
    }
  }
  return groups;
}

QuantConfig::Rule read_rule(const std::string& key, const nlohmann::ordered_json& value, const std::string& where) {
  QuantConfig::Rule rule;
  rule.excludes = key.starts_with("-:");
  rule.text = rule.excludes || key.starts_with("+:") ? key.substr(2) : key;
  if (rule.text.size() > kPatternLimit)
    fail("{}: a pattern of dynamic has {} characters, more than {}", where, rule.text.size(), kPatternLimit);
  rule.pattern = std::make_shared<const QuantConfig::Rule::Pattern>(rule.text, where);
  if (rule.excludes) return rule;
  if (!value.is_object()) fail("{}: dynamic.{} should be an object, found {}", where, key, json_excerpt(Json(value)));
  const Json overrides = normalised(value);
  const JsonView view(overrides, where, "dynamic." + key);
  if (view.has("bits")) rule.bits = read_bits(view);
  if (view.has("group_size")) rule.group_size = read_group_size(view);
  if (view.has("desc_act")) rule.desc_act = view.boolean("desc_act");
  if (view.has("sym")) rule.sym = view.boolean("sym");
  return rule;
}

std::vector<std::string> read_quantizers(const JsonView& view) {
  const auto meta = view.object("meta");
  if (!meta || !meta->has("quantizer")) return {};
  const Json& value = meta->value().at("quantizer");
  return value.is_string() ? std::vector{value.get<std::string>()} : meta->texts("quantizer");
}

QuantConfig from_json(const nlohmann::ordered_json& json, const std::string& where) {
  if (!json.is_object())
    fail("{}: the quantisation configuration should be an object, found {}", where, json_excerpt(Json(json)));
  const Json values = normalised(json);
  const JsonView view(values, where);
  check_supported(view);
  QuantConfig config;
  config.source = where;
  config.linear.bits = read_bits(view);
  // Absent, it is 128 for those who leave it out (transformers, GPTQModel); shapes are checked against it at load.
  if (view.has("group_size")) config.linear.group_size = read_group_size(view);
  config.linear.desc_act = view.boolean("desc_act", false);
  config.linear.sym = view.boolean("sym", true);
  config.zeros = lower(view.text("checkpoint_format", "gptq")) == "gptq_v2" ? ZeroFormat::v2 : ZeroFormat::v1;
  config.lm_head = view.boolean("lm_head", false);
  config.true_sequential = view.boolean("true_sequential", true);
  config.static_groups = view.boolean("static_groups", false);
  config.damp_percent = view.number("damp_percent", config.damp_percent);
  config.modules_in_block_to_quantize = read_module_groups(view);
  config.quantizers = read_quantizers(view);
  for (const auto& [key, value] : json.items()) {
    if (lower(key) != "dynamic" || value.is_null()) continue;
    if (!value.is_object()) fail("{}: dynamic should be an object, found {}", where, json_excerpt(Json(value)));
    if (value.size() > kRuleLimit) fail("{}: dynamic has {} rules, more than {}", where, value.size(), kRuleLimit);
    for (const auto& [pattern, overrides] : value.items())
      config.dynamic.push_back(read_rule(pattern, overrides, where));
  }
  return config;
}

}  // namespace

std::optional<LinearQuant> QuantConfig::for_module(std::string_view module) const {
  for (const Rule& rule : dynamic) {
    if (!rule.pattern->matches(module, rule.text)) continue;
    if (rule.excludes) return std::nullopt;
    return LinearQuant{rule.bits.value_or(linear.bits), rule.group_size.value_or(linear.group_size),
                       rule.desc_act.value_or(linear.desc_act), rule.sym.value_or(linear.sym)};
  }
  return linear;
}

bool QuantConfig::packed_by_gptqmodel() const {
  constexpr std::string_view kName = "gptqmodel:";
  return std::any_of(quantizers.begin(), quantizers.end(), [&](const std::string& tool) {
    if (!lower(tool).starts_with(kName)) return false;
    int major = 0;
    int minor = 0;
    const char* const end = tool.data() + tool.size();
    const auto [after, error] = std::from_chars(tool.data() + kName.size(), end, major);
    if (error != std::errc()) return false;
    if (after != end && *after == '.') std::from_chars(after + 1, end, minor);
    return major > 0 || minor >= 9;
  });
}

nlohmann::ordered_json QuantConfig::to_json() const {
  const char* const format = zeros == ZeroFormat::v2 ? "gptq_v2" : "gptq";
  nlohmann::ordered_json json = {
      {"bits", linear.bits},
      {"group_size", linear.group_size},
      {"desc_act", linear.desc_act},
      {"sym", linear.sym},
      {"lm_head", lm_head},
      {"quant_method", "gptq"},
      {"checkpoint_format", format},
      {"format", format},
      {"pack_dtype", "int32"},
      {"damp_percent", damp_percent},
      {"true_sequential", true_sequential},
      {"static_groups", static_groups},
  };
  if (!modules_in_block_to_quantize.empty()) json["modules_in_block_to_quantize"] = modules_in_block_to_quantize;
  if (!dynamic.empty()) {
    auto& rules = json["dynamic"] = nlohmann::ordered_json::object();
    for (const Rule& rule : dynamic) {
      auto& overrides = rules[(rule.excludes ? "-:" : "+:") + rule.text] = nlohmann::ordered_json::object();
      if (rule.bits) overrides["bits"] = *rule.bits;
      if (rule.group_size) overrides["group_size"] = *rule.group_size;
      if (rule.desc_act) overrides["desc_act"] = *rule.desc_act;
      if (rule.sym) overrides["sym"] = *rule.sym;
    }
  }
  if (!quantizers.empty()) json["meta"] = {{"quantizer", quantizers}};
  return json;
}

QuantConfig parse_quant_config(std::string_view text, std::string_view where) {
  return from_json(parse_ordered_json(text, where), std::string(where));
}

std::optional<QuantConfig> find_quant_config(const fs::path& folder) {
  std::error_code ignored;
  const fs::path config = folder / "config.json";
  if (fs::exists(config, ignored)) {
    const nlohmann::ordered_json json = parse_ordered_json(read_text_file(config, kConfigLimit), config.string());
    if (const auto it = json.find("quantization_config"); it != json.end() && !it->is_null()) {
      return from_json(*it, config.string() + ": quantization_config");
    }
  }
  for (const char* name : {"quantize_config.json", "quantization_config.json", "quant_config.json"}) {
    const fs::path path = folder / name;
    if (fs::exists(path, ignored)) return parse_quant_config(read_text_file(path, kConfigLimit), path.string());
  }
  return std::nullopt;
}

}  // namespace nibble
