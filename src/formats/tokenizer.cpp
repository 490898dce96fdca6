#include "formats/tokenizer.h"

#include "core/error.h"
#include "core/file.h"
#include "formats/json.h"
#include "formats/tokenizer_added.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <unordered_map>

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// The most that one encode() takes: offsets are 32 bits wide and byte-level spelling doubles a text.
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

/// tokenizer_config.json gives a token as a string or as an object with its content and flags.
std::optional<std::string> role_token(const JsonView& config, const std::string& key) {
  if (!config.has(key)) return std::nullopt;
  const nlohmann::json& value = config.value().at(key);
  if (value.is_object()) return config.object(key)->text("content");
  return config.text(key);
}

}  // namespace

struct Tokenizer::Impl {
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  std::unique_ptr<Decoder> decoder;
  SpecialFrame frame;
  std::vector<AddedToken> added;
  std::unordered_map<std::string_view, const AddedToken*> added_by_content;
  std::unordered_map<std::int32_t, const AddedToken*> added_by_id;
  AddedTokenFinder raw_finder;         // tokens with normalized = false
  AddedTokenFinder normalized_finder;  // the others
  std::size_t id_end = 0;
  SpecialTokens special;

  Impl(const nlohmann::json& json, std::string_view name) {
    const JsonView file(json, std::string(name));
    const auto part = [&](const char* key) { return file.object(key); };
    if (const auto view = part("normalizer")) normalizer = make_normalizer(*view);
    if (const auto view = part("pre_tokenizer")) pre_tokenizer = make_pre_tokenizer(*view);
    if (const auto view = part("post_processor")) frame = make_special_frame(*view);
    if (const auto view = part("decoder")) decoder = make_decoder(*view);
    const auto view = part("model");
    if (!view) file.refuse("model", "an object");
    model = make_token_model(*view);
    added = read_added_tokens(file);
    index_added_tokens();
    for (const auto* side : {&frame.before, &frame.after}) {
      for (const std::int32_t id : *side) {
        if (!spelling(id)) fail("{}: post_processor adds the token id {}, which no token has", name, id);
      }
    }
  }

  void index_added_tokens() {
    id_end = model->id_end();
    for (const AddedToken& token : added) {
      id_end = std::max(id_end, static_cast<std::size_t>(token.id) + 1);
      added_by_content[token.content] = &token;
      added_by_id[token.id] = &token;
      std::string content = token.content;
      if (token.normalized && normalizer) normalizer->normalize(content);
      (token.normalized ? normalized_finder : raw_finder).add(content, token);
    }
  }

  std::optional<std::string_view> spelling(std::int32_t id) const {
    const auto it = added_by_id.find(id);
    if (it != added_by_id.end()) return it->second->content;
    return model->token(id);
  }

  std::optional<std::int32_t> token_id(std::string_view token) const {
    const auto it = added_by_content.find(token);
    if (it != added_by_content.end()) return it->second->id;
    return model->token_id(token);
  }

  /// What transformers reads beside tokenizer.json: the roles, and the flags that replace the post-processor.
  void read_config(const JsonView& config, bool is_tokenizer_config) {
    const auto read_role = [&](const char* key, std::optional<std::int32_t>& id) {
      if (id) return;
      if (const auto token = role_token(config, key)) id = token_id(*token);
    };
    read_role("bos_token", special.bos);
    read_role("eos_token", special.eos);
    read_role("pad_token", special.pad);
    read_role("unk_token", special.unk);
    if (is_tokenizer_config && (config.has("add_bos_token") || config.has("add_eos_token"))) {
      frame = {};
      if (config.boolean("add_bos_token", false) && special.bos) frame.before.push_back(*special.bos);
      if (config.boolean("add_eos_token", false) && special.eos) frame.after.push_back(*special.eos);
    }
  }

  void encode_text(Pieces& pieces, TokenModel::Scratch& scratch, std::vector<std::int32_t>& ids) const {
    if (pieces.text.empty()) return;
    pieces.ranges = {{0, static_cast<std::uint32_t>(pieces.text.size())}};
    if (pre_tokenizer) pre_tokenizer->split(pieces);
    for (const TextRange range : pieces.ranges) {
      model->encode(std::string_view(pieces.text).substr(range.begin, range.end - range.begin), scratch, ids);
    }
  }

  /// Text between two added tokens that are looked for before normalising.
  void encode_section(std::string_view text, bool at_start, TokenModel::Scratch& scratch,
                      std::vector<std::int32_t>& ids) const {
    std::string normalized(text);
    if (normalizer) normalizer->normalize(normalized);
    Pieces pieces;
    if (normalized_finder.empty()) {
      pieces.text = std::move(normalized);
      pieces.at_start = at_start;
      encode_text(pieces, scratch, ids);
      return;
    }
    for (const AddedSplit& split : normalized_finder.split(normalized)) {
      if (split.id >= 0) {
        ids.push_back(split.id);
        continue;
      }
      pieces.text.assign(normalized, split.range.begin, split.range.end - split.range.begin);
      pieces.at_start = at_start && split.range.begin == 0;
      encode_text(pieces, scratch, ids);
    }
  }
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const fs::path& folder_or_file) {
  std::error_code ignored;
  const bool is_folder = fs::is_directory(folder_or_file, ignored);
  const fs::path file = is_folder ? folder_or_file / "tokenizer.json" : folder_or_file;
  if (!fs::exists(file, ignored)) {
    fail(
        "{}: there is no tokenizer.json (vocab.json, merges.txt and tokenizer.model are not read; transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes a tokenizer.json from them)",
        (is_folder ? folder_or_file : file).string());
  }
  Tokenizer tokenizer(std::make_unique<Impl>(read_json_file(file), file.string()));
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const fs::path beside = file.parent_path() / name;
    if (!fs::exists(beside, ignored)) continue;
    const nlohmann::json json = read_json_file(beside);
    tokenizer.impl_->read_config(JsonView(json, beside.string()), name == std::string_view("tokenizer_config.json"));
  }
  return tokenizer;
}

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view name) {
  return Tokenizer(std::make_unique<Impl>(parse_json(json, name), name));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (text.size() > kMaxTextBytes) {
    fail("a text of {} bytes is too long to encode at once; the limit is {} bytes", text.size(), kMaxTextBytes);
  }
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = to_valid_utf8(text);
    text = repaired;
  }
  std::vector<std::int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special_tokens) ids = impl_->frame.before;
  const auto scratch = impl_->model->make_scratch(text.size());
  for (const AddedSplit& split : impl_->raw_finder.split(text)) {
    if (split.id >= 0) {
      ids.push_back(split.id);
    } else {
      impl_->encode_section(text.substr(split.range.begin, split.range.end - split.range.begin), split.range.begin == 0,
                            *scratch, ids);
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), impl_->frame.after.begin(), impl_->frame.after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const std::int32_t id : ids) {
    if (skip_special_tokens && is_special(id)) continue;
    if (const auto spelling = impl_->spelling(id)) tokens.emplace_back(*spelling);
  }
  if (impl_->decoder) impl_->decoder->decode(tokens);
  std::string text;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    // Without a decoder nothing says how tokens join: a space between them, as the `tokenizers` library does.
    if (i > 0 && !impl_->decoder) text.push_back(' ');
    text += tokens[i];
  }
  return to_valid_utf8(text);
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view token) const { return impl_->token_id(token); }

std::string Tokenizer::token(std::int32_t id) const { return std::string(impl_->spelling(id).value_or("")); }

bool Tokenizer::is_special(std::int32_t id) const {
  const auto it = impl_->added_by_id.find(id);
  return it != impl_->added_by_id.end() && it->second->special;
}

std::size_t Tokenizer::vocab_size() const { return impl_->id_end; }

const SpecialTokens& Tokenizer::special() const { return impl_->special; }

namespace {

/// A character has at most four bytes, and a token at least one: a window that still ends in U+FFFD when this many
/// tokens are held back ends in bytes that no token will complete.
constexpr std::size_t kMaxHeldBack = 8;

}  // namespace

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

/// What the window's text has beyond the text given out.
std::string StreamingDecoder::pending_text() const {
  const std::string text = tokenizer_->decode(window_, skip_special_tokens_);
  // A decoder may read what was given out in another way once more follows (bytes that spell no character, given out
  // because too many were held back, may spell some as a longer run). That text is lost; what follows begins with a
  // whole character all the same.
  std::size_t begin = std::min(given_text_.size(), text.size());
  while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
  return text.substr(begin);
}

std::string StreamingDecoder::push(std::int32_t id) {
  // What gives no text must not push the tokens before it out of the window: they are the next one's context.
  if ((skip_special_tokens_ && tokenizer_->is_special(id)) || tokenizer_->token(id).empty()) return {};
  window_.push_back(id);
  std::string text = pending_text();
  if (window_.size() - given_ < kMaxHeldBack && (text.empty() || text.ends_with("\uFFFD"))) return {};
  // The tokens just given out are the context of the next ones: a decoder that drops a leading space sees that these
  // are not the first.
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(given_));
  given_ = window_.size();
  given_text_ = tokenizer_->decode(window_, skip_special_tokens_);
  return text;
}

std::string StreamingDecoder::finish() {
  std::string text = pending_text();
  window_.clear();
  given_ = 0;
  given_text_.clear();
  return text;
}

}  // namespace nibble
