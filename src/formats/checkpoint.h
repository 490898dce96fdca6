// A Hugging Face folder: config.json and the tensors of one safetensors file or of many, mapped and found by name.
#pragma once

#include "core/tensor.h"
#include "formats/safetensors.h"

#include <nlohmann/json_fwd.hpp>

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// The files that hold a folder's weights, as paths below the folder, and the index that names them if there is one.
struct WeightFiles {
  std::vector<std::filesystem::path> files;
  std::filesystem::path index;  // empty where one file holds everything
};

/// Finds a folder's weights: in a folder that has a GPTQ configuration first `model_file_base_name`'s file (as AutoGPTQ
/// names it) and gptq_model-{bits}bit-{group_size}g.safetensors, then model.safetensors, then
/// model.safetensors.index.json; then the only *.safetensors there is. Throws Error that lists what the folder has
/// where nothing fits.
WeightFiles find_weight_files(const std::filesystem::path& folder);

class Checkpoint {
 public:
  /// Opens every weight file and checks every header. Throws Error where config.json or the weights are missing or
  /// damaged, where an index names a file outside of the folder, or a tensor that its file does not have.
  explicit Checkpoint(const std::filesystem::path& folder);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& folder() const;
  const nlohmann::json& config() const;

  bool has(std::string_view name) const;
  /// The tensor's type, shape and mapped bytes (at any alignment), valid as long as the checkpoint. Throws Error that
  /// names the folder, the tensor, and the names most like it where there is none.
  TensorView tensor(std::string_view name) const;
  /// All names, sorted.
  std::vector<std::string> names() const;
  /// The file that holds a tensor. Throws as tensor() does.
  const std::filesystem::path& file_of(std::string_view name) const;
  /// Lets the pages of a tensor that has been packed leave the resident set. Throws as tensor() does.
  void drop(std::string_view name) const;

  /// Bytes of all tensors.
  std::size_t total_bytes() const;
  /// "xxh3-" and 32 hex digits over: the text of config.json, and each weight file's name, size and header (so names,
  /// types, shapes and places of all tensors). The tensors' data is not read: this tells models apart, it seals
  /// nothing.
  std::string hash() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
