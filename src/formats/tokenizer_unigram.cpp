// Unigram language model (Kudo 2018, https://arxiv.org/abs/1804.10959) as sentencepiece and tokenizer.json have it: of
// all ways to cut a piece into tokens, the one whose log probabilities have the largest sum. Positions are taken from
// left to right and a search from each is as long as the longest token, so that time is linear in the piece.
#include "core/error.h"
#include "formats/tokenizer_parts.h"
#include "formats/tokenizer_vocab.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {
namespace {

using nlohmann::json;

/// An unknown character's score lies this far below the smallest score of the vocabulary, as in sentencepiece.
constexpr double kUnknownPenalty = 10.0;

/// The best way to a position: the token that ends there and where that begins.
struct BestEnd {
  double score = 0;
  std::uint32_t start = kNowhere;
  std::int32_t id = TokenTrie::kNoToken;
  static constexpr std::uint32_t kNowhere = std::numeric_limits<std::uint32_t>::max();
};

struct Cut {
  TextRange range;
  std::int32_t id;
};

class UnigramScratch final : public TokenModel::Scratch {
 public:
  std::vector<BestEnd> best;  // by position
  std::vector<Cut> cuts;      // from the last to the first
};

class UnigramModel final : public TokenModel {
 public:
  explicit UnigramModel(const JsonView& part) : place_(part.place()) {
    read_vocab(part);
    trie_ = TokenTrie(vocab_, place_);
    if (part.has("unk_id")) {
      const std::int64_t id = part.integer("unk_id");
      if (id < 0 || static_cast<std::uint64_t>(id) >= scores_.size()) part.refuse("unk_id", "an id of the vocabulary");
      unk_ = static_cast<std::int32_t>(id);
    }
    if (part.boolean("byte_fallback", false)) byte_tokens_ = vocab_.byte_tokens();
  }

  std::unique_ptr<Scratch> make_scratch(std::size_t) const override { return std::make_unique<UnigramScratch>(); }

  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const override {
    auto& work = static_cast<UnigramScratch&>(scratch);
    find_best(piece, work);
    for (std::size_t i = work.cuts.size(); i > 0;) {
      const Cut first = work.cuts[--i];
      TextRange range = first.range;
      // Unknown characters side by side are one unknown token.
      for (; first.id == unk_ && i > 0 && work.cuts[i - 1].id == unk_; --i) range.end = work.cuts[i - 1].range.end;
      if (first.id != unk_) {
        ids.push_back(first.id);
      } else {
        append_unknown(piece.substr(range.begin, range.end - range.begin), ids);
      }
    }
  }

  std::optional<std::int32_t> token_id(std::string_view token) const override { return vocab_.token_id(token); }
  std::optional<std::string_view> token(std::int32_t id) const override { return vocab_.token(id); }
  std::size_t id_end() const override { return vocab_.id_end(); }

 private:
  void read_vocab(const JsonView& part) {
    const auto found = part.value().find("vocab");
    if (found == part.value().end() || !found->is_array() || found->empty()) {
      part.refuse("vocab", "a list of tokens and their log probabilities");
    }
    if (found->size() > static_cast<std::size_t>(kMaxTokenIds)) {
      fail("{}: vocab has {} tokens; expected at most {}", place_, found->size(), kMaxTokenIds);
    }
    scores_.reserve(found->size());
    for (const json& entry : *found) {
      const bool is_pair = entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_number();
      const double score = is_pair ? entry[1].get<double>() : std::numeric_limits<double>::quiet_NaN();
      if (!std::isfinite(score)) {
        fail("{}: vocab[{}] should be [token, log probability], found {}", place_, scores_.size(), json_excerpt(entry));
      }
      vocab_.append(entry[0].get_ref<const std::string&>());
      scores_.push_back(score);
    }
    unknown_score_ = *std::min_element(scores_.begin(), scores_.end()) - kUnknownPenalty;
  }

  /// Fills work.cuts with the best way through the piece.
  void find_best(std::string_view piece, UnigramScratch& work) const {
    auto& best = work.best;
    best.assign(piece.size() + 1, {});
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t character_end = at + utf8_at(piece, at).length;
      const double so_far = best[at].score;
      const auto offer = [&](std::size_t end, std::int32_t id, double score) {
        BestEnd& to = best[end];
        if (to.start == BestEnd::kNowhere || so_far + score > to.score) {
          to = {so_far + score, static_cast<std::uint32_t>(at), id};
        }
      };
      bool is_known = false;
      std::uint32_t node = TokenTrie::kRoot;
      for (std::size_t i = at; i < piece.size(); ++i) {
        node = trie_.child(node, piece[i]);
        if (node == TokenTrie::kRoot) break;
        const std::int32_t id = trie_.token(node);
        if (id == TokenTrie::kNoToken) continue;
        offer(i + 1, id, scores_[static_cast<std::size_t>(id)]);
        is_known = is_known || i + 1 == character_end;
      }
      // Every position between characters can be reached, so that the way back below never ends early.
      if (!is_known) offer(character_end, unknown_at(piece, at), unknown_score_);
      at = character_end;
    }
    work.cuts.clear();
    for (std::size_t end = piece.size(); end > 0;) {
      const BestEnd& cut = best[end];
      work.cuts.push_back({{cut.start, static_cast<std::uint32_t>(end)}, cut.id});
      end = cut.start;
    }
  }

  std::int32_t unknown_at(std::string_view piece, std::size_t at) const {
    if (unk_ == TokenTrie::kNoToken) {
      fail("{}: no token spells the character \"{}\" of the text, and the file has no unk_id for it", place_,
           piece.substr(at, utf8_at(piece, at).length));
    }
    return unk_;
  }

  void append_unknown(std::string_view text, std::vector<std::int32_t>& ids) const {
    // The unknown token's own spelling comes here as well.
    if (const auto id = vocab_.token_id(text)) {
      ids.push_back(*id);
      return;
    }
    const auto byte_token = [&](char c) { return (*byte_tokens_)[static_cast<unsigned char>(c)]; };
    if (byte_tokens_ &&
        std::none_of(text.begin(), text.end(), [&](char c) { return byte_token(c) == TokenTrie::kNoToken; })) {
      for (const char c : text) ids.push_back(byte_token(c));
    } else {
      ids.push_back(unk_);
    }
  }

  std::string place_;
  TokenVocab vocab_;
  TokenTrie trie_;
  std::vector<double> scores_;  // by id
  double unknown_score_ = 0;
  std::int32_t unk_ = TokenTrie::kNoToken;
  std::optional<std::array<std::int32_t, 256>> byte_tokens_;
};

}  // namespace

std::unique_ptr<TokenModel> make_unigram_model(const JsonView& part) { return std::make_unique<UnigramModel>(part); }

}  // namespace nibble
