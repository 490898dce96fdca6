// A GGUF file turned into a Hugging Face folder.
#pragma once

#include "core/dtype.h"

#include <cstdint>
#include <filesystem>
#include <string>

namespace nibble {

struct GgufImportOptions {
  /// Type of the tensors written, f16 or bf16. f16 keeps 11 significant bits of a dequantised value and bf16 8, so f16
  /// loses less unless a value exceeds 65504, which is an Error that says so.
  DType dtype = DType::f16;
  /// Write into a folder that has files already.
  bool overwrite = false;
};

struct GgufImportResult {
  std::string model_type;  // as config.json has it: "llama"
  std::string name;        // general.name
  std::int64_t tensors = 0;
  std::int64_t parameters = 0;
  bool tied = false;  // the output shares the embedding's tensor
};

/// Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json (with the chat template) and
/// model.safetensors. Architectures: llama (with what else runs as it, such as Mistral and SmolLM2), qwen2, qwen3. Rows
/// of q and k that llama.cpp permuted are put back in Hugging Face's order; an absent output stays tied to the
/// embedding. config.json is written last, so that a folder that has one is complete. Throws Error that names the file
/// and what in it is missing, of the wrong shape, or not supported.
GgufImportResult import_gguf(const std::filesystem::path& file, const std::filesystem::path& out_folder,
                             const GgufImportOptions& options = {});

}  // namespace nibble
