#include "formats/tokenizer_vocab.h"

#include "core/error.h"
#include "formats/tokenizer_parts.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace nibble {

TokenVocab::TokenVocab(const JsonView& part) {
  const auto vocab = part.object("vocab");
  if (!vocab) part.refuse("vocab", "an object of tokens and their ids");
  const nlohmann::json& entries = vocab->value();
  std::size_t end = 0;
  for (const auto& [token, id] : entries.items()) {
    end = std::max(end, static_cast<std::size_t>(to_token_id(id, vocab->place())) + 1);
  }
  tokens_.resize(end);
  ids_.reserve(entries.size());
  for (const auto& [token, value] : entries.items()) {
    const auto id = value.get<std::int32_t>();
    auto& slot = tokens_[static_cast<std::size_t>(id)];
    if (slot) fail("{}: the tokens \"{}\" and \"{}\" have one id, {}", vocab->place(), *slot, token, id);
    // The map's keys stay where they are, so that the table by id can point at them.
    slot = ids_.emplace(token, id).first->first;
  }
}

void TokenVocab::append(const std::string& token) {
  const auto [entry, fresh] = ids_.try_emplace(token, 0);
  entry->second = static_cast<std::int32_t>(tokens_.size());
  tokens_.emplace_back(entry->first);
}

std::optional<std::int32_t> TokenVocab::token_id(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

std::optional<std::string_view> TokenVocab::token(std::int32_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= tokens_.size()) return std::nullopt;
  return tokens_[static_cast<std::size_t>(id)];
}

std::array<std::int32_t, 256> TokenVocab::byte_tokens() const {
  std::array<std::int32_t, 256> out{};
  for (std::size_t byte = 0; byte < out.size(); ++byte) {
    out[byte] = token_id(fmt::format("<0x{:02X}>", byte)).value_or(TokenTrie::kNoToken);
  }
  return out;
}

TokenTrie::TokenTrie(const TokenVocab& vocab, std::string_view place) {
  struct Entry {
    std::string_view token;
    std::int32_t id;
  };
  std::vector<Entry> entries;
  entries.reserve(vocab.id_end());
  for (std::size_t id = 0; id < vocab.id_end(); ++id) {
    const auto token = vocab.token(static_cast<std::int32_t>(id));
    if (!token || token->empty()) continue;
    if (token->size() > kMaxTokenBytes) {
      fail("{}: vocab has a token of {} bytes (id {}); expected at most {}, as real vocabularies have far shorter ones",
           place, token->size(), id, kMaxTokenBytes);
    }
    entries.push_back({*token, *vocab.token_id(*token)});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.token < b.token; });

  /// The entries below a node: they agree in their first `depth` bytes.
  struct Span {
    std::uint32_t begin;
    std::uint32_t end;
    std::uint32_t depth;
  };
  std::vector<Span> spans = {{0, static_cast<std::uint32_t>(entries.size()), 0}};
  labels_.push_back(0);  // the root has none
  for (std::size_t node = 0; node < spans.size(); ++node) {
    const Span span = spans[node];
    nodes_.push_back({static_cast<std::uint32_t>(spans.size()), kNoToken});
    std::uint32_t at = span.begin;
    for (; at < span.end && entries[at].token.size() == span.depth; ++at) nodes_.back().token = entries[at].id;
    while (at < span.end) {
      const char byte = entries[at].token[span.depth];
      const std::uint32_t begin = at;
      while (at < span.end && entries[at].token[span.depth] == byte) ++at;
      if (node == kRoot) root_[static_cast<unsigned char>(byte)] = static_cast<std::uint32_t>(spans.size());
      spans.push_back({begin, at, span.depth + 1});
      labels_.push_back(static_cast<unsigned char>(byte));
    }
    if (spans.size() > kMaxNodes) {
      fail("{}: the tokens of vocab have more than {} different beginnings, which no real vocabulary has", place,
           kMaxNodes);
    }
  }
  nodes_.push_back({static_cast<std::uint32_t>(spans.size()), kNoToken});
}

std::uint32_t TokenTrie::search(std::uint32_t begin, std::uint32_t end, unsigned char label) const {
  const auto first = labels_.begin();
  const auto found = std::lower_bound(first + begin, first + end, label);
  return found != first + end && *found == label ? static_cast<std::uint32_t>(found - first) : kRoot;
}

}  // namespace nibble
