// Text to token ids and back, as a tokenizer.json of Hugging Face's `tokenizers` library says. The format's parts are
// normalizers, pre-tokenizers, a model, post-processors and decoders; docs: https://huggingface.co/docs/tokenizers.
// Read here: BPE models, byte-level (GPT-2, Llama 3, Qwen 2, SmolLM2, RoBERTa) and of sentencepiece's kind with byte
// fallback (Llama 2, Mistral), WordPiece (BERT, MPNet) and Unigram (XLM-R, ALBERT, T5). A part that this library does
// not have is refused with a sentence that names it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Ids of the tokens that have a role, where tokenizer_config.json or special_tokens_map.json names them. Where they do
/// not name pad, cls, sep or mask, the special tokens that BERT's and RoBERTa's classes have for these by default.
struct SpecialTokens {
  std::optional<std::int32_t> bos;
  std::optional<std::int32_t> eos;
  std::optional<std::int32_t> pad;
  std::optional<std::int32_t> unk;
  std::optional<std::int32_t> cls;
  std::optional<std::int32_t> sep;
  std::optional<std::int32_t> mask;
};

/// Tokens [begin, end).
struct TokenRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// What an encoder takes for one text or a pair of texts.
struct EncodedText {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> type_ids;    // as many: the segment of each token, 0 or 1 in BERT
  std::array<TokenRange, 2> texts = {};  // the tokens of each text itself; of one text the second is empty
  std::size_t cut = 0;                   // tokens left out to keep max_length
};

struct EncodeOptions {
  /// Adds what the post-processor has around and between the texts.
  bool add_special_tokens = true;
  /// The most tokens, special ones among them. What is too long is cut as transformers does with truncation=True: at
  /// its end (or at its start, where tokenizer_config.json has truncation_side "left"); of a pair the longer text
  /// first, until both are of one length.
  std::optional<std::size_t> max_length;
};

/// Immutable after load; all members may be called from several threads at once.
class Tokenizer {
 public:
  /// Reads a model folder (tokenizer.json, and if there tokenizer_config.json and special_tokens_map.json) or a
  /// tokenizer.json by itself (its neighbours are read as well). Where tokenizer_config.json says add_bos_token or
  /// add_eos_token, these replace the file's post-processor, as transformers has it. A folder without tokenizer.json
  /// may have vocab.txt (BERT's and MPNet's WordPiece) or vocab.json with merges.txt (GPT-2's and RoBERTa's BPE).
  /// Throws Error for a file that is absent, too large, malformed or asks for a part that is not supported.
  static Tokenizer load(const std::filesystem::path& folder_or_file);

  /// Whether a folder has files that load() reads.
  static bool is_in(const std::filesystem::path& folder);

  /// load() from the text of a tokenizer.json; `name` stands in error messages for the file.
  static Tokenizer from_json(std::string_view json, std::string_view name);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of the text. Bytes that are no UTF-8 are read as U+FFFD. Special tokens written out in the text become their
  /// ids in any case; `add_special_tokens` is about those that the post-processor adds (a leading BOS, say).
  /// Throws Error for more than 1 GiB, or where a regular expression of the file exceeds its limits on this text.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens) const;

  /// Ids and segments of one text, and of a pair (a question and a passage, say). Throws Error as encode() does, and
  /// where max_length is less than the special tokens alone.
  EncodedText encode_text(std::string_view text, const EncodeOptions& options = {}) const;
  EncodedText encode_pair(std::string_view first, std::string_view second, const EncodeOptions& options = {}) const;

  /// The text as the normalizer leaves it, valid UTF-8.
  std::string normalize(std::string_view text) const;

  /// model_max_length of tokenizer_config.json: the tokens, special ones among them, that the model takes at most. None
  /// where it is absent or so large (transformers writes 1e30) that it says nothing.
  std::optional<std::size_t> model_max_length() const;

  /// Text of the ids, always valid UTF-8. Ids that no token has (a model's padded vocabulary) give nothing.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const;

  /// The id of a token, spelled as in the file (byte-level tokens in their printable form).
  std::optional<std::int32_t> token_id(std::string_view token) const;

  /// The spelling of a token; empty where no token has the id.
  std::string token(std::int32_t id) const;

  /// Whether the id is that of an added token marked special.
  bool is_special(std::int32_t id) const;

  /// One more than the largest id. A model's own vocabulary (rows of its embedding) may be larger.
  std::size_t vocab_size() const;

  const SpecialTokens& special() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Text of a growing list of ids, for output as it is generated: the pieces given out, joined, are what decode() gives
/// for all ids, and none ends within a character. Borrows the tokenizer.
class StreamingDecoder {
 public:
  StreamingDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);

  /// The text that this id completes; empty while a character is incomplete.
  std::string push(std::int32_t id);

  /// What is still held back, with U+FFFD for bytes that no character took. The decoder then starts over.
  std::string finish();

 private:
  std::string pending_text() const;

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::vector<std::int32_t> window_;  // ids given out last (context for the decoder), then those held back
  std::size_t given_ = 0;             // how many of the window have been given out
  std::string given_text_;            // what those alone decode to
};

}  // namespace nibble
