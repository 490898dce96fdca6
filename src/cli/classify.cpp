// nibble classify --model MODEL TEXT...: labels of texts, of their tokens or of images, and answers to questions.
#include "cli/classify_images.h"
#include "cli/command.h"
#include "cli/encoder_options.h"
#include "cli/label_lines.h"
#include "core/error.h"
#include "engine/text_heads.h"
#include "formats/token_places.h"
#include "formats/unicode.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

namespace nibble {
namespace {

using nlohmann::ordered_json;

struct Arguments {
  EncoderModelOptions model;
  std::vector<std::string> texts;
  std::vector<std::string> images;
  bool pair = false;
  std::optional<std::string> question;
  std::size_t top_k = 0;
  std::size_t answer_tokens = 30;
  std::string format = "text";
};

// Texts come and go in chunks of that many batches.
constexpr std::size_t kBatchesOfChunk = 16;
// Tokens that neighbouring windows of a long text share, as in transformers' pipeline.
constexpr std::size_t kAnswerOverlap = 128;

void check_options(const Arguments& arguments, HeadKind head) {
  const bool answers = head == HeadKind::question_answer;
  if (answers && !arguments.question)
    fail_usage("this checkpoint finds answers to questions: give one with --question, and the texts to look in");
  if (!answers && arguments.question)
    fail_usage("--question is for heads that find answers, but this checkpoint has {}", name_of(head));
  if (arguments.pair && head != HeadKind::sequence_class)
    fail_usage("--pair is for classifiers of texts, but this checkpoint has {}", name_of(head));
}

class Classifier {
 public:
  Classifier(const Arguments& arguments, const std::shared_ptr<const Checkpoint>& checkpoint, HeadKind head)
      : arguments_(arguments),
        head_(head),
        model_(checkpoint, arguments.model.text_model_options()),
        labels_(read_labels(*checkpoint, head, model_.engine().head_columns())) {}

  // `first` texts came before these.
  void run(const std::vector<std::string>& texts, std::size_t first) {
    if (head_ == HeadKind::question_answer) {
      answers(texts);
      return;
    }
    std::vector<EncodedText> encoded;
    encoded.reserve(texts.size());
    for (const std::string& text : texts) {
      encoded.push_back(tokenize(text, first + encoded.size() + 1));
      if (encoded.back().cut > 0) ++cut_;
    }
    std::vector<std::string> out(texts.size());
    model_.run(encoded, {.hidden = false, .head = true}, [&](std::size_t text, const TextRows& rows) {
      switch (head_) {
        case HeadKind::token_class:
          out[text] = tokens(texts[text], encoded[text], rows.head);
          break;
        default:
          out[text] = sequence(texts[text], rows.head);
      }
    });
    for (const std::string& text : out) print_out(text);
  }
  std::size_t cut() const { return cut_; }
  std::size_t max_length() const { return model_.max_length(); }

 private:
  bool as_json() const { return arguments_.format == "jsonl"; }
  const std::string& label(std::int32_t column) const { return labels_.names[static_cast<std::size_t>(column)]; }

  EncodedText tokenize(const std::string& text, std::size_t number) const {
    if (!arguments_.pair) return model_.tokenize(text);
    const std::size_t tab = text.find('\t');
    if (tab == std::string::npos || text.find('\t', tab + 1) != std::string::npos)
      fail("text {} is no pair: with --pair, expected two texts with one tab between them", number);
    return model_.tokenize_pair(std::string_view(text).substr(0, tab), std::string_view(text).substr(tab + 1));
  }

  std::string sequence(const std::string& text, std::span<const float> logits) const {
    ordered_json json;
    if (arguments_.pair) {
      json["text"] = text.substr(0, text.find('\t'));
      json["pair"] = text.substr(text.find('\t') + 1);
    } else {
      json["text"] = text;
    }
    return label_lines(std::move(json), text, logits, labels_, arguments_.top_k, as_json());
  }

  std::string tokens(const std::string& text, const EncodedText& encoded, std::span<const float> logits) const {
    const Tokenizer& tokenizer = model_.tokenizer();
    const std::size_t columns = labels_.names.size();
    const std::span<const std::int32_t> ids = encoded.ids;
    ordered_json json = {{"text", text}, {"tokens", ordered_json::array()}, {"entities", ordered_json::array()}};
    std::string lines = text + "\n";
    std::vector<std::string> names;
    std::vector<float> scores;
    for (std::size_t i = encoded.texts[0].begin; i < encoded.texts[0].end; ++i) {
      const Candidate best = best_of(scores_of(logits.subspan(i * columns, columns), ScoreKind::softmax), 1).front();
      names.push_back(label(best.id));
      scores.push_back(best.score);
      const std::string token = tokenizer.token(ids[i]);
      json["tokens"].push_back({{"token", token}, {"label", names.back()}, {"score", shortest(best.score)}});
      lines += fmt::format("  {:.4f}  {:8}  {}\n", best.score, names.back(), token);
    }
    const std::span<const std::int32_t> own =
        ids.subspan(encoded.texts[0].begin, encoded.texts[0].end - encoded.texts[0].begin);
    const Places places = encoded.cut == 0 ? find_tokens(tokenizer, text, own) : std::nullopt;
    // Places of entities count the tokens of the text, as the list of tokens does.
    for (const TokenGroup& group : group_tokens(names, scores, 0)) {
      const Excerpt words = excerpt(text, own, places, group.tokens);
      json["entities"].push_back({{"label", group.label},
                                  {"text", words.text},
                                  {"score", shortest(group.score)},
                                  {"begin", group.tokens.begin},
                                  {"end", group.tokens.end},
                                  {"characters", words.characters}});
      lines += fmt::format("  {:.4f}  {:8}  = {}\n", group.score, group.label, words.text);
    }
    return as_json() ? json_line(json) : lines;
  }

  using Places = std::optional<std::vector<TextRange>>;

  // Words of a text as they are written there, and their first character and the one behind their last, counted as
  // Python does; as the tokens spell them, and null, where the tokens' places are not known.
  struct Excerpt {
    std::string text;
    ordered_json characters;
  };
  Excerpt excerpt(const std::string& text, std::span<const std::int32_t> ids, const Places& places,
                  TokenRange range) const {
    if (!places) return {text_of(model_.tokenizer(), ids.subspan(range.begin, range.end - range.begin)), nullptr};
    const std::size_t begin = (*places)[range.begin].begin;
    const std::size_t end = std::max<std::size_t>((*places)[range.end - 1].end, begin);
    const std::string_view all = text;
    return {text.substr(begin, end - begin), {utf8_length(all.substr(0, begin)), utf8_length(all.substr(0, end))}};
  }

  // Of all windows of a text the best answer.
  void answers(const std::vector<std::string>& texts) {
    std::vector<EncodedText> windows;
    std::vector<std::size_t> owners, firsts;
    std::vector<std::vector<std::int32_t>> ids;  // of each text without the question
    windows.reserve(texts.size());
    owners.reserve(texts.size());
    firsts.reserve(texts.size());
    ids.reserve(texts.size());
    for (const std::string& text : texts) {
      const EncodedText whole = model_.tokenizer().encode_pair(*arguments_.question, text);
      for (TextWindow& window : windows_of(whole, model_.max_length(), kAnswerOverlap)) {
        windows.push_back(std::move(window.pair));
        owners.push_back(ids.size());
        firsts.push_back(window.first);
      }
      ids.emplace_back(whole.ids.begin() + static_cast<std::ptrdiff_t>(whole.texts[1].begin),
                       whole.ids.begin() + static_cast<std::ptrdiff_t>(whole.texts[1].end));
    }
    std::vector<std::optional<AnswerSpan>> best(texts.size());
    model_.run(windows, {.hidden = false, .head = true}, [&](std::size_t window, const TextRows& rows) {
      const TokenRange range = windows[window].texts[1];
      const std::optional<AnswerSpan> span = best_span(rows.head, range, arguments_.answer_tokens);
      std::optional<AnswerSpan>& of_text = best[owners[window]];
      if (!span || (of_text && of_text->score >= span->score)) return;
      const auto in_text = [&](std::size_t token) { return token - range.begin + firsts[window]; };
      of_text = {{in_text(span->tokens.begin), in_text(span->tokens.end)}, span->score};
    });
    for (std::size_t i = 0; i < texts.size(); ++i) print_out(answer(texts[i], ids[i], best[i]));
  }

  std::string answer(const std::string& text, std::span<const std::int32_t> ids,
                     const std::optional<AnswerSpan>& best) const {
    ordered_json json = {
        {"text", text}, {"question", *arguments_.question}, {"answer", nullptr}, {"score", 0}, {"characters", nullptr}};
    std::string lines = text + "\n";
    if (best) {
      const Excerpt words = excerpt(text, ids, find_tokens(model_.tokenizer(), text, ids), best->tokens);
      json["answer"] = words.text;
      json["score"] = shortest(best->score);
      json["characters"] = words.characters;
      lines += fmt::format("  {:.4f}  {}\n", best->score, words.text);
    }
    return as_json() ? json_line(json) : lines;
  }

  const Arguments& arguments_;
  HeadKind head_;
  TextModel model_;
  Labels labels_;
  std::size_t cut_ = 0;
};

int run(const Arguments& arguments) {
  if (!arguments.images.empty()) {
    if (!arguments.texts.empty() || arguments.pair || arguments.question)
      fail_usage("give texts, with --pair or --question, or --images, not both: a model takes one of them");
    return classify_images(arguments.model, arguments.images, arguments.top_k, arguments.format == "jsonl");
  }
  const auto checkpoint = arguments.model.open();
  const HeadKind head = require_head(
      *checkpoint, {HeadKind::sequence_class, HeadKind::token_class, HeadKind::question_answer}, "nibble classify");
  check_options(arguments, head);
  Classifier classifier(arguments, checkpoint, head);
  TextSource source(arguments.texts, "");
  std::vector<std::string> texts;
  std::size_t done = 0;
  while (source.next(arguments.model.batch_size * kBatchesOfChunk, texts)) {
    classifier.run(texts, done);
    done += texts.size();
  }
  warn_cut(classifier.cut(), done, classifier.max_length());
  return 0;
}

const CommandRegistration kRegistration(
    {"classify", "labels of texts, tokens or images, answers to questions", [](CLI::App& app) -> std::function<int()> {
       auto a = std::make_shared<Arguments>();
       a->model.add_to(app);
       app.add_option("texts", a->texts, "texts to classify (default: lines of standard input)");
       app.add_option("--images", a->images, "image files, JPEG or PNG, in place of texts");
       app.add_flag("--pair", a->pair, "each text is a pair with a tab between its two texts");
       app.add_option("--question", a->question, "with a head that finds answers: what to look for in the texts");
       app.add_option("--top-k", a->top_k, "classifiers of texts and images: the best labels to print (0: all)")
           ->capture_default_str()
           ->check(CLI::Range(0, 1 << 24));
       app.add_option("--answer-tokens", a->answer_tokens, "tokens of an answer at most (0: any number)")
           ->capture_default_str()
           ->check(CLI::Range(0, 1 << 24));
       app.add_option("--format", a->format, "text or jsonl")
           ->capture_default_str()
           ->check(CLI::IsMember({"text", "jsonl"}));
       return [a] { return run(*a); };
     }});

}  // namespace
}  // namespace nibble
