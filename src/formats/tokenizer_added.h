// Added tokens of a tokenizer: found in the text before anything else is done with it.
#pragma once

#include "formats/json.h"
#include "formats/tokenizer_parts.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble {

/// One entry of "added_tokens".
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool single_word = false;  // only where no word character (\w) stands beside it
  bool lstrip = false;       // takes the white space on its left with it
  bool rstrip = false;       // and on its right
  bool normalized = false;   // looked for in normalised text, else in the text as given
  bool special = false;      // dropped by decode with skip_special_tokens
};

/// The longest added token; real ones have tens of bytes. The search takes at most this many steps a byte of text.
inline constexpr std::size_t kMaxAddedTokenBytes = 1024;
/// The most added tokens; real files have up to some ten thousand.
inline constexpr std::size_t kMaxAddedTokens = 1 << 20;

/// Reads "added_tokens" of a tokenizer.json.
std::vector<AddedToken> read_added_tokens(const JsonView& file);

/// A part of a text: an added token, or the text between two.
struct AddedSplit {
  TextRange range;
  std::int32_t id = -1;  // -1: text
};

/// Finds a set of tokens in a text, the leftmost first, the longest of those that start at one place.
class AddedTokenFinder {
 public:
  /// Adds a token that is spelled `content` in the texts to be searched (it may be normalised).
  void add(std::string_view content, const AddedToken& token);

  bool empty() const { return rules_.empty(); }

  /// Cuts `text` (valid UTF-8), all of it, into tokens and text between; no text part is empty.
  std::vector<AddedSplit> split(std::string_view text) const;

 private:
  struct Rule {
    std::int32_t id;
    bool single_word;
    bool lstrip;
    bool rstrip;
  };
  struct Match {
    std::size_t end;
    std::uint32_t rule;
  };
  std::optional<Match> longest_at(std::string_view text, std::size_t offset) const;

  // A trie: the edge out of a node by a byte. Node 0 is the root.
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> rule_of_node_ = {-1};
  std::vector<Rule> rules_;
  std::array<bool, 256> first_bytes_{};
};

}  // namespace nibble
