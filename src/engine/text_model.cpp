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

// Texts of a pass whose longest one has `length` tokens.
std::size_t TextModel::batch_of(std::size_t length, const EncoderWants& wants) const {
  std::size_t values = 1;
  if (wants.hidden) values += length * static_cast<std::size_t>(engine_.program().hidden);
  if (wants.head) values += (engine_.head_has_rows() ? length : 1) * static_cast<std::size_t>(engine_.head_columns());
  return std::clamp<std::size_t>(kMostValues / values, 1, batch_size_);
}

void TextModel::run(std::span<const EncodedText> texts, const EncoderWants& wants,
                    const std::function<void(std::size_t text, const TextRows& rows)>& take) {
  std::vector<std::size_t> sizes;
  sizes.reserve(texts.size());
  for (const EncodedText& text : texts) {
    if (text.ids.empty())
      fail("an empty text has no tokens, not even special ones, with this tokenizer: leave out empty texts");
    sizes.push_back(text.ids.size());
  }
  const std::vector<std::size_t> order = order_by_length(sizes);
  const auto hidden = static_cast<std::size_t>(engine_.program().hidden);
  const auto columns = static_cast<std::size_t>(engine_.head_columns());
  std::vector<std::int32_t> ids, lengths, types;
  for (std::size_t first = 0; first < order.size();) {
    const std::size_t length = sizes[order[first]];
    const std::size_t count = std::min(batch_of(length, wants), order.size() - first);
    ids.assign(count * length, 0);
    types.assign(count * length, 0);
    lengths.clear();
    bool has_types = false;
    for (std::size_t i = 0; i < count; ++i) {
      const EncodedText& text = texts[order[first + i]];
      const auto at = static_cast<std::ptrdiff_t>(i * length);
      std::copy(text.ids.begin(), text.ids.end(), ids.begin() + at);
      std::copy(text.type_ids.begin(), text.type_ids.end(), types.begin() + at);
      lengths.push_back(static_cast<std::int32_t>(text.ids.size()));
      has_types = has_types || std::any_of(text.type_ids.begin(), text.type_ids.end(), [](auto t) { return t != 0; });
    }
    // Segments that the tokenizer tells apart and the model does not (DistilBERT's) are left out.
    has_types = has_types && engine_.program().types > 0;
    engine_.forward({static_cast<std::int64_t>(count), static_cast<std::int64_t>(length), ids, lengths,
                     has_types ? std::span<const std::int32_t>(types) : std::span<const std::int32_t>()},
                    wants, result_);
    const std::size_t head_rows = engine_.head_has_rows() ? length : 1;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t tokens = sizes[order[first + i]];
      TextRows rows;
      if (wants.hidden) rows.hidden = std::span(result_.hidden).subspan(i * length * hidden, tokens * hidden);
      if (wants.head) {
        rows.head =
            std::span(result_.head).subspan(i * head_rows * columns, (engine_.head_has_rows() ? tokens : 1) * columns);
      }
      take(order[first + i], rows);
    }
    first += count;
  }
}

}  // namespace nibble
