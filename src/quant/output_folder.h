// A model folder that appears as a whole or not at all, and its weights in one file or in shards.
#pragma once

#include "formats/safetensors.h"

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Files are written to a folder beside the wanted one, which commit() renames into place. Destroyed without commit(),
/// it leaves nothing behind.
class OutputFolder {
 public:
  /// Throws UsageError where `path` exists and `overwrite` is false (an empty folder does not count), and Error where
  /// the folder beside it cannot be made.
  OutputFolder(std::filesystem::path path, bool overwrite);
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  ~OutputFolder();

  /// Where to write.
  const std::filesystem::path& partial() const { return partial_; }
  /// Puts the folder in its place; one that was there before is deleted once the new one stands.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path partial_;
  bool committed_ = false;
};

/// As transformers shards: no file beyond this many bytes unless one tensor alone is larger.
inline constexpr std::size_t kShardBytes = 5'000'000'000;

/// Tensors declared first, then filled in any order and in pieces, as SafetensorsWriter; into model.safetensors, or
/// into model-00001-of-0000N.safetensors and so on with model.safetensors.index.json where they exceed `shard_bytes`.
class ShardedWriter {
 public:
  ShardedWriter(std::filesystem::path folder, const std::vector<TensorDeclaration>& tensors,
                std::size_t shard_bytes = kShardBytes);

  void append(std::string_view name, std::span<const std::byte> bytes);
  /// Throws Error where a tensor has not got all its bytes.
  void commit();

  std::size_t total_size() const { return total_size_; }
  std::size_t files() const { return writers_.size(); }

 private:
  std::string file_name(std::size_t index) const;

  std::filesystem::path folder_;
  std::vector<std::unique_ptr<SafetensorsWriter>> writers_;
  std::map<std::string, std::size_t, std::less<>> file_of_;
  std::size_t total_size_ = 0;
};

/// Bytes that a declared tensor takes. Throws Error on overflow.
std::size_t bytes_of(const TensorDeclaration& tensor);

/// The declarations of one GPTQ linear's tensors, as pack_gptq() makes them: qweight, qzeros, scales, g_idx.
void declare_gptq(std::vector<TensorDeclaration>& to, const std::string& module, int bits, std::int64_t in_features,
                  std::int64_t out_features, std::int64_t groups);

}  // namespace nibble
