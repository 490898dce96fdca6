// A whole checkpoint, block by block, into a GPTQ folder that Hugging Face's loaders read.
#pragma once

#include "formats/checkpoint.h"
#include "formats/quant_config.h"
#include "quant/gptq.h"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

enum class QuantMethod {
  gptq,
  rtn,  // round to nearest: no calibration
};

struct QuantizeOptions {
  QuantMethod method = QuantMethod::gptq;
  GptqOptions gptq;
  /// Within a block, the inputs of a linear layer come from the quantised ones before it (q, k and v together; o; gate
  /// and up together; down). Otherwise all of a block's inputs are those of the block as it was.
  bool true_sequential = true;
  /// Unless given: v1, which every program reads, for symmetric codes; v2 for others, which in v1 GPTQModel takes from
  /// its own versions only.
  std::optional<ZeroFormat> zeros;
  bool lm_head = false;     // quantise the head too; only one that is not tied to the embedding
  bool keep_dtype = false;  // tensors that are not quantised keep their type instead of becoming f16
  bool overwrite = false;
};

/// What came of one linear layer.
struct LinearReport {
  std::string name;
  double loss = 0;          // QuantizedLinear::loss
  double damp_percent = 0;  // that it took to factor H
  bool fell_back = false;   // H could not be factored: rounded to nearest
};

struct QuantizeReport {
  std::vector<LinearReport> linears;
  std::int64_t tokens = 0;       // of calibration
  std::size_t bytes_before = 0;  // of all tensors
  std::size_t bytes_after = 0;
  double seconds = 0;
};

/// Quantises every linear layer of the repeated blocks and writes the folder `out`: the weights, config.json with
/// quantization_config, quantize_config.json, and the tokenizer's and other small files of the checkpoint's folder as
/// they are. `sequences`: token ids for calibration (not needed by rtn). A block's tensors are written as they are
/// done; beside the model's largest layer and its Hessian, memory holds the hidden states of all sequences. Throws
/// UsageError for options that cannot be, Error where the checkpoint is quantised already, does not fit in memory with
/// these sequences (saying what to change), holds values that are not finite or that f16 cannot hold.
QuantizeReport quantize_checkpoint(const Checkpoint& checkpoint,
                                   const std::vector<std::vector<std::int32_t>>& sequences,
                                   const std::filesystem::path& out, const QuantizeOptions& options);

}  // namespace nibble
