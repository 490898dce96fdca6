#include "formats/gguf_tokenizer.h"

#include "core/error.h"
#include "core/log.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <unordered_map>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kSpace = "\u2581";  // what sentencepiece writes for a space

/// Values of tokenizer.ggml.token_type.
enum TokenType : std::int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

/// The split of Llama 3, and of Qwen 2 where `digits` is one: contractions, words with one character before them,
/// numbers in groups, symbols with the line ends after them, line ends, spaces.
std::string split_pattern(std::string_view digits) {
  constexpr std::string_view kBefore = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
  constexpr std::string_view kAfter = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  return fmt::format("{}{}{}", kBefore, digits, kAfter);
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json sequence(std::string_view key, Json parts) { return {{"type", "Sequence"}, {std::string(key), std::move(parts)}}; }

Json split_then_bytes(std::string_view digits) {
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", split_pattern(digits)}}}, {"behavior", "Isolated"}, {"invert", false}};
  return sequence("pretokenizers", Json::array({split, byte_level(false)}));
}

/// How text is cut before merging, by the name that tokenizer.ggml.pre gives it.
struct PreTokenizer {
  Json json;
  bool ignore_merges = false;  // a piece that is a token as a whole is that token
  bool nfc = false;
  bool bos_by_default = false;
};

PreTokenizer pre_tokenizer(const GgufContents& gguf) {
  const std::string_view name = gguf.text("tokenizer.ggml.pre", "default");
  const auto is = [name](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (is({"gpt-2", "olmo", "mpt"})) return {byte_level(true)};
  if (is({"default"})) {
    log_warn(
        fmt::format("{} does not say how its tokenizer cuts text; it is taken to do so as GPT-2's does", gguf.where()));
    return {byte_level(true)};
  }
  if (is({"smollm", "starcoder", "refact", "command-r"})) {
    const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
    return {sequence("pretokenizers", Json::array({digits, byte_level(true)}))};
  }
  if (is({"llama-bpe", "llama3", "llama-v3"})) return {split_then_bytes(R"(\p{N}{1,3})"), true, false, true};
  if (is({"qwen2", "stablelm2", "deepseek-r1-qwen"})) return {split_then_bytes(R"(\p{N})"), false, true};
  fail("{}: tokenizer.ggml.pre is {}, a pre-tokenizer that nibble does not know", gguf.where(), name);
}

std::vector<std::int64_t> token_types(const GgufContents& gguf, std::size_t count) {
  std::vector<std::int64_t> types = gguf.integers("tokenizer.ggml.token_type");
  if (types.empty()) types.assign(count, kNormal);
  if (types.size() != count) fail("{}: {} tokens have {} token types", gguf.where(), count, types.size());
  return types;
}

std::optional<std::int64_t> special_id(const GgufContents& gguf, std::string_view name, std::size_t count) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  if (!gguf.has(key)) return std::nullopt;
  const std::int64_t id = gguf.integer(key);
  if (id < 0 || id >= static_cast<std::int64_t>(count))
    fail("{}: {} is {}, but there are {} tokens", gguf.where(), key, id, count);
  return id;
}

bool adds_bos(const GgufContents& gguf) {
  const bool sentencepiece = gguf.text("tokenizer.ggml.model") == "llama";
  return gguf.boolean("tokenizer.ggml.add_bos_token", sentencepiece || pre_tokenizer(gguf).bos_by_default);
}

/// The template that puts bos before and eos after a text, as far as the file wants them; null where it wants neither.
Json template_processor(const GgufContents& gguf, const std::vector<std::string_view>& tokens) {
  const auto bos = adds_bos(gguf) ? special_id(gguf, "bos", tokens.size()) : std::nullopt;
  const auto eos =
      gguf.boolean("tokenizer.ggml.add_eos_token", false) ? special_id(gguf, "eos", tokens.size()) : std::nullopt;
  if (!bos && !eos) return nullptr;
  Json specials = Json::object();
  const auto special = [&](std::int64_t id, int type) -> Json {
    const std::string token(tokens[id]);
    specials[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
    return {{"SpecialToken", {{"id", token}, {"type_id", type}}}};
  };
  Json single = Json::array();
  Json pair = Json::array();
  for (const int type : {0, 1}) {
    Json part = Json::array();
    if (bos) part.push_back(special(*bos, type));
    part.push_back({{"Sequence", {{"id", type == 0 ? "A" : "B"}, {"type_id", type}}}});
    if (eos) part.push_back(special(*eos, type));
    if (type == 0) single = part;
    pair.insert(pair.end(), part.begin(), part.end());
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

/// Tokens that are found in a text as they stand. The unknown token is one in Hugging Face's files too.
Json added_tokens(const std::vector<std::string_view>& tokens, const std::vector<std::int64_t>& types) {
  Json added = Json::array();
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const bool special = types[id] == kControl || types[id] == kUnknown;
    if ((!special && types[id] != kUserDefined) || tokens[id].empty()) continue;
    added.push_back({{"id", id},
                     {"content", std::string(tokens[id])},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", special}});
  }
  return added;
}

/// Fillers that only make the vocabulary rounder (type "unused") are left out.
Json vocabulary(const GgufContents& gguf, const std::vector<std::string_view>& tokens,
                const std::vector<std::int64_t>& types) {
  std::unordered_map<std::string_view, std::size_t> seen;
  Json vocab = Json::object();
  auto& entries = vocab.get_ref<Json::object_t&>();
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] == kUnused) continue;
    const auto [it, is_new] = seen.emplace(tokens[id], id);
    if (!is_new) fail("{}: tokens {} and {} are the same", gguf.where(), it->second, id);
    // Appending without looking for the key: an ordered object is a list, and a search for each key would take minutes.
    entries.emplace_back(std::string(tokens[id]), id);
  }
  return vocab;
}

/// One merge as tokenizer.json writes it.
Json merge_of(std::string_view left, std::string_view right) { return std::string(left) + " " + std::string(right); }

/// Sentencepiece has no merges: it joins the two neighbours whose join is the token of the highest score. So every way
/// to put a token together from two others is a merge, and the token's score is its rank.
Json merges_from_scores(const GgufContents& gguf, const std::vector<std::string_view>& tokens,
                        const std::vector<std::int64_t>& types) {
  // Splitting costs length squared; no real piece is a tenth as long.
  constexpr std::size_t kLongestToken = 512;
  const std::vector<double> scores = gguf.numbers("tokenizer.ggml.scores");
  if (scores.size() != tokens.size()) fail("{}: {} tokens have {} scores", gguf.where(), tokens.size(), scores.size());
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] == kNormal) ids.emplace(tokens[id], id);
  }
  struct Merge {
    double score;
    std::size_t left, right;
  };
  std::vector<Merge> merges;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    if (types[id] != kNormal || token.size() > kLongestToken) continue;
    const std::size_t first = merges.size();
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids.find(token.substr(0, cut));
      if (left == ids.end()) continue;
      const auto right = ids.find(token.substr(cut));
      if (right != ids.end()) merges.push_back({scores[id], left->second, right->second});
    }
    const auto parts = [&](const Merge& m) { return std::pair(-scores[m.left], -scores[m.right]); };
    std::stable_sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.end(),
                     [&](const Merge& a, const Merge& b) { return parts(a) < parts(b); });
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) { return a.score > b.score; });
  Json out = Json::array();
  for (const Merge& merge : merges) out.push_back(merge_of(tokens[merge.left], tokens[merge.right]));
  return out;
}

Json byte_level_json(const GgufContents& gguf, const std::vector<std::string_view>& tokens,
                     const std::vector<std::int64_t>& types) {
  const PreTokenizer pre = pre_tokenizer(gguf);
  Json merges = Json::array();
  for (const std::string_view merge : gguf.texts("tokenizer.ggml.merges")) {
    const auto space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      fail("{}: tokenizer.ggml.merges has the entry \"{}\", which is not two tokens", gguf.where(),
           merge.substr(0, 60));
    }
    merges.push_back(std::string(merge));
  }
  Json post = template_processor(gguf, tokens);
  if (!post.is_null()) {
    post = sequence(
        "processors",
        Json::array(
            {{{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}, {"use_regex", true}}, post}));
  }
  return {
      {"normalizer", pre.nfc ? Json{{"type", "NFC"}} : Json(nullptr)},
      {"pre_tokenizer", pre.json},
      {"post_processor", post},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", pre.ignore_merges},
        {"vocab", vocabulary(gguf, tokens, types)},
        {"merges", merges}}},
  };
}

Json sentencepiece_json(const GgufContents& gguf, const std::vector<std::string_view>& tokens,
                        const std::vector<std::int64_t>& types) {
  const bool prefix = gguf.boolean("tokenizer.ggml.add_space_prefix", true);
  const std::string space(kSpace);
  Json normalizers = Json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", space}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space}});
  Json decoders = Json::array({{{"type", "Replace"}, {"pattern", {{"String", space}}}, {"content", " "}},
                               {{"type", "ByteFallback"}},
                               {{"type", "Fuse"}}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  const auto unknown = special_id(gguf, "unknown", tokens.size());
  return {
      {"normalizer", sequence("normalizers", normalizers)},
      {"pre_tokenizer", nullptr},
      {"post_processor", template_processor(gguf, tokens)},
      {"decoder", sequence("decoders", decoders)},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", unknown ? Json(std::string(tokens[*unknown])) : Json(nullptr)},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"ignore_merges", false},
        {"vocab", vocabulary(gguf, tokens, types)},
        {"merges", merges_from_scores(gguf, tokens, types)}}},
  };
}

}  // namespace

Json gguf_tokenizer_json(const GgufContents& gguf) {
  const std::string_view model = gguf.text("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama") {
    fail("{}: tokenizer.ggml.model is {}; nibble imports gpt2 (byte-level BPE) and llama (sentencepiece BPE)",
         gguf.where(), model);
  }
  const std::vector<std::string_view> tokens = gguf.texts(kTokens);
  if (tokens.empty()) fail("{} has no tokens ({})", gguf.where(), kTokens);
  const std::vector<std::int64_t> types = token_types(gguf, tokens.size());
  Json json = {
      {"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", added_tokens(tokens, types)}};
  json.update(model == "gpt2" ? byte_level_json(gguf, tokens, types) : sentencepiece_json(gguf, tokens, types));
  return json;
}

Json gguf_tokenizer_config_json(const GgufContents& gguf) {
  const std::vector<std::string_view> tokens = gguf.texts(kTokens);
  Json json = {{"add_bos_token", adds_bos(gguf)},
               {"add_eos_token", gguf.boolean("tokenizer.ggml.add_eos_token", false)},
               {"clean_up_tokenization_spaces", false},
               // The class that takes tokenizer.json as it is; model-specific ones rebuild parts of it.
               {"tokenizer_class", "PreTrainedTokenizerFast"}};
  for (const auto& [gguf_name, name] :
       {std::pair{"bos", "bos_token"}, {"eos", "eos_token"}, {"unknown", "unk_token"}, {"padding", "pad_token"}}) {
    if (const auto id = special_id(gguf, gguf_name, tokens.size())) json[name] = std::string(tokens[*id]);
  }
  if (gguf.has("tokenizer.chat_template")) json["chat_template"] = std::string(gguf.text("tokenizer.chat_template"));
  return json;
}

Json gguf_generation_config_json(const GgufContents& gguf) {
  const std::size_t count = gguf.texts(kTokens).size();
  Json json = Json::object();
  if (const auto id = special_id(gguf, "bos", count)) json["bos_token_id"] = *id;
  const auto eos = special_id(gguf, "eos", count);
  const auto eot = special_id(gguf, "eot", count);
  if (eos) json["eos_token_id"] = eot && *eot != *eos ? Json{*eos, *eot} : Json(*eos);
  if (const auto id = special_id(gguf, "padding", count)) json["pad_token_id"] = *id;
  return json;
}

}  // namespace nibble
