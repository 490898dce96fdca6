// nibble fill-mask --model MODEL TEXT...: likely words for the masked tokens of texts.
#include "cli/command.h"
#include "cli/encoder_options.h"
#include "core/error.h"
#include "engine/text_heads.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <memory>
#include <optional>

namespace nibble {
namespace {

struct Arguments {
  EncoderModelOptions model;
  std::vector<std::string> texts;
  std::size_t top_k = 5;
  std::string format = "text";
};

struct Mask {
  std::int32_t position = 0;  // among the text's tokens, special ones counted
  std::vector<Candidate> candidates;
};

class MaskFiller {
 public:
  MaskFiller(const Arguments& arguments, const std::shared_ptr<const Checkpoint>& checkpoint,
             const TextModelOptions& options)
      : arguments_(arguments), model_(checkpoint, options) {
    const std::optional<std::int32_t> mask = model_.tokenizer().special().mask;
    if (!mask) {
      fail("{}: the tokenizer has no mask token; name it as mask_token in tokenizer_config.json",
           checkpoint->folder().string());
    }
    mask_ = *mask;
  }

  // `first` texts came before these.
  void run(const std::vector<std::string>& texts, std::size_t first) {
    std::vector<EncodedText> encoded;
    std::vector<std::vector<std::int32_t>> positions;
    encoded.reserve(texts.size());
    positions.reserve(texts.size());
    for (const std::string& text : texts) {
      encoded.push_back(model_.tokenize(text));
      if (encoded.back().cut > 0) ++cut_;
      positions.push_back(masked(encoded.back()));
      if (positions.back().empty()) refuse(text, first + encoded.size());
    }
    std::vector<std::vector<Mask>> masks(texts.size());
    const auto vocab = static_cast<std::size_t>(model_.engine().head_columns());
    // The head has a value for every token of the vocabulary: it runs for masked tokens alone.
    model_.run(encoded, {.hidden = false, .head = true, .head_rows = positions},
               [&](std::size_t text, const TextRows& rows) {
                 masks[text].reserve(positions[text].size());
                 for (std::size_t i = 0; i < positions[text].size(); ++i) {
                   const std::vector<float> scores = scores_of(rows.head.subspan(i * vocab, vocab), ScoreKind::softmax);
                   masks[text].push_back({positions[text][i], best_of(scores, arguments_.top_k)});
                 }
               });
    for (std::size_t i = 0; i < texts.size(); ++i) print(texts[i], masks[i]);
  }
  std::size_t cut() const { return cut_; }
  std::size_t max_length() const { return model_.max_length(); }

 private:
  std::vector<std::int32_t> masked(const EncodedText& encoded) const {
    std::vector<std::int32_t> out;
    for (std::size_t i = 0; i < encoded.ids.size(); ++i) {
      if (encoded.ids[i] == mask_) out.push_back(static_cast<std::int32_t>(i));
    }
    return out;
  }

  [[noreturn]] void refuse(const std::string& text, std::size_t number) const {
    const std::string spelling = model_.tokenizer().token(mask_);
    if (text.find(spelling) != std::string::npos) {
      fail("the {} of text {} stands behind the {} tokens that are kept: give a shorter text or a larger --max-length",
           spelling, number, model_.max_length());
    }
    fail("text {} has no masked token: write {} where a word is to be found", number, spelling);
  }

  void print(const std::string& text, const std::vector<Mask>& masks) const {
    const Tokenizer& tokenizer = model_.tokenizer();
    nlohmann::ordered_json json = {{"text", text}, {"masks", nlohmann::ordered_json::array()}};
    std::string lines = text + "\n";
    for (std::size_t m = 0; m < masks.size(); ++m) {
      if (masks.size() > 1) lines += fmt::format("  {} {}\n", tokenizer.token(mask_), m + 1);
      nlohmann::ordered_json candidates = nlohmann::ordered_json::array();
      for (const Candidate& candidate : masks[m].candidates) {
        const std::string token = text_of(tokenizer, {&candidate.id, 1});
        lines += fmt::format("  {:.4f}  {}\n", candidate.score, token);
        candidates.push_back({{"token", token}, {"id", candidate.id}, {"probability", shortest(candidate.score)}});
      }
      json["masks"].push_back({{"position", masks[m].position}, {"candidates", std::move(candidates)}});
    }
    print_out(arguments_.format == "jsonl" ? json_line(json) : lines);
  }

  const Arguments& arguments_;
  TextModel model_;
  std::int32_t mask_ = 0;
  std::size_t cut_ = 0;
};

int run(const Arguments& arguments) {
  const TextModelOptions options = arguments.model.text_model_options();
  const auto checkpoint = arguments.model.open();
  require_head(*checkpoint, {HeadKind::masked_lm}, "nibble fill-mask");
  MaskFiller filler(arguments, checkpoint, options);
  TextSource source(arguments.texts, "");
  std::vector<std::string> texts;
  std::size_t done = 0;
  while (source.next(arguments.model.batch_size, texts)) {
    filler.run(texts, done);
    done += texts.size();
  }
  warn_cut(filler.cut(), done, filler.max_length());
  return 0;
}

const CommandRegistration kRegistration(
    {"fill-mask", "likely words for masked tokens", [](CLI::App& app) -> std::function<int()> {
       auto a = std::make_shared<Arguments>();
       a->model.add_to(app);
       app.add_option("texts", a->texts,
                      "texts with the tokenizer's mask token, [MASK] or <mask> (default: lines of standard input)");
       app.add_option("--top-k", a->top_k, "candidates for each mask")
           ->capture_default_str()
           ->check(CLI::Range(1, 1 << 24));
       app.add_option("--format", a->format, "text or jsonl")
           ->capture_default_str()
           ->check(CLI::IsMember({"text", "jsonl"}));
       return [a] { return run(*a); };
     }});

}  // namespace
}  // namespace nibble
