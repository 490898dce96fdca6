// What the logits of an encoder's head say about a text: labels, entities, an answer, words for masked tokens.
#pragma once

#include "formats/checkpoint.h"
#include "formats/tokenizer.h"
#include "models/program.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace nibble {

/// How logits become scores.
enum class ScoreKind {
  softmax,  // one label of many
  sigmoid,  // each label by itself, or a single one
  value     // a regression: the number itself
};

struct Labels {
  std::vector<std::string> names;  // by column of the head
  ScoreKind kind = ScoreKind::softmax;
};

/// id2label and problem_type of config.json, for a head with that many columns. A column without a name is LABEL_n. One
/// label alone, or problem_type "multi_label_classification", has sigmoid; "regression" has value. Error for an
/// id2label that is no object of texts and for another problem_type.
Labels read_labels(const Checkpoint& checkpoint, HeadKind head, std::int64_t columns);

/// Probabilities (or values) of one row of logits.
std::vector<float> scores_of(std::span<const float> logits, ScoreKind kind);

struct Candidate {
  std::int32_t id = 0;  // a token's, or a label's column
  float score = 0;
};

/// The `count` best, the best first; of equal ones the lower id first. All where count is 0.
std::vector<Candidate> best_of(std::span<const float> scores, std::size_t count);

/// Neighbouring tokens of one kind: an entity where labels are such as B-PER, I-PER and O.
struct TokenGroup {
  std::string label;  // without B- or I-
  TokenRange tokens;
  float score = 0;  // mean over its tokens
};

/// The groups of labels other than O, in order. labels[i] and scores[i] belong to token first + i. B-, S- and U- begin
/// a group even behind one of the same kind; I-, E- and L- go on with it.
std::vector<TokenGroup> group_tokens(std::span<const std::string> labels, std::span<const float> scores,
                                     std::size_t first);

struct AnswerSpan {
  TokenRange tokens;
  float score = 0;  // probability of its beginning times that of its end, each among the tokens of the range
};

/// The best span of at most `longest` tokens (0: of any number) within `range`, from logits [tokens, 2] for where an
/// answer begins and where it ends. None where the range is empty.
std::optional<AnswerSpan> best_span(std::span<const float> logits, TokenRange range, std::size_t longest);

struct TextWindow {
  EncodedText pair;
  std::size_t first = 0;  // the token of the second text that the window begins with
};

/// A pair whose second text is longer than there is room for, as several: each has everything around that text, and of
/// it as many tokens as max_length leaves room for, `overlap` of them (at most half of the room) also in the next one,
/// so that what lies across an end is whole in one of two. The pair itself where it fits. UsageError where max_length
/// leaves no room beside the first text.
std::vector<TextWindow> windows_of(const EncodedText& pair, std::size_t max_length, std::size_t overlap);

/// Text of some tokens as it reads in a sentence, without spaces around it.
std::string text_of(const Tokenizer& tokenizer, std::span<const std::int32_t> ids);

}  // namespace nibble
