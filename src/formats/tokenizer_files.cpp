#include "formats/tokenizer_files.h"

#include "core/error.h"
#include "core/file.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

#include <string_view>
#include <vector>

namespace nibble {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kWordPieceFile = "vocab.txt";
constexpr const char* kBpeFile = "vocab.json";
constexpr const char* kMergesFile = "merges.txt";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// The lines of a text file; they end in \n or \r\n.
std::vector<std::string> read_lines(const fs::path& path) {
  const std::string text = read_text_file(path, kJsonSizeLimit);
  if (!is_valid_utf8(text)) fail("{}: expected UTF-8 text, found bytes that are none", path.string());
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = std::string_view(text).substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.emplace_back(line);
    at = end + 1;
  }
  return lines;
}

/// Tokens that a class of transformers has for each role.
struct RoleNames {
  const char* cls;
  const char* sep;
  const char* pad;
  const char* unk;
  const char* mask;
};
constexpr RoleNames kBertRoles = {"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"};
constexpr RoleNames kRobertaRoles = {"<s>", "</s>", "<pad>", "<unk>", "<mask>"};
/// MPNet's vocabulary is BERT's between RoBERTa's tokens.
constexpr RoleNames kMpnetRoles = {"<s>", "</s>", "<pad>", "[UNK]", "<mask>"};

/// The roles of a vocabulary, and the tokens as "added_tokens" has them.
class Roles {
 public:
  Roles(const JsonView& config, const json& vocab, const RoleNames& names) : vocab_(vocab) {
    read(config, "pad_token", names.pad);
    unk_ = read(config, "unk_token", names.unk);
    cls_ = read(config, "cls_token", names.cls);
    sep_ = read(config, "sep_token", names.sep);
    // RoBERTa's mask takes the space before it, as a word would.
    read(config, "mask_token", names.mask, std::string_view(names.mask) == kRobertaRoles.mask);
  }

  const std::string& unk() const { return unk_; }
  const json& added() const { return added_; }

  /// [token, id], for a post-processor.
  json cls(const std::string& where) const { return with_id(cls_, "cls_token", where); }
  json sep(const std::string& where) const { return with_id(sep_, "sep_token", where); }

 private:
  std::string read(const JsonView& config, const char* key, const char* fallback, bool lstrip = false) {
    std::string token = role_token(config, key).value_or(fallback);
    const bool is_known = vocab_.contains(token) && !seen_.contains(token);
    if (is_known) {
      added_.push_back(
          {{"id", vocab_.at(token)}, {"content", token}, {"special", true}, {"normalized", false}, {"lstrip", lstrip}});
      seen_[token] = true;
    }
    return token;
  }

  json with_id(const std::string& token, const char* role, const std::string& where) const {
    const auto id = vocab_.find(token);
    if (id == vocab_.end()) {
      fail("{}: the vocabulary lacks the {} \"{}\"; name the right one in tokenizer_config.json", where, role, token);
    }
    return json::array({token, *id});
  }

  const json& vocab_;
  std::string unk_;
  std::string cls_;
  std::string sep_;
  json added_ = json::array();
  json seen_ = json::object();
};

bool has_all(const json& vocab, const RoleNames& names) {
  return vocab.contains(names.cls) && vocab.contains(names.sep) && vocab.contains(names.mask);
}

json post_processor(const char* type, const Roles& roles, const std::string& where) {
  return {{"type", type}, {"cls", roles.cls(where)}, {"sep", roles.sep(where)}};
}

json wordpiece_file(const fs::path& path, const JsonView& config) {
  json vocab = json::object();
  std::int64_t id = 0;
  // Of equal lines the last counts.
  for (const std::string& line : read_lines(path)) vocab[line] = id++;
  const bool is_mpnet = !vocab.contains(kBertRoles.cls) && has_all(vocab, kMpnetRoles);
  const Roles roles(config, vocab, is_mpnet ? kMpnetRoles : kBertRoles);
  const bool lowercase = config.boolean("do_lower_case", true);
  const std::string where = path.string();
  return {
      {"added_tokens", roles.added()},
      {"normalizer",
       {{"type", "BertNormalizer"},
        {"clean_text", true},
        {"handle_chinese_chars", config.boolean("tokenize_chinese_chars", true)},
        {"strip_accents", config.boolean("strip_accents", lowercase)},
        {"lowercase", lowercase}}},
      {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
      {"post_processor", post_processor(is_mpnet ? "RobertaProcessing" : "BertProcessing", roles, where)},
      {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
      {"model",
       {{"type", "WordPiece"},
        {"unk_token", roles.unk()},
        {"continuing_subword_prefix", "##"},
        {"max_input_chars_per_word", 100},
        {"vocab", std::move(vocab)}}},
  };
}

json bpe_file(const fs::path& folder, const JsonView& config) {
  json vocab = read_json_file(folder / kBpeFile);
  const std::string where = (folder / kBpeFile).string();
  if (!vocab.is_object()) fail("{}: expected an object of tokens and their ids, found {}", where, json_excerpt(vocab));
  json merges = json::array();
  std::vector<std::string> lines = read_lines(folder / kMergesFile);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const bool is_version = i == 0 && lines[i].starts_with("#version");
    if (!is_version && !lines[i].empty()) merges.push_back(std::move(lines[i]));
  }
  json out = {
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", config.boolean("add_prefix_space", false)}}},
      {"decoder", {{"type", "ByteLevel"}}},
  };
  if (has_all(vocab, kRobertaRoles)) {
    const Roles roles(config, vocab, kRobertaRoles);
    out["added_tokens"] = roles.added();
    out["post_processor"] = post_processor("RobertaProcessing", roles, where);
  } else if (vocab.contains("<|endoftext|>")) {
    out["added_tokens"] = {
        {{"id", vocab.at("<|endoftext|>")}, {"content", "<|endoftext|>"}, {"special", true}, {"normalized", false}}};
  }
  out["model"] = {{"type", "BPE"}, {"vocab", std::move(vocab)}, {"merges", std::move(merges)}};
  return out;
}

}  // namespace

std::optional<std::string> role_token(const JsonView& config, const std::string& key) {
  if (!config.has(key)) return std::nullopt;
  const json& value = config.value().at(key);
  if (value.is_object()) return config.object(key)->text("content");
  return config.text(key);
}

bool has_vocabulary_files(const fs::path& folder) {
  return is_there(folder / kWordPieceFile) || (is_there(folder / kBpeFile) && is_there(folder / kMergesFile));
}

VocabularyFiles read_vocabulary_files(const fs::path& folder) {
  const fs::path beside = folder / "tokenizer_config.json";
  const json values = is_there(beside) ? read_json_file(beside) : json::object();
  const JsonView config(values, beside.string());
  if (is_there(folder / kWordPieceFile)) {
    const fs::path path = folder / kWordPieceFile;
    return {wordpiece_file(path, config), path.string()};
  }
  return {bpe_file(folder, config), (folder / kBpeFile).string()};
}

}  // namespace nibble
