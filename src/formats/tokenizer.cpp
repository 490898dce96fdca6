#include "formats/tokenizer.h"

#include "core/error.h"
#include "core/file.h"
#include "formats/json.h"
#include "formats/tokenizer_added.h"
#include "formats/tokenizer_files.h"
#include "formats/tokenizer_parts.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <unordered_map>

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// The most that one encode() takes: offsets are 32 bits wide and byte-level spelling doubles a text.
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

/// A model_max_length above this says nothing.
constexpr double kMaxModelLength = 1e9;

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
  std::optional<std::size_t> model_max_length;
  bool truncate_left = false;

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
    for (const auto* parts : {&frame.single, &frame.pair}) {
      for (const FramePart& item : *parts) {
        if (item.text < 0 && !spelling(item.id)) {
          fail("{}: post_processor adds the token id {}, which no token has", name, item.id);
        }
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
    read_role("cls_token", special.cls);
    read_role("sep_token", special.sep);
    read_role("mask_token", special.mask);
    if (!is_tokenizer_config) return;
    truncate_left = config.text("truncation_side", "right") == "left";
    const double limit = config.number("model_max_length", 0);
    if (limit >= 1 && limit <= kMaxModelLength) model_max_length = static_cast<std::size_t>(limit);
    if (config.has("add_bos_token") || config.has("add_eos_token")) {
      frame = {};
      wrap_texts(config.boolean("add_bos_token", false) ? special.bos : std::nullopt,
                 config.boolean("add_eos_token", false) ? special.eos : std::nullopt);
    }
  }

  /// Puts tokens before and after every text, in its segment.
  void wrap_texts(std::optional<std::int32_t> bos, std::optional<std::int32_t> eos) {
    for (auto* parts : {&frame.single, &frame.pair}) {
      std::vector<FramePart> wrapped;
      for (const FramePart& text : *parts) {
        if (bos) wrapped.push_back({-1, *bos, text.type_id});
        wrapped.push_back(text);
        if (eos) wrapped.push_back({-1, *eos, text.type_id});
      }
      *parts = std::move(wrapped);
    }
  }

  /// Folders of encoders often leave the roles to the class. A special token for masks tells which class it is.
  void assume_roles() {
    const auto find = [&](std::string_view token) -> std::optional<std::int32_t> {
      const auto it = added_by_content.find(token);
      if (it == added_by_content.end() || !it->second->special) return std::nullopt;
      return it->second->id;
    };
    const auto assume = [&](std::string_view token, std::optional<std::int32_t>& role) {
      if (!role) role = find(token);
    };
    if (find("[MASK]")) {
      assume("[PAD]", special.pad);
      assume("[CLS]", special.cls);
      assume("[SEP]", special.sep);
      assume("[MASK]", special.mask);
    } else if (find("<mask>")) {
      assume("<pad>", special.pad);
      assume("<s>", special.cls);
      assume("</s>", special.sep);
      assume("<mask>", special.mask);
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

  /// Appends the ids of a whole text, without special tokens around it.
  void append_text(std::string_view text, std::vector<std::int32_t>& ids) const {
    if (text.size() > kMaxTextBytes) {
      fail("a text of {} bytes is too long to encode at once; the limit is {} bytes", text.size(), kMaxTextBytes);
    }
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = to_valid_utf8(text);
      text = repaired;
    }
    const auto scratch = model->make_scratch(text.size());
    for (const AddedSplit& split : raw_finder.split(text)) {
      if (split.id >= 0) {
        ids.push_back(split.id);
      } else {
        encode_section(text.substr(split.range.begin, split.range.end - split.range.begin), split.range.begin == 0,
                       *scratch, ids);
      }
    }
  }

  /// Cuts the texts so that they have at most `budget` tokens in all; returns how many tokens that takes away.
  std::size_t truncate(std::span<std::vector<std::int32_t>> texts, std::size_t budget) const {
    std::size_t total = 0;
    for (const auto& ids : texts) total += ids.size();
    if (total <= budget) return 0;
    if (texts.size() == 1) {
      keep(texts[0], budget);
      return total - budget;
    }
    // The shorter one loses nothing up to half the budget; of two longer than that, the second has the odd token.
    auto& shorter = texts[0].size() <= texts[1].size() ? texts[0] : texts[1];
    auto& longer = texts[0].size() <= texts[1].size() ? texts[1] : texts[0];
    const std::size_t kept = std::min(shorter.size(), budget / 2);
    keep(shorter, kept);
    keep(longer, budget - kept);
    return total - budget;
  }

  void keep(std::vector<std::int32_t>& ids, std::size_t count) const {
    const auto excess = static_cast<std::ptrdiff_t>(ids.size() - count);
    if (truncate_left) {
      ids.erase(ids.begin(), ids.begin() + excess);
    } else {
      ids.erase(ids.end() - excess, ids.end());
    }
  }

  /// Truncates the texts and puts them together.
  EncodedText assemble(std::span<std::vector<std::int32_t>> texts, const std::vector<FramePart>& parts,
                       const EncodeOptions& options) const {
    EncodedText out;
    const std::size_t around = options.add_special_tokens ? SpecialFrame::special_count(parts) : 0;
    if (options.max_length) {
      if (*options.max_length < around) {
        fail("max_length is {}, but the special tokens alone are {}; give a larger one", *options.max_length, around);
      }
      out.cut = truncate(texts, *options.max_length - around);
    }
    for (const FramePart& part : parts) {
      if (part.text >= 0) {
        const auto& ids = texts[static_cast<std::size_t>(part.text)];
        out.texts[static_cast<std::size_t>(part.text)] = {out.ids.size(), out.ids.size() + ids.size()};
        out.ids.insert(out.ids.end(), ids.begin(), ids.end());
      } else if (options.add_special_tokens) {
        out.ids.push_back(part.id);
      }
      out.type_ids.resize(out.ids.size(), part.type_id);
    }
    return out;
  }

  /// Text between two added tokens that are looked for before normalising.
  void encode_section(std::string_view text, bool at_start, TokenModel::Scratch& scratch,
                      std::vector<std::int32_t>& ids) const {
    std::string normalized(text);
    if (normalizer && normalizer->normalize(normalized)) at_start = false;
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
  std::optional<Tokenizer> tokenizer;
  if (fs::exists(file, ignored)) {
    tokenizer = Tokenizer(std::make_unique<Impl>(read_json_file(file), file.string()));
  } else if (is_folder && has_vocabulary_files(folder_or_file)) {
    const VocabularyFiles read = read_vocabulary_files(folder_or_file);
    tokenizer = Tokenizer(std::make_unique<Impl>(read.tokenizer, read.name));
  } else {
    fail(
        "{}: there is no tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt (tokenizer.model is not read; "
        "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes a tokenizer.json from it)",
        (is_folder ? folder_or_file : file).string());
  }
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const fs::path beside = file.parent_path() / name;
    if (!fs::exists(beside, ignored)) continue;
    const nlohmann::json json = read_json_file(beside);
    tokenizer->impl_->read_config(JsonView(json, beside.string()), name == std::string_view("tokenizer_config.json"));
  }
  tokenizer->impl_->assume_roles();
  return std::move(*tokenizer);
}

bool Tokenizer::is_in(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / "tokenizer.json", ignored) || has_vocabulary_files(folder);
}

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view name) {
  Tokenizer tokenizer(std::make_unique<Impl>(parse_json(json, name), name));
  tokenizer.impl_->assume_roles();
  return tokenizer;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  std::vector<std::int32_t> ids;
  ids.reserve(std::min(text.size(), kMaxTextBytes) / 3 + 8);
  for (const FramePart& part : impl_->frame.single) {
    if (part.text >= 0) {
      impl_->append_text(text, ids);
    } else if (add_special_tokens) {
      ids.push_back(part.id);
    }
  }
  return ids;
}

EncodedText Tokenizer::encode_text(std::string_view text, const EncodeOptions& options) const {
  std::array<std::vector<std::int32_t>, 1> texts;
  impl_->append_text(text, texts[0]);
  return impl_->assemble(texts, impl_->frame.single, options);
}

EncodedText Tokenizer::encode_pair(std::string_view first, std::string_view second,
                                   const EncodeOptions& options) const {
  std::array<std::vector<std::int32_t>, 2> texts;
  impl_->append_text(first, texts[0]);
  impl_->append_text(second, texts[1]);
  return impl_->assemble(texts, impl_->frame.pair, options);
}

std::string Tokenizer::normalize(std::string_view text) const {
  std::string out = to_valid_utf8(text);
  if (impl_->normalizer) impl_->normalizer->normalize(out);
  return out;
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

std::optional<std::size_t> Tokenizer::model_max_length() const { return impl_->model_max_length; }

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
