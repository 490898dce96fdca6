#include "formats/tokenizer_added.h"

#include "core/error.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

namespace nibble {
namespace {

bool word_before(std::string_view text, std::size_t end) {
  return end > 0 && is_unicode_word(utf8_at(text, utf8_before(text, end)).code);
}

bool word_after(std::string_view text, std::size_t begin) {
  return begin < text.size() && is_unicode_word(utf8_at(text, begin).code);
}

/// Where the white space that ends at `end` begins, not before `stop`.
std::size_t space_start(std::string_view text, std::size_t stop, std::size_t end) {
  while (end > stop) {
    const std::size_t before = utf8_before(text, end);
    if (!is_unicode_space(utf8_at(text, before).code)) break;
    end = before;
  }
  return end;
}

/// Where the white space that begins at `begin` ends.
std::size_t space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const Utf8Char c = utf8_at(text, begin);
    if (!is_unicode_space(c.code)) break;
    begin += c.length;
  }
  return begin;
}

std::uint64_t edge_key(std::uint32_t node, char byte) {
  return (static_cast<std::uint64_t>(node) << 8) | static_cast<unsigned char>(byte);
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const JsonView& file) {
  std::vector<AddedToken> tokens;
  if (!file.has("added_tokens")) return tokens;
  for (const JsonView& item : file.objects("added_tokens", kMaxAddedTokens)) {
    AddedToken token;
    token.content = item.text("content");
    if (token.content.size() > kMaxAddedTokenBytes) {
      item.refuse("content", fmt::format("a string of at most {} bytes", kMaxAddedTokenBytes));
    }
    const auto id = item.value().find("id");
    if (id == item.value().end()) item.refuse("id", "a token id");
    token.id = to_token_id(*id, item.place());
    token.special = item.boolean("special", false);
    token.single_word = item.boolean("single_word", false);
    token.lstrip = item.boolean("lstrip", false);
    token.rstrip = item.boolean("rstrip", false);
    token.normalized = item.boolean("normalized", !token.special);
    // An empty token is in every text everywhere; the file's own library drops it as well.
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

void AddedTokenFinder::add(std::string_view content, const AddedToken& token) {
  if (content.empty()) return;
  first_bytes_[static_cast<unsigned char>(content[0])] = true;
  std::uint32_t node = 0;
  for (const char byte : content) {
    const auto [it, fresh] = edges_.try_emplace(edge_key(node, byte), static_cast<std::uint32_t>(rule_of_node_.size()));
    if (fresh) rule_of_node_.push_back(-1);
    node = it->second;
  }
  rule_of_node_[node] = static_cast<std::int32_t>(rules_.size());
  rules_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::longest_at(std::string_view text, std::size_t offset) const {
  std::optional<Match> best;
  std::uint32_t node = 0;
  for (std::size_t i = offset; i < text.size(); ++i) {
    const auto edge = edges_.find(edge_key(node, text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (rule_of_node_[node] >= 0) best = Match{i + 1, static_cast<std::uint32_t>(rule_of_node_[node])};
  }
  return best;
}

std::vector<AddedSplit> AddedTokenFinder::split(std::string_view text) const {
  std::vector<AddedSplit> out;
  std::size_t done = 0;
  const auto put = [&](std::size_t begin, std::size_t end, std::int32_t id) {
    out.push_back({{static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)}, id});
  };
  for (std::size_t at = 0; at < text.size();) {
    if (!first_bytes_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const auto match = longest_at(text, at);
    if (!match) {
      ++at;
      continue;
    }
    const Rule& rule = rules_[match->rule];
    std::size_t begin = at;
    std::size_t end = match->end;
    at = end;
    if (rule.single_word && (word_before(text, begin) || word_after(text, end))) continue;
    if (rule.lstrip) begin = space_start(text, std::min(done, begin), begin);
    // Where the token lies in white space that one before it took, that one's end is the end of this one's too.
    if (rule.rstrip) end = end < done ? done : space_end(text, end);
    if (done < begin) put(done, begin, -1);
    put(begin, end, rule.id);
    done = std::max(done, end);
  }
  if (done < text.size()) put(done, text.size(), -1);
  return out;
}

}  // namespace nibble
