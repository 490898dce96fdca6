// The parts that a tokenizer.json is made of, as interfaces, and what makes each from its JSON. A model type is one
// file.
#pragma once

#include "formats/json.h"
#include "formats/tokenizer_regex.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

/// Rewrites text before it is cut. Text is valid UTF-8, before and after.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// Whether the text's first character has gone without leaving anything in its place.
  virtual bool normalize(std::string& text) const = 0;
};

/// A text in pieces: ranges of `text`, in order, none empty.
struct Pieces {
  std::string text;
  std::vector<TextRange> ranges;
  /// Whether the text begins with what the text given by the user does (Metaspace's scheme "first" asks).
  bool at_start = true;
};

/// Cuts each piece into smaller ones, and may rewrite them.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void split(Pieces& pieces) const = 0;
};

/// Turns one piece into ids.
class TokenModel {
 public:
  /// What one call of Tokenizer::encode keeps from piece to piece: buffers and a cache of words.
  class Scratch {
   public:
    virtual ~Scratch() = default;
  };

  virtual ~TokenModel() = default;
  /// `text_bytes`: the length of the text that is to be encoded with it.
  virtual std::unique_ptr<Scratch> make_scratch(std::size_t text_bytes) const = 0;
  /// Appends the ids of a piece that is not empty.
  virtual void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const = 0;
  virtual std::optional<std::int32_t> token_id(std::string_view token) const = 0;
  /// The token's spelling; none for an id without one.
  virtual std::optional<std::string_view> token(std::int32_t id) const = 0;
  /// One more than the largest id.
  virtual std::size_t id_end() const = 0;
};

/// A part of what a post-processor makes: one of the texts, or a special token.
struct FramePart {
  int text = -1;             // 0: the first text, 1: the second, -1: a special token
  std::int32_t id = -1;      // of the special token
  std::int32_t type_id = 0;  // the segment that its tokens belong to
};

/// What a post-processor makes of one text and of a pair: each text once, special tokens around and between.
struct SpecialFrame {
  std::vector<FramePart> single = {{0, -1, 0}};
  std::vector<FramePart> pair = {{0, -1, 0}, {1, -1, 1}};
  /// Special tokens of a list of parts.
  static std::size_t special_count(const std::vector<FramePart>& parts);
};

/// Turns the spellings of tokens into text; each step takes and leaves a list whose join is the text.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void decode(std::vector<std::string>& tokens) const = 0;
};

/// The largest id that a file may use, and one more: twenty times the largest vocabulary known (about 260 thousand).
inline constexpr std::int32_t kMaxTokenIds = 1 << 22;
/// A normalizer or pre-tokenizer may make a text this many times longer, plus the constant: compatibility forms reach
/// 11 (U+FDFA), byte-level spelling 2; more is a hostile file.
inline constexpr std::size_t kMaxTextGrowth = 16;
inline constexpr std::size_t kMaxTextGrowthBase = 64 * 1024;

/// Parts that list parts ("Sequence") hold at most this many; JSON's own limit bounds how deep they nest.
inline constexpr std::size_t kMaxSequence = 64;

/// Each makes a part from its JSON, or throws Error for one that is malformed or that this library does not have.
std::unique_ptr<Normalizer> make_normalizer(const JsonView& part);
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const JsonView& part);
std::unique_ptr<TokenModel> make_token_model(const JsonView& part);
std::unique_ptr<Decoder> make_decoder(const JsonView& part);
SpecialFrame make_special_frame(const JsonView& part);

/// sentencepiece's table of replacements (tokenizer_charsmap.cpp).
std::unique_ptr<Normalizer> make_precompiled_normalizer(const JsonView& part);

/// Token models, one file each (tokenizer_bpe.cpp, ...).
std::unique_ptr<TokenModel> make_bpe_model(const JsonView& part);
std::unique_ptr<TokenModel> make_wordpiece_model(const JsonView& part);
std::unique_ptr<TokenModel> make_unigram_model(const JsonView& part);

/// A token id of a file: an integer from 0 to kMaxTokenIds - 1. `place` begins the Error otherwise.
std::int32_t to_token_id(const nlohmann::json& value, std::string_view place);

/// The "pattern" of a Replace or Split part as a regular expression: {"String": text}, or bare text, is quoted,
/// {"Regex": text} is taken as it is.
std::string part_pattern(const JsonView& part);

/// Throws Error if a text of `before` bytes grew to `after`, beyond the limit above.
void check_text_growth(std::size_t before, std::size_t after, std::string_view place);

/// The printable spelling of a byte in byte-level tokens: bytes 33-126, 161-172 and 174-255 are the characters of the
/// same number, the other 68 are, in order, U+0100 and following (space is U+0120). At most two bytes of UTF-8.
std::string_view byte_level_spelling(unsigned char byte);
/// The byte that a character of such a spelling stands for, or none.
std::optional<unsigned char> byte_level_byte(char32_t code);

/// The text in byte-level spelling.
std::string byte_level_text(std::string_view text);

}  // namespace nibble
