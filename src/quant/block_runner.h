// Runs a model's blocks over all calibration sequences at once and stops before each linear layer, so that its inputs
// can be looked at and its weights replaced before it runs. Every node runs once a block.
#pragma once

#include "core/device.h"
#include "core/tensor.h"
#include "engine/rope_table.h"
#include "formats/checkpoint.h"
#include "models/program.h"
#include "ops/backend.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nibble {

/// The weights of one part of a linear node in float: weight [N, K], bias [N] or empty.
struct DenseLinear {
  std::vector<float> weight;
  std::vector<float> bias;
};

class BlockRunner {
 public:
  /// Embeds the sequences (each at least one token id; ids below the vocabulary's size). The program must come from
  /// program_from_checkpoint(); both must outlive the runner. All is computed in f32, on the CPU.
  BlockRunner(const Program& program, const Checkpoint& checkpoint,
              const std::vector<std::vector<std::int32_t>>& sequences);

  /// Bytes that a runner of this many tokens holds at once, at the most.
  static std::size_t memory(const Program& program, std::int64_t tokens, std::int64_t longest);

  /// Starts block `layer` (program.layers: what follows the blocks) and runs to its first linear layer.
  void begin(int layer);
  /// The linear layer that it stands before; null at the end of the block.
  const LinearNode* linear() const;
  /// Its inputs: [all tokens, K] f32.
  MatrixRef inputs() const;
  /// Runs the linear layer with these weights, one a part, and all that follows up to the next linear layer.
  void apply(std::span<const DenseLinear> parts);

  /// Keeps the hidden states as they are between two blocks, and goes back to them.
  void save();
  void restore();

  std::int64_t tokens() const { return tokens_; }

 private:
  /// Whole sequences that run through a segment together.
  struct Chunk {
    std::int64_t first_row = 0;  // of all tokens
    std::int64_t rows = 0;
    std::vector<std::int32_t> positions;
    std::vector<std::int32_t> slots;
    std::vector<std::int32_t> row_begin;

    RowMap map() const;
  };
  MatrixRef matrix(BufferId id, const Chunk& chunk);
  void run_segment(std::span<const DenseLinear> parts);
  void run_node(const Node& node, const Chunk& chunk, std::span<const DenseLinear> parts);
  void run_linear(const LinearNode& node, const Chunk& chunk, std::span<const DenseLinear> parts);
  void embed(const std::vector<std::vector<std::int32_t>>& sequences);
  const float* norm_weight(const std::string& name);

  const Program& program_;
  const Checkpoint& checkpoint_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  RopeTable rope_;
  std::int64_t tokens_ = 0;
  std::vector<Chunk> chunks_;
  std::unique_ptr<Buffer> kv_;
  std::unique_ptr<Buffer> workspace_;
  KvView kv_view_;

  std::vector<Node> nodes_;                  // of the block
  std::vector<std::size_t> stops_;           // its linear nodes
  std::size_t next_ = 0;                     // the stop it stands at; stops_.size() at the end
  std::vector<std::vector<BufferId>> live_;  // buffers whose values are needed from each stop on, and at the end
  std::map<BufferId, Tensor> kept_;          // [all tokens, columns]: what outlives a stop
  std::map<BufferId, Tensor> passing_;       // [a chunk's rows, columns]: what does not
  Tensor saved_;
  std::map<std::string, std::vector<float>> norms_;  // of the block
};

}  // namespace nibble
