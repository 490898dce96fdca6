#include "engine/text_heads.h"

#include "core/error.h"
#include "formats/json.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>

namespace nibble {
namespace {

ScoreKind read_kind(const JsonView& config, std::int64_t columns) {
  const std::string problem = config.text("problem_type", "");
  if (problem == "regression") return ScoreKind::value;
  if (problem == "multi_label_classification") return ScoreKind::sigmoid;
  if (!problem.empty() && problem != "single_label_classification") {
    config.refuse("problem_type", "regression, single_label_classification or multi_label_classification");
  }
  return columns == 1 ? ScoreKind::sigmoid : ScoreKind::softmax;
}

// A label such as B-PER: its first letter, where it has one of the schemes' prefixes.
char prefix_of(std::string_view label) {
  constexpr std::string_view kPrefixes = "BIESLU";
  const bool has = label.size() > 2 && label[1] == '-' && kPrefixes.find(label[0]) != std::string_view::npos;
  return has ? label[0] : '\0';
}

}  // namespace

Labels read_labels(const Checkpoint& checkpoint, HeadKind head, std::int64_t columns) {
  const std::string where = (checkpoint.folder() / "config.json").string();
  const JsonView config(checkpoint.config(), where);
  Labels labels;
  const auto names = config.object("id2label");
  for (std::int64_t i = 0; i < columns; ++i) {
    const std::string key = std::to_string(i);
    labels.names.push_back(names && names->has(key) ? names->text(key) : fmt::format("LABEL_{}", i));
  }
  // A token has one label.
  if (head == HeadKind::sequence_class) labels.kind = read_kind(config, columns);
  return labels;
}

std::vector<float> scores_of(std::span<const float> logits, ScoreKind kind) {
  std::vector<float> out(logits.begin(), logits.end());
  if (kind == ScoreKind::sigmoid) {
    for (float& v : out) v = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(v))));
  } else if (kind == ScoreKind::softmax && !out.empty()) {
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float v : logits) sum += std::exp(static_cast<double>(v) - largest);
    for (float& v : out) v = static_cast<float>(std::exp(static_cast<double>(v) - largest) / sum);
  }
  return out;
}

std::vector<Candidate> best_of(std::span<const float> scores, std::size_t count) {
  std::vector<std::int32_t> ids(scores.size());
  std::iota(ids.begin(), ids.end(), 0);
  const std::size_t kept = count == 0 ? ids.size() : std::min(count, ids.size());
  const auto score = [&](std::int32_t id) {
    // Every value has a place in the order, what is no number the last.
    const float s = scores[static_cast<std::size_t>(id)];
    return std::isnan(s) ? -INFINITY : s;
  };
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(),
                    [&](std::int32_t a, std::int32_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  std::vector<Candidate> out;
  out.reserve(kept);
  for (std::size_t i = 0; i < kept; ++i) out.push_back({ids[i], scores[static_cast<std::size_t>(ids[i])]});
  return out;
}

std::vector<TokenGroup> group_tokens(std::span<const std::string> labels, std::span<const float> scores,
                                     std::size_t first) {
  std::vector<TokenGroup> groups;
  std::size_t last_end = labels.size() + first;  // no group ends here yet
  double sum = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::string_view label = labels[i];
    if (label == "O") continue;
    const char prefix = prefix_of(label);
    const std::string_view kind = prefix == '\0' ? label : label.substr(2);
    const bool begins = prefix == 'B' || prefix == 'S' || prefix == 'U';
    if (begins || groups.empty() || groups.back().label != kind || last_end != first + i) {
      groups.push_back({std::string(kind), {first + i, first + i}, 0});
      sum = 0;
    }
    TokenGroup& group = groups.back();
    last_end = group.tokens.end = first + i + 1;
    sum += static_cast<double>(scores[i]);
    group.score = static_cast<float>(sum / static_cast<double>(group.tokens.end - group.tokens.begin));
  }
  return groups;
}

std::optional<AnswerSpan> best_span(std::span<const float> logits, TokenRange range, std::size_t longest) {
  if (range.begin >= range.end) return std::nullopt;
  std::vector<float> begins, ends;
  for (std::size_t i = range.begin; i < range.end; ++i) {
    begins.push_back(logits[2 * i]);
    ends.push_back(logits[2 * i + 1]);
  }
  begins = scores_of(begins, ScoreKind::softmax);
  ends = scores_of(ends, ScoreKind::softmax);
  AnswerSpan best{{range.begin, range.begin + 1}, 0};
  for (std::size_t b = 0; b < begins.size(); ++b) {
    const std::size_t stop = longest == 0 ? ends.size() : std::min(ends.size(), b + longest);
    for (std::size_t e = b; e < stop; ++e) {
      const float score = begins[b] * ends[e];
      if (score > best.score) best = {{range.begin + b, range.begin + e + 1}, score};
    }
  }
  return best;
}

std::vector<TextWindow> windows_of(const EncodedText& pair, std::size_t max_length, std::size_t overlap) {
  if (pair.ids.size() <= max_length) return {{pair, 0}};
  const auto [begin, end] = pair.texts[1];
  const std::size_t around = pair.ids.size() - (end - begin);
  if (around >= max_length) {
    fail_usage(
        "the first text of a pair takes {} tokens, special ones among them, which leaves no room for the second within "
        "{}: shorten it",
        around, max_length);
  }
  const std::size_t room = max_length - around;
  const std::size_t step = room - std::min(overlap, room / 2);
  const auto cut_out = [&](const std::vector<std::int32_t>& from, std::size_t first, std::size_t last) {
    std::vector<std::int32_t> out(from.begin(), from.begin() + static_cast<std::ptrdiff_t>(begin));
    out.insert(out.end(), from.begin() + static_cast<std::ptrdiff_t>(first),
               from.begin() + static_cast<std::ptrdiff_t>(last));
    out.insert(out.end(), from.begin() + static_cast<std::ptrdiff_t>(end), from.end());
    return out;
  };
  std::vector<TextWindow> out;
  out.reserve((end - begin) / step + 1);
  for (std::size_t first = begin;; first += step) {
    const std::size_t last = std::min(first + room, end);
    EncodedText window;
    window.ids = cut_out(pair.ids, first, last);
    window.type_ids = cut_out(pair.type_ids, first, last);
    window.texts = {pair.texts[0], {begin, begin + (last - first)}};
    // The first text may stand behind the second.
    if (pair.texts[0].begin >= end) {
      const std::size_t missing = (end - begin) - (last - first);
      window.texts[0] = {pair.texts[0].begin - missing, pair.texts[0].end - missing};
    }
    out.push_back({std::move(window), first - begin});
    if (last == end) return out;
  }
}

std::string text_of(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  const std::string text = tokenizer.decode(ids, false);
  const std::size_t begin = text.find_first_not_of(' ');
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

}  // namespace nibble
