// Texts to embeddings, as sentence-transformers makes them: hidden states of an encoder, pooled and normalised.
#pragma once

#include "engine/text_model.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class Pooling {
  mean,    // the mean of all tokens' hidden states, special ones among them
  cls,     // the first token's hidden state
  pooler,  // what the model's own pooler, or projection, makes of it
};
std::string_view name_of(Pooling pooling);
/// "mean", "cls" or "pooler"; UsageError for other names.
Pooling pooling_named(std::string_view name);

/// The embedding of one sequence: `out` has the head's columns for `pooler`, else those of a hidden state. Means are
/// summed in double.
void pool(Pooling pooling, const TextRows& rows, std::span<float> out);
/// Scales to length 1; a vector of zeros stays one.
void to_unit_length(std::span<float> values);

/// How embeddings are made. What is not set is as the folder says (read_embedding_settings).
struct EmbeddingOptions {
  std::optional<Pooling> pooling;
  std::optional<bool> normalize;
  std::optional<std::string> prefix;  // put before each text
  std::size_t max_length = 0;         // tokens of a text, 0: as the folder says
};

struct EmbeddingSettings {
  Pooling pooling = Pooling::mean;
  bool normalize = true;
  std::string prefix;
  std::size_t max_length = 0;  // 0: what the tokenizer and the model take
  bool lowercase = false;      // texts, before they become tokens
};

/// The settings of a folder, with what `options` says instead. A folder of sentence-transformers has modules.json
/// (which names the folder of the pooling's config.json, and Normalize where there is one), sentence_bert_config.json
/// (max_seq_length, do_lower_case) and config_sentence_transformers.json (a default prompt); elsewhere it is the mean,
/// normalised. Error for kinds of pooling and modules that are not here, unless `options` names a pooling instead.
EmbeddingSettings read_embedding_settings(const std::filesystem::path& folder, const EmbeddingOptions& options);

/// Embeddings of some texts.
struct Embeddings {
  std::vector<float> values;  // [texts, dimension], in the order of the texts
  std::size_t cut = 0;        // texts that had more tokens than max_length and lost the rest
  std::size_t tokens = 0;     // of all texts, special ones among them
};

/// Not to be used from two threads at once.
class TextEmbedder {
 public:
  /// Error where the pooler is asked for and the checkpoint has none, and as TextModel and read_embedding_settings say.
  TextEmbedder(const std::shared_ptr<const Checkpoint>& checkpoint, const EmbeddingOptions& options,
               TextModelOptions model);

  /// Runs texts in batches of about one length each. An empty text gives the embedding of its special tokens.
  Embeddings embed(std::span<const std::string> texts);

  /// Values of an embedding.
  std::size_t dimension() const;
  const EmbeddingSettings& settings() const { return settings_; }
  TextModel& model() { return model_; }

 private:
  EmbeddingSettings settings_;
  TextModel model_;
};

}  // namespace nibble
