// What token models share: a vocabulary, and a trie that finds its tokens in a text.
#pragma once

#include "formats/json.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nibble {

/// Spellings by id and ids by spelling. The spellings stay where they are when the vocabulary is moved.
class TokenVocab {
 public:
  TokenVocab() = default;
  /// Reads "vocab", an object of tokens and their ids, of a model. Throws Error where an id is out of range or where
  /// two tokens share one.
  explicit TokenVocab(const JsonView& part);
  TokenVocab(TokenVocab&&) = default;
  TokenVocab& operator=(TokenVocab&&) = default;

  /// Gives a token the next id. Of equal tokens the last is the one that token_id() finds.
  void append(const std::string& token);

  std::optional<std::int32_t> token_id(std::string_view token) const;
  /// The spelling; none for an id without one.
  std::optional<std::string_view> token(std::int32_t id) const;
  /// One more than the largest id.
  std::size_t id_end() const { return tokens_.size(); }

  /// Tokens <0x00> to <0xFF>, by byte; -1 for one that is missing.
  std::array<std::int32_t, 256> byte_tokens() const;

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> ids_;
  std::vector<std::optional<std::string_view>> tokens_;  // by id; they point at the keys above
};

/// Tokens by their bytes. A node's children lie side by side, ordered by byte, so that a step takes a search among
/// those and never depends on how an input chose its tokens.
class TokenTrie {
 public:
  static constexpr std::uint32_t kRoot = 0;
  static constexpr std::int32_t kNoToken = -1;
  /// The longest token; sentencepiece's have 16 characters, words in vocabularies some tens. A search from one place
  /// of a text takes at most this many steps.
  static constexpr std::size_t kMaxTokenBytes = 1024;
  /// Nodes of a trie at most; a vocabulary of 250 thousand tokens has about a million.
  static constexpr std::size_t kMaxNodes = std::size_t{1} << 25;

  TokenTrie() = default;
  /// All tokens of a vocabulary but an empty one. Throws Error, naming `place`, beyond the limits above.
  TokenTrie(const TokenVocab& vocab, std::string_view place);

  /// The node that `byte` leads to, or kRoot where none does.
  std::uint32_t child(std::uint32_t node, char byte) const {
    const auto label = static_cast<unsigned char>(byte);
    if (node == kRoot) return root_[label];
    const std::uint32_t end = nodes_[node + 1].first_child;
    std::uint32_t at = nodes_[node].first_child;
    if (end - at > kLinear) return search(at, end, label);
    while (at < end && labels_[at] != label) ++at;
    return at < end ? at : kRoot;
  }

  /// The token that ends at a node, or kNoToken.
  std::int32_t token(std::uint32_t node) const { return nodes_[node].token; }

 private:
  /// Children looked through one by one; more are halved.
  static constexpr std::uint32_t kLinear = 8;
  struct Node {
    std::uint32_t first_child = 0;  // up to the next node's first child
    std::int32_t token = kNoToken;
  };
  std::uint32_t search(std::uint32_t begin, std::uint32_t end, unsigned char label) const;

  std::array<std::uint32_t, 256> root_{};
  std::vector<Node> nodes_;  // breadth first, and one more at the end
  std::vector<unsigned char> labels_;
};

}  // namespace nibble
