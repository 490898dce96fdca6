// Embeddings as they come, to standard output or to a file: lines of JSON, or NumPy's array file.
#pragma once

#include "core/file.h"

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

class EmbeddingWriter {
 public:
  /// `format` is "jsonl" ({"index": i, "embedding": [...]} a line; values that are no number are null) or "npy"
  /// (float32 [texts, dimension], little-endian). `output` is a file, or empty: standard output, for jsonl only.
  /// UsageError for another format and for npy without a regular file.
  EmbeddingWriter(const std::string& format, const std::string& output, std::size_t dimension);

  /// Appends embeddings, [any, dimension].
  void add(std::span<const float> values);
  /// Completes the file and puts it in its place; without this, nothing is left behind.
  void finish();

  std::size_t count() const { return count_; }

 private:
  void put(std::string_view text);
  void write_npy_header();

  bool npy_;
  std::size_t dimension_;
  std::size_t count_ = 0;
  std::optional<AtomicFile> file_;
};

/// UsageError where EmbeddingWriter would throw one for these, before a model is loaded.
void check_embedding_output(const std::string& format, const std::string& output);

}  // namespace nibble
