// Byte pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) as tokenizer.json describes it: a piece
// is split into characters, and the adjacent pair whose merge has the lowest rank, leftmost first, is joined until none
// is left. A queue of candidates over a linked list of symbols makes that n log n for a piece of n characters.
#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/tokenizer_vocab.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

namespace nibble {
namespace {

using nlohmann::json;

constexpr std::int32_t kNone = -1;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
}

/// Fibonacci hashing (2^64 over the golden ratio) and its high bits folded in: neighbouring ids spread over the table.
std::uint64_t mix(std::uint64_t key) {
  key *= 0x9E3779B97F4A7C15ULL;
  return key ^ (key >> 32);
}

struct Merge {
  std::uint32_t rank = 0;
  std::int32_t id = kNone;
};

/// Merges by pair (of ids, or of code points), in a table of open addressing at most half full: one cache line a
/// lookup, whether it hits or not.
class PairTable {
 public:
  explicit PairTable(std::size_t count) : slots_(std::bit_ceil(std::max<std::size_t>(count, 8) * 2)) {}

  /// A pair that is there already takes the new merge, as the last of two equal lines in a file counts.
  void insert(std::int32_t left, std::int32_t right, Merge merge) {
    const std::uint64_t key = pair_key(left, right);
    slots_[find_slot(key)] = {key, merge};
  }

  const Merge* find(std::int32_t left, std::int32_t right) const {
    const Slot& slot = slots_[find_slot(pair_key(left, right))];
    return slot.key == kEmpty ? nullptr : &slot.merge;
  }

 private:
  /// No pair of valid ids: both would be -1.
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge;
  };

  std::size_t find_slot(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = mix(key) & mask;
    while (slots_[at].key != kEmpty && slots_[at].key != key) at = (at + 1) & mask;
    return at;
  }

  std::vector<Slot> slots_;
};

/// Words seen before in a text, and their ids. Direct-mapped: a word takes the slot of its hash from the one before it,
/// so that no text makes it grow or slow.
class WordCache {
 public:
  /// Text repeats its words: one slot for four bytes is more than it has words; 2^14 slots (1 MiB) hold the words of
  /// a language that make up nearly all of its text.
  explicit WordCache(std::size_t text_bytes)
      : slots_(std::bit_ceil(std::clamp<std::size_t>(text_bytes / 4, 16, std::size_t{1} << 14))) {}

  static bool fits(std::string_view word) { return word.size() <= kMaxBytes; }

  /// Appends the word's ids if it is there.
  bool get(std::string_view word, std::uint64_t hash, std::vector<std::int32_t>& ids) const {
    const Slot& slot = slots_[hash & (slots_.size() - 1)];
    if (slot.length != word.size() || std::memcmp(slot.text.data(), word.data(), word.size()) != 0) return false;
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
    return true;
  }

  void put(std::string_view word, std::uint64_t hash, std::span<const std::int32_t> ids) {
    if (ids.size() > kMaxIds) return;
    Slot& slot = slots_[hash & (slots_.size() - 1)];
    slot.length = static_cast<std::uint8_t>(word.size());
    slot.count = static_cast<std::uint8_t>(ids.size());
    std::memcpy(slot.text.data(), word.data(), word.size());
    std::copy(ids.begin(), ids.end(), slot.ids.begin());
  }

 private:
  // Together one cache line of 64 bytes: words of up to 30 bytes, of up to 8 tokens.
  static constexpr std::size_t kMaxBytes = 30;
  static constexpr std::size_t kMaxIds = 8;
  struct Slot {
    std::array<std::int32_t, kMaxIds> ids{};
    std::uint8_t length = 0;  // 0: free, as no word is empty
    std::uint8_t count = 0;
    std::array<char, kMaxBytes> text{};
  };
  std::vector<Slot> slots_;
};

std::uint64_t hash_word(std::string_view word) {
  std::uint64_t hash = word.size();
  std::size_t i = 0;
  for (; i + 8 <= word.size(); i += 8) {
    std::uint64_t part;
    std::memcpy(&part, word.data() + i, 8);
    hash = mix(hash ^ part);
  }
  std::uint64_t rest = 0;
  std::memcpy(&rest, word.data() + i, word.size() - i);
  return mix(hash ^ rest);
}

struct Symbol {
  std::int32_t id = kNone;
  std::int32_t previous = kNone;
  std::int32_t next = kNone;
};

struct Candidate {
  std::uint32_t rank;
  std::int32_t position;  // of the left symbol
  std::int32_t right;     // the ids when it was found; a symbol merged since has another
  std::int32_t left;
};

/// Heap order: the lowest rank on top, then the leftmost.
bool comes_later(const Candidate& a, const Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

class BpeScratch final : public TokenModel::Scratch {
 public:
  explicit BpeScratch(std::size_t text_bytes) : cache(text_bytes) {}
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<Candidate> queue;
  std::string spelling;
};

class BpeModel final : public TokenModel {
 public:
  explicit BpeModel(const JsonView& part)
      : vocab_(part),
        fuse_unk_(part.boolean("fuse_unk", false)),
        ignore_merges_(part.boolean("ignore_merges", false)),
        prefix_(part.text("continuing_subword_prefix", "")),
        suffix_(part.text("end_of_word_suffix", "")) {
    // A byte's token that is missing is noticed where it would be used.
    if (part.boolean("byte_fallback", false)) byte_tokens_ = vocab_.byte_tokens();
    if (part.has("unk_token")) {
      const auto id = token_id(part.text("unk_token"));
      if (!id) part.refuse("unk_token", "a token of the vocabulary");
      unk_ = *id;
    }
    read_merges(part);
  }

  std::unique_ptr<Scratch> make_scratch(std::size_t text_bytes) const override {
    return std::make_unique<BpeScratch>(text_bytes);
  }

  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const override {
    auto& work = static_cast<BpeScratch&>(scratch);
    if (joins_ && !WordCache::fits(piece)) {
      encode_parts(piece, work, ids);
    } else {
      encode_cached(piece, work, ids);
    }
  }

  std::optional<std::int32_t> token_id(std::string_view token) const override { return vocab_.token_id(token); }
  std::optional<std::string_view> token(std::int32_t id) const override { return vocab_.token(id); }
  std::size_t id_end() const override { return vocab_.id_end(); }

 private:
  void read_merges(const JsonView& part) {
    const auto found = part.value().find("merges");
    if (found == part.value().end() || !found->is_array()) part.refuse("merges", "a list of merges");
    if (found->size() > std::numeric_limits<std::uint32_t>::max() / 4) part.refuse("merges", "a shorter list");
    merges_ = PairTable(found->size());
    std::vector<std::pair<std::int32_t, std::int32_t>> pairs;
    pairs.reserve(found->size());
    std::uint32_t rank = 0;
    std::string joined;
    for (const json& line : *found) {
      std::string_view left;
      std::string_view right;
      if (line.is_string()) {
        // No token of these files has a space, so that one stands between the two.
        const std::string_view text = line.get_ref<const std::string&>();
        const std::size_t space = text.find(' ');
        if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
          refuse_merge(part, line, rank);
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (line.is_array() && line.size() == 2 && line[0].is_string() && line[1].is_string()) {
        left = line[0].get_ref<const std::string&>();
        right = line[1].get_ref<const std::string&>();
      } else {
        refuse_merge(part, line, rank);
      }
      joined.assign(left);
      joined += right.starts_with(prefix_) ? right.substr(prefix_.size()) : right;
      const auto left_id = token_id(left);
      const auto right_id = token_id(right);
      const auto id = token_id(joined);
      if (!left_id || !right_id || !id) {
        const std::string_view missing = !left_id ? left : !right_id ? right : std::string_view(joined);
        fail("{}: merge {} ({}) needs the token \"{}\", which the vocabulary lacks", part.place(), rank,
             json_excerpt(line), missing);
      }
      merges_.insert(*left_id, *right_id, {rank, *id});
      pairs.emplace_back(*left_id, *right_id);
      ++rank;
    }
    find_joins(pairs);
  }

  /// Where no merge ever joins two characters, a piece may be cut between them and nothing changes: Llama 2, whose
  /// pieces are whole texts, becomes as quick as a tokenizer that cuts words. Kept only where every symbol is a
  /// character (no prefix or suffix) or one of its bytes (so none is unknown or dropped), and bytes take part in no
  /// merge.
  void find_joins(const std::vector<std::pair<std::int32_t, std::int32_t>>& pairs) {
    if (ignore_merges_ || !prefix_.empty() || !suffix_.empty() || !byte_tokens_) return;
    std::vector<bool> is_byte(vocab_.id_end());
    for (const std::int32_t id : *byte_tokens_) {
      if (id == kNone) return;
      is_byte[to_index(id)] = true;
    }
    PairTable joins(pairs.size());
    for (const auto& [left, right] : pairs) {
      if (is_byte[to_index(left)] || is_byte[to_index(right)]) return;
      const std::string_view before = *vocab_.token(left);
      const std::string_view after = *vocab_.token(right);
      // Nothing joins an empty token, but a table of characters cannot say so.
      if (before.empty() || after.empty()) return;
      const char32_t last = utf8_at(before, utf8_before(before, before.size())).code;
      joins.insert(static_cast<std::int32_t>(last), static_cast<std::int32_t>(utf8_at(after, 0).code), {});
    }
    joins_ = std::move(joins);
  }

  [[noreturn]] static void refuse_merge(const JsonView& part, const json& line, std::uint32_t rank) {
    fail("{}: merge {} should be \"left right\" or [\"left\", \"right\"], found {}", part.place(), rank,
         json_excerpt(line));
  }

  /// A long piece, cut wherever no merge joins two characters.
  void encode_parts(std::string_view piece, BpeScratch& work, std::vector<std::int32_t>& ids) const {
    std::size_t begin = 0;
    Utf8Char left = utf8_at(piece, 0);
    for (std::size_t at = left.length; at < piece.size();) {
      const Utf8Char right = utf8_at(piece, at);
      if (joins_->find(static_cast<std::int32_t>(left.code), static_cast<std::int32_t>(right.code)) == nullptr) {
        encode_cached(piece.substr(begin, at - begin), work, ids);
        begin = at;
      }
      left = right;
      at += right.length;
    }
    encode_cached(piece.substr(begin), work, ids);
  }

  void encode_cached(std::string_view word, BpeScratch& work, std::vector<std::int32_t>& ids) const {
    if (!WordCache::fits(word)) {
      encode_word(word, work, ids);
      return;
    }
    const std::uint64_t hash = hash_word(word);
    if (work.cache.get(word, hash, ids)) return;
    const std::size_t before = ids.size();
    encode_word(word, work, ids);
    work.cache.put(word, hash, std::span(ids).subspan(before));
  }

  void encode_word(std::string_view word, BpeScratch& work, std::vector<std::int32_t>& ids) const {
    if (ignore_merges_) {
      if (const auto id = token_id(word)) {
        ids.push_back(*id);
        return;
      }
    }
    split_characters(word, work);
    merge_all(work);
    for (std::int32_t at = work.symbols.empty() ? kNone : 0; at != kNone; at = work.symbols[to_index(at)].next) {
      ids.push_back(work.symbols[to_index(at)].id);
    }
  }

  static std::size_t to_index(std::int32_t position) { return static_cast<std::size_t>(position); }

  static void add(BpeScratch& work, std::int32_t id) {
    const auto at = static_cast<std::int32_t>(work.symbols.size());
    if (at > 0) work.symbols.back().next = at;
    work.symbols.push_back({id, at - 1, kNone});
  }

  /// One symbol a character; for one that the vocabulary lacks, its bytes' tokens, or the unknown token, or nothing.
  void split_characters(std::string_view word, BpeScratch& work) const {
    work.symbols.clear();
    bool pending_unk = false;
    for (std::size_t i = 0; i < word.size();) {
      const std::uint32_t length = utf8_at(word, i).length;
      std::string_view character = word.substr(i, length);
      if ((i > 0 && !prefix_.empty()) || (i + length == word.size() && !suffix_.empty())) {
        work.spelling = i > 0 ? prefix_ : "";
        work.spelling += character;
        if (i + length == word.size()) work.spelling += suffix_;
        character = work.spelling;
      }
      i += length;
      if (const auto id = token_id(character)) {
        if (pending_unk) add(work, unk_);
        pending_unk = false;
        add(work, *id);
      } else if (byte_tokens_ && std::all_of(character.begin(), character.end(), [&](char c) {
                   return (*byte_tokens_)[static_cast<unsigned char>(c)] != kNone;
                 })) {
        for (const char c : character) add(work, (*byte_tokens_)[static_cast<unsigned char>(c)]);
      } else if (unk_ != kNone) {
        if (pending_unk && !fuse_unk_) add(work, unk_);
        pending_unk = true;
      }
    }
    if (pending_unk) add(work, unk_);
  }

  void push_candidate(BpeScratch& work, std::int32_t position) const {
    const Symbol& left = work.symbols[to_index(position)];
    if (left.next == kNone) return;
    const std::int32_t right = work.symbols[to_index(left.next)].id;
    if (const Merge* merge = merges_.find(left.id, right)) {
      work.queue.push_back({merge->rank, position, right, left.id});
    }
  }

  void merge_all(BpeScratch& work) const {
    auto& symbols = work.symbols;
    auto& queue = work.queue;
    queue.clear();
    for (std::size_t i = 0; i < symbols.size(); ++i) push_candidate(work, static_cast<std::int32_t>(i));
    std::make_heap(queue.begin(), queue.end(), comes_later);
    const auto push = [&](std::int32_t position) {
      const std::size_t before = queue.size();
      push_candidate(work, position);
      if (queue.size() > before) std::push_heap(queue.begin(), queue.end(), comes_later);
    };
    while (!queue.empty()) {
      std::pop_heap(queue.begin(), queue.end(), comes_later);
      const Candidate top = queue.back();
      queue.pop_back();
      Symbol& left = symbols[to_index(top.position)];
      // Stale: one of the two has become part of another merge since.
      if (left.id != top.left || left.next == kNone || symbols[to_index(left.next)].id != top.right) continue;
      Symbol& right = symbols[to_index(left.next)];
      left.id = merges_.find(top.left, top.right)->id;
      left.next = right.next;
      if (right.next != kNone) symbols[to_index(right.next)].previous = top.position;
      right = {};
      push(top.position);
      if (left.previous != kNone) push(left.previous);
    }
  }

  TokenVocab vocab_;
  bool fuse_unk_;
  bool ignore_merges_;
  std::string prefix_;
  std::string suffix_;
  std::int32_t unk_ = kNone;

  std::optional<std::array<std::int32_t, 256>> byte_tokens_;
  PairTable merges_{0};
  std::optional<PairTable> joins_;  // last and first characters of all that merges
};

}  // namespace

std::unique_ptr<TokenModel> make_bpe_model(const JsonView& part) { return std::make_unique<BpeModel>(part); }

}  // namespace nibble
