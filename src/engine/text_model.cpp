#include "engine/text_model.h"

#include "core/error.h"

#include <algorithm>
#include <numeric>

namespace nibble {
namespace {

// Results of one pass, in values (256 MB): a head over a vocabulary has tens of thousands for each token.
constexpr std::size_t kMostValues = std::size_t{64} << 20;

std::size_t choose_max_length(const Tokenizer& tokenizer, const EncoderEngine& engine, std::size_t wanted) {
  const auto positions = static_cast<std::size_t>(engine.max_length());
  if (wanted > positions) {
    fail_usage("a limit of {} tokens a text was asked for, but the model has positions for {}: ask for no more", wanted,
               positions);
  }
  const std::size_t chosen =
      wanted > 0 ? wanted : std::min(tokenizer.model_max_length().value_or(positions), positions);
  const std::size_t around = tokenizer.encode_text("").ids.size();
  if (chosen <= around) {
    fail_usage("a limit of {} tokens a text leaves no room for text: the special tokens alone are {}", chosen, around);
  }
  return chosen;
}

Tokenizer load_tokenizer(const EncoderEngine& engine, const std::filesystem::path& folder) {
  if (const std::string_view input = input_kind_of(engine.program()); input != "text") {
    fail("{} is a {} model, which takes {}, not text: use nibble encode --{}", folder.string(),
         engine.program().architecture, input, input);
  }
  return Tokenizer::load(folder);
}

}  // namespace

std::string_view name_of(HeadKind head) {
  switch (head) {
    case HeadKind::pooler:
      return "a pooler";
    case HeadKind::projection:
      return "a projection";
    case HeadKind::masked_lm:
      return "a head for masked tokens";
    case HeadKind::sequence_class:
      return "a classifier of texts";
    case HeadKind::token_class:
      return "a classifier of tokens";
    case HeadKind::question_answer:
      return "a head for answers to questions";
    case HeadKind::none:
      break;
  }
  return "no head";
}

std::vector<std::size_t> order_by_length(std::span<const std::size_t> lengths) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return lengths[a] > lengths[b]; });
  return order;
}

TextModel::TextModel(const std::shared_ptr<const Checkpoint>& checkpoint, const TextModelOptions& options)
    : engine_(checkpoint, options.engine),
      tokenizer_(load_tokenizer(engine_, checkpoint->folder())),
      max_length_(choose_max_length(tokenizer_, engine_, options.max_length)),
      batch_size_(std::max<std::size_t>(options.batch_size, 1)) {}

EncodedText TextModel::tokenize(std::string_view text) const {
  return tokenizer_.encode_text(text, {.add_special_tokens = true, .max_length = max_length_});
}

EncodedText TextModel::tokenize_pair(std::string_view first, std::string_view second) const {
  return tokenizer_.encode_pair(first, second, {.add_special_tokens = true, .max_length = max_length_});
}

// Rows of the head that a text of so many tokens gets.
std::size_t TextModel::head_rows_of(std::size_t text, std::size_t tokens, const TextWants& wants) const {
  if (!wants.head) return 0;
  if (!wants.head_rows.empty()) return wants.head_rows[text].size();
  return engine_.head_has_rows() ? tokens : 1;
}

// How many of the first texts of `order` make a pass, whose longest one has `length` tokens.
std::size_t TextModel::batch_of(std::span<const std::size_t> order, std::size_t length, const TextWants& wants) const {
  const auto hidden = static_cast<std::size_t>(engine_.program().hidden);
  const auto columns = static_cast<std::size_t>(engine_.head_columns());
  std::size_t values = 0;
  std::size_t count = 0;
  for (const std::size_t text : order.first(std::min(order.size(), batch_size_))) {
    values += (wants.hidden ? length * hidden : 0) + head_rows_of(text, length, wants) * columns;
    if (count > 0 && values > kMostValues) break;
    ++count;
  }
  return count;
}

void TextModel::run(std::span<const EncodedText> texts, const TextWants& wants,
                    const std::function<void(std::size_t text, const TextRows& rows)>& take) {
  std::vector<std::size_t> sizes;
  sizes.reserve(texts.size());
  for (const EncodedText& text : texts) {
    if (text.ids.empty())
      fail("an empty text has no tokens, not even special ones, with this tokenizer: leave out empty texts");
    sizes.push_back(text.ids.size());
  }
  if (!wants.head_rows.empty() && wants.head_rows.size() != texts.size())
    fail("rows of the head were asked for of {} texts, but {} were given", wants.head_rows.size(), texts.size());
  const std::vector<std::size_t> order = order_by_length(sizes);
  const auto hidden = static_cast<std::size_t>(engine_.program().hidden);
  const auto columns = static_cast<std::size_t>(engine_.head_columns());
  std::vector<std::int32_t> ids, lengths, types;
  std::vector<TokenPlace> places;
  for (std::size_t first = 0; first < order.size();) {
    const std::size_t length = sizes[order[first]];
    const std::size_t count = batch_of(std::span(order).subspan(first), length, wants);
    ids.assign(count * length, 0);
    types.assign(count * length, 0);
    lengths.clear();
    places.clear();
    bool has_types = false;
    for (std::size_t i = 0; i < count; ++i) {
      const EncodedText& text = texts[order[first + i]];
      const auto at = static_cast<std::ptrdiff_t>(i * length);
      std::copy(text.ids.begin(), text.ids.end(), ids.begin() + at);
      std::copy(text.type_ids.begin(), text.type_ids.end(), types.begin() + at);
      lengths.push_back(static_cast<std::int32_t>(text.ids.size()));
      if (!wants.head_rows.empty()) {
        const std::vector<std::int32_t>& rows = wants.head_rows[order[first + i]];
        if (rows.empty()) fail("no row of the head was asked for of text {}: leave it out", order[first + i] + 1);
        for (const std::int32_t row : rows) places.push_back({static_cast<std::int32_t>(i), row});
      }
      has_types = has_types || std::any_of(text.type_ids.begin(), text.type_ids.end(), [](auto t) { return t != 0; });
    }
    // Segments that the tokenizer tells apart and the model does not (DistilBERT's) are left out.
    has_types = has_types && engine_.program().types > 0;
    engine_.forward({static_cast<std::int64_t>(count), static_cast<std::int64_t>(length), ids, lengths,
                     has_types ? std::span<const std::int32_t>(types) : std::span<const std::int32_t>()},
                    {.hidden = wants.hidden, .head = wants.head, .head_rows = places}, result_);
    std::size_t head_row = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t tokens = sizes[order[first + i]];
      TextRows rows;
      if (wants.hidden) rows.hidden = std::span(result_.hidden).subspan(i * length * hidden, tokens * hidden);
      const std::size_t own = head_rows_of(order[first + i], tokens, wants);
      if (wants.head) rows.head = std::span(result_.head).subspan(head_row * columns, own * columns);
      // Rows of all tokens come with those of padding.
      head_row += head_rows_of(order[first + i], length, wants);
      take(order[first + i], rows);
    }
    first += count;
  }
}

}  // namespace nibble
