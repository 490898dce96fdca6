// WordPiece (Schuster and Nakajima 2012; the way of BERT, https://arxiv.org/abs/1810.04805): a word is cut from the
// left into the longest tokens of the vocabulary, those after the first with a prefix; a word that cannot be cut is
// unknown.
#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/tokenizer_vocab.h"
#include "formats/unicode.h"

namespace nibble {
namespace {

class WordPieceModel final : public TokenModel {
 public:
  explicit WordPieceModel(const JsonView& part) : vocab_(part), trie_(vocab_, part.place()) {
    const auto unk = vocab_.token_id(part.text("unk_token", "[UNK]"));
    if (!unk) part.refuse("unk_token", "a token of the vocabulary");
    unk_ = *unk;
    const std::int64_t limit = part.integer("max_input_chars_per_word", 100);
    if (limit < 0) part.refuse("max_input_chars_per_word", "a number of characters");
    max_characters_ = static_cast<std::uint64_t>(limit);
    std::uint32_t node = TokenTrie::kRoot;
    const std::string prefix = part.text("continuing_subword_prefix", "##");
    for (const char byte : prefix) {
      node = trie_.child(node, byte);
      if (node == TokenTrie::kRoot) break;
    }
    if (prefix.empty() || node != TokenTrie::kRoot) continuing_ = node;
  }

  std::unique_ptr<Scratch> make_scratch(std::size_t) const override { return std::make_unique<Scratch>(); }

  void encode(std::string_view piece, Scratch&, std::vector<std::int32_t>& ids) const override {
    const std::size_t before = ids.size();
    if (!is_too_long(piece) && cut(piece, ids)) return;
    ids.resize(before);
    ids.push_back(unk_);
  }

  std::optional<std::int32_t> token_id(std::string_view token) const override { return vocab_.token_id(token); }
  std::optional<std::string_view> token(std::int32_t id) const override { return vocab_.token(id); }
  std::size_t id_end() const override { return vocab_.id_end(); }

 private:
  bool is_too_long(std::string_view piece) const {
    return piece.size() > max_characters_ && utf8_length(piece) > max_characters_;
  }

  /// Appends the tokens of a word; false where a part of it is in no token.
  bool cut(std::string_view piece, std::vector<std::int32_t>& ids) const {
    for (std::size_t at = 0; at < piece.size();) {
      if (at > 0 && !continuing_) return false;
      std::uint32_t node = at == 0 ? TokenTrie::kRoot : *continuing_;
      std::int32_t longest = TokenTrie::kNoToken;
      std::size_t end = at;
      for (std::size_t i = at; i < piece.size(); ++i) {
        node = trie_.child(node, piece[i]);
        if (node == TokenTrie::kRoot) break;
        if (trie_.token(node) == TokenTrie::kNoToken) continue;
        longest = trie_.token(node);
        end = i + 1;
      }
      if (longest == TokenTrie::kNoToken) return false;
      ids.push_back(longest);
      at = end;
    }
    return true;
  }

  TokenVocab vocab_;
  TokenTrie trie_;
  std::int32_t unk_ = 0;
  std::uint64_t max_characters_ = 0;
  std::optional<std::uint32_t> continuing_;  // the node of the prefix; none where no token has it
};

}  // namespace

std::unique_ptr<TokenModel> make_wordpiece_model(const JsonView& part) {
  return std::make_unique<WordPieceModel>(part);
}

}  // namespace nibble
