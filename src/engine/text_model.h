// An encoder with its tokenizer: texts become tokens, and batches of texts of about one length go through the engine.
#pragma once

#include "engine/encoder.h"
#include "formats/checkpoint.h"
#include "formats/tokenizer.h"

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

/// "a pooler", "a head for masked tokens" ...: what a checkpoint has behind its last block, for messages.
std::string_view name_of(HeadKind head);

/// The order in which texts of these lengths are run: the longest first, texts of one length in their own order.
/// Neighbours are of about one length, and the first batch needs the most memory.
std::vector<std::size_t> order_by_length(std::span<const std::size_t> lengths);

struct TextModelOptions {
  EncoderOptions engine;
  /// The most tokens of a text, special ones among them; 0: what the tokenizer and the model take.
  std::size_t max_length = 0;
  /// Texts of a forward pass at most.
  std::size_t batch_size = 32;
};

/// What is wanted of texts, as EncoderWants has it of a batch.
struct TextWants {
  bool hidden = true;
  bool head = false;
  /// [texts] Of a head that gives a row for each token: the positions of those whose rows are wanted, ascending, at
  /// least one of each text; empty: all.
  std::span<const std::vector<std::int32_t>> head_rows = {};
};

/// What the engine gave for one text; valid during the call that gets it.
struct TextRows {
  std::span<const float> hidden;  // [tokens, hidden], empty where not wanted
  std::span<const float> head;    // [tokens, rows asked for or 1, head_columns()], empty where not wanted
};

/// Not to be used from two threads at once.
class TextModel {
 public:
  /// Loads tokenizer and weights. Throws Error for a checkpoint that is no encoder's or has no tokenizer, UsageError
  /// where max_length is more than the model's positions or leaves no room for the special tokens.
  TextModel(const std::shared_ptr<const Checkpoint>& checkpoint, const TextModelOptions& options);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  EncoderEngine& engine() { return engine_; }
  const EncoderEngine& engine() const { return engine_; }
  std::size_t max_length() const { return max_length_; }

  /// Tokens of a text or of a pair, cut at max_length().
  EncodedText tokenize(std::string_view text) const;
  EncodedText tokenize_pair(std::string_view first, std::string_view second) const;

  /// Runs all texts; `take` is called once for each, by its index, batch after batch and not in the order of the texts.
  /// Error for a text without tokens, and for rows of the head that there are not.
  void run(std::span<const EncodedText> texts, const TextWants& wants,
           const std::function<void(std::size_t text, const TextRows& rows)>& take);

 private:
  std::size_t head_rows_of(std::size_t text, std::size_t tokens, const TextWants& wants) const;
  std::size_t batch_of(std::span<const std::size_t> order, std::size_t length, const TextWants& wants) const;

  EncoderEngine engine_;
  Tokenizer tokenizer_;
  std::size_t max_length_;
  std::size_t batch_size_;
  EncoderResult result_;
};

}  // namespace nibble
