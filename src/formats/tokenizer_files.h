// Vocabulary files from before tokenizer.json, read as the tokenizer.json that transformers makes of them.
#pragma once

#include "formats/json.h"

#include <nlohmann/json.hpp>

#include <filesystem>
#include <optional>
#include <string>

namespace nibble {

struct VocabularyFiles {
  nlohmann::json tokenizer;  // as a tokenizer.json
  std::string name;          // the file with the vocabulary, for errors
};

/// Whether a folder has vocab.txt, or vocab.json and merges.txt.
bool has_vocabulary_files(const std::filesystem::path& folder);

/// Reads vocab.txt (WordPiece, one token a line; do_lower_case, strip_accents and tokenize_chinese_chars of
/// tokenizer_config.json, as BERT's class has them by default) or vocab.json and merges.txt (byte-level BPE with
/// add_prefix_space). What goes around a text is BERT's, or RoBERTa's where the vocabulary or the configuration has
/// <s>, </s> and <mask>. Throws Error for files that are too large, malformed, or lack the tokens that go around.
VocabularyFiles read_vocabulary_files(const std::filesystem::path& folder);

/// A token that tokenizer_config.json gives as a string or as an object with its content and flags; none where the key
/// is absent.
std::optional<std::string> role_token(const JsonView& config, const std::string& key);

}  // namespace nibble
