// One pass of rows through a lowered program: what the decoder's and the encoder's engines share.
#pragma once

#include "core/matrix.h"
#include "engine/lowering.h"
#include "engine/plan.h"
#include "engine/weights.h"
#include "models/program.h"
#include "ops/backend.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nibble {

/// The rows of one pass, as the nodes see them.
struct Pass {
  RowMap map;
  const std::int32_t* logit_rows = nullptr;       // [logits] rows of the pass
  const std::int32_t* logit_positions = nullptr;  // [logits]
  std::int64_t logits = 0;
  std::int64_t first_sequence = 0;  // the sequence of the first row of logits; they follow each other
  bool sample = true;
  const std::int32_t* valid = nullptr;  // [sequences] rows of each that are no padding; null: all
  const float* pixels = nullptr;        // of the pass's images, as Program::image shapes them
  std::int64_t images = 0;              // or recordings
  // Of audio: its steps [frame_begin[0].back(), channels]; and in the host's memory where the sequences' rows begin
  // behind the first so many stages, and as tokens.
  MatrixRef steps;
  std::vector<std::vector<std::int64_t>> frame_begin;  // [stages + 1][sequences + 1]
  std::vector<std::vector<std::int64_t>> frames;       // [stages + 1][sequences] that there are, at the head of those
  std::vector<std::int64_t> token_begin;               // [sequences + 1]
  // In device memory: where the sequences' rows begin behind all stages, and how many tokens of each are no padding.
  const std::int32_t* last_begin = nullptr;  // [sequences]
  const std::int32_t* kept = nullptr;        // [sequences]
  std::int64_t length = 0;                   // SelfAttentionArgs::length
  SequenceTiles tiles;                       // where all sequences are short, and the pass is small; else none
};

class PassRunner {
 public:
  /// The parts must outlive the runner, and stay where they are.
  struct Parts {
    Backend* backend = nullptr;
    Stream* stream = nullptr;
    const Program* program = nullptr;
    const std::vector<LoweredNode>* nodes = nullptr;
    const Weights* weights = nullptr;
    std::byte* arena = nullptr;
    std::byte* scratch = nullptr;
    std::byte* parts = nullptr;  // parts_bytes()
    DType compute = DType::f32;
    bool materialise = false;  // SelfAttentionArgs::materialise
  };
  PassRunner() = default;
  PassRunner(const Parts& parts, std::vector<ArenaSlot> slots);

  std::int64_t rows_of(const BufferDesc& buffer, const Pass& pass) const;
  MatrixRef matrix(BufferId id, const Pass& pass) const;
  /// Whether the pass has no use for node `index`: its logits are wanted by nobody, or the node before has done its
  /// work, too.
  bool skips(std::size_t index, const Pass& pass) const;
  /// Enqueues node `index`; false where it needs a cache, a table of rotations or a next token, which an encoder's pass
  /// does not have.
  bool enqueue(std::size_t index, const Pass& pass) const;

 private:
  void enqueue_linear(const LoweredNode& lowered, const PackedLinear& packed, const Pass& pass) const;
  int parts_of(const LoweredNode& product, const Pass& pass) const;
  bool takes_attention(const LoweredNode& lowered, const Pass& pass) const;
  void take_parts(const LoweredNode& product, const LoweredNode& norm, const Pass& pass, NormArgs& args) const;
  void enqueue_norm(std::size_t index, const NormNode& node, const Pass& pass) const;
  void enqueue_embed(const EmbedNode& node, const Pass& pass) const;
  void enqueue_patches(const PatchNode& node, const Pass& pass) const;
  void enqueue_place(const PlaceNode& node, const Pass& pass) const;
  void enqueue_convolve(const LoweredNode& lowered, const Pass& pass) const;
  void enqueue_instance_norm(const LoweredNode& lowered, const InstanceNormNode& node, const Pass& pass) const;
  void enqueue_gather(const GatherNode& node, const Pass& pass) const;
  void enqueue_self_attention(const SelfAttentionNode& node, const Pass& pass) const;

  Parts p_;
  std::vector<ArenaSlot> slots_;
};

}  // namespace nibble
