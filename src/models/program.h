// A model's forward pass as a short list of nodes over named buffers. From this one list come the eager and the fused
// path, the memory plan, the bytes and operations of the roofline, the quantiser's block runs and the captured step.
#pragma once

#include "kernels/linear_kernel.h"
#include "ops/backend.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace nibble {

using BufferId = int;

/// How many rows a buffer has in a pass: one a token, one for each token whose logits are wanted, one a patch of an
/// image, one a frame of audio behind some of the first convolutions.
enum class RowSet { tokens, logits, patches, frames };

struct BufferDesc {
  std::string name;
  std::int64_t columns = 0;
  RowSet rows = RowSet::tokens;
  bool wide = false;       // f32 whatever linear sites compute in: the residual stream and the logits
  std::size_t stages = 0;  // RowSet::frames: behind so many of AudioShape::stages
};

/// The element type of a buffer where those that are not wide are of type `activations`.
inline DType buffer_dtype(const BufferDesc& buffer, DType activations) {
  return buffer.wide ? DType::f32 : activations;
}

/// The sum of a row of each table: by token, by position, by token type.
struct EmbedNode {
  std::string table;  // tensor name, [vocab, columns of y]
  float scale = 1;
  BufferId y = -1;
  std::string positions = {};        // tensor name, [max_positions + position_offset, columns of y]; empty: none
  std::int64_t position_offset = 0;  // the row of position 0
  std::string types = {};            // tensor name, [types, columns of y]; empty: none
};
/// y = the patches of the pass's images, a row each.
struct PatchNode {
  BufferId y = -1;  // [patches, channels * patch * patch]
};
/// The rows of an image: vectors of their own (class token and the like), then x's rows; positions added to all.
struct PlaceNode {
  std::vector<std::string> leading;  // tensor names, [columns of y] each with any number of dimensions of 1 before
  std::string positions;             // tensor name, a row for each row of an image
  BufferId x = -1, y = -1;           // x [patches], y [tokens]
};
/// y = a convolution over time of x: of frames, which makes them those of the next stage, or of tokens.
struct ConvolveNode {
  std::string module;
  ConvolutionShape shape;  // activation and compute are filled in by lowering
  // The weight is direction / |direction| * magnitude, with a norm over inputs and outputs for each frame of the
  // kernel.
  bool weight_norm = false;
  std::string magnitude = {}, direction = {};  // tensors, filled in from the checkpoint; empty: the module's weight
  BufferId x = -1;                             // -1: what the pass was given
  BufferId y = -1;
};
/// Norms each channel over the frames of a sequence.
struct InstanceNormNode {
  std::string module;
  float eps = 0;
  BufferId x = -1, y = -1;  // [frames]
};
/// The tokens of a sequence: those of its frames that hold no padding, and zeros where tokens are padded.
struct TrimNode {
  BufferId x = -1;  // [frames behind all stages]
  BufferId y = -1;  // [tokens]
};
struct NormNode {
  NormKind kind = NormKind::rms;
  std::string weight;
  std::string bias;  // empty: none
  std::int64_t groups = 1;
  float eps = 0;
  BufferId x = -1, y = -1;
};
struct LinearNode {
  std::vector<LinearDesc> parts;  // gptq is filled in from the checkpoint
  std::string tied_weight;  // not empty: the weight is this tensor (a tied head) instead of parts[0].name + ".weight"
  bool in_block = true;     // inside of the repeated block: what GPTQ quantises and --kernel chooses for
  BufferId x = -1;
  std::vector<BufferId> y;  // one a part
  std::string bias = {};    // not empty: the bias of the only part is this tensor instead of parts[0].name + ".bias"
  Shape stored = {};        // not empty: the only weight's shape in the checkpoint, [out, ...] (a convolution's)
};
struct RotaryNode {
  std::int64_t heads = 0, head_dim = 0, dims = 0;
  bool interleaved = false;
  BufferId x = -1;  // in place
};
struct KvStoreNode {
  BufferId k = -1, v = -1;
};
struct AttentionNode {
  std::int64_t heads = 0;
  float scale = 1;
  std::int64_t window = 0;
  float softcap = 0;
  BufferId q = -1, y = -1;
};
/// Attention of a sequence's rows to one another, without a cache (encoders).
struct SelfAttentionNode {
  std::int64_t heads = 0;
  float scale = 1;
  bool causal = false;
  // A table of biases by distance, [bias_buckets, heads] of this name (empty: none), as T5 and MPNet have it; distances
  // of bias_distance and more share a bucket.
  std::string bias = {};
  std::int64_t bias_buckets = 0;
  std::int64_t bias_distance = 0;
  BufferId q = -1, k = -1, v = -1, y = -1;
};
struct ActivationNode {
  ActivationKind activation = ActivationKind::gelu;
  BufferId x = -1, y = -1;
};
struct GatedNode {
  ActivationKind activation = ActivationKind::silu;
  BufferId gate = -1, up = -1, y = -1;
};
struct AddNode {
  BufferId a = -1, b = -1, y = -1;
};
/// y = (a + b) / 2.
struct MeanNode {
  BufferId a = -1, b = -1, y = -1;
};
/// y = the rows of x whose logits are wanted, or those `after` rows behind them.
struct GatherNode {
  BufferId x = -1, y = -1;
  std::int64_t after = 0;
};
/// Chooses the next token of each row of logits.
struct SampleNode {
  BufferId logits = -1;
};

struct Node {
  int layer = -1;  // the repeated block it belongs to, -1 before, `layers` after
  std::variant<EmbedNode, PatchNode, PlaceNode, NormNode, LinearNode, RotaryNode, KvStoreNode, AttentionNode,
               SelfAttentionNode, ActivationNode, GatedNode, AddNode, MeanNode, GatherNode, SampleNode, ConvolveNode,
               InstanceNormNode, TrimNode>
      op;
};

/// inv_freq of rotary positions, and how they depend on the length of the sequence (rope_type "dynamic").
struct RotarySpec {
  std::int64_t dims = 0;  // 0: the model has no rotary positions
  bool interleaved = false;
  std::vector<float> inv_freq;  // [dims / 2]
  float attention_factor = 1;   // multiplies cosines and sines
  // rope_type "dynamic": past this many tokens the base grows with the length of the sequence; 0 otherwise.
  std::int64_t dynamic_after = 0;
  double theta = 10000;
  double dynamic_factor = 1;

  /// inv_freq for a sequence of this many tokens.
  std::vector<float> inv_freq_for(std::int64_t tokens) const;
};

/// The images that a model takes: square, cut into square patches, row by row.
struct ImageShape {
  std::int64_t channels = 0;
  std::int64_t size = 0;   // pixels of a side
  std::int64_t patch = 0;  // pixels of a patch's side; what is left at the right and the bottom is not looked at

  std::int64_t patches() const { return (size / patch) * (size / patch); }
  std::int64_t values() const { return channels * size * size; }
  std::int64_t patch_values() const { return channels * patch * patch; }
};

/// The audio that a model takes, and the convolutions that make frames of it.
struct AudioShape {
  struct Stage {
    std::int64_t kernel = 1, stride = 1, padding = 0;  // padding on both sides
  };
  std::int64_t channels = 1;  // 1: samples; more: the bins of a spectrogram
  std::int64_t length = 0;    // steps of time that every sequence has; 0: they have any number of them
  std::vector<Stage> stages;
  // A norm goes over all of a sequence's frames, padding included, as transformers has it: results depend on what a
  // sequence is padded to.
  bool padding_counts = false;

  /// Frames behind the first `count` stages of a sequence of so many steps; 0 where it is too short for one.
  std::int64_t frames(std::int64_t steps, std::size_t count) const;
  std::int64_t frames(std::int64_t steps) const { return frames(steps, stages.size()); }
  /// Whether each stage can have as many rows as the one before it divided by its stride, at least as many as frames.
  bool aligns() const;
  /// Rows set apart behind the first `count` stages for a sequence of so many steps: of `aligned` ones, where the shape
  /// aligns(), as many as there are behind the stage before divided by the stride.
  std::int64_t room(std::int64_t steps, std::size_t count, bool aligned) const;
  /// The fewest frames behind the first `count` stages that make so many behind all.
  std::int64_t frames_for(std::int64_t rows, std::size_t count) const;
  /// The fewest steps that make a frame.
  std::int64_t least_steps() const;
};

/// What follows an encoder's last block.
enum class HeadKind {
  none,
  pooler,          // one vector a sequence; may be missing in the checkpoint
  projection,      // one vector a sequence, for comparison with those of another model
  masked_lm,       // logits over the vocabulary, for the rows asked for
  sequence_class,  // one row of logits a sequence, from its first row
  token_class,     // one row of logits a row
  question_answer  // the same with two logits: where an answer begins, where it ends
};

constexpr std::int32_t kFirstRow = -1;
constexpr std::int32_t kLargestId = -2;

struct Program {
  std::string architecture;  // model_type of the checkpoint
  std::string prefix;        // of tensor names, which models saved without their head lack
  std::int64_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  std::int64_t max_positions = 0;
  std::int64_t types = 0;  // token types that an encoder tells apart
  RotarySpec rotary;
  std::vector<BufferDesc> buffers;
  std::vector<Node> nodes;
  BufferId hidden_state = -1;  // the residual stream: what enters and leaves each block
  BufferId logits = -1;        // of decoders, and what an encoder's head gives

  // Encoders only: no cache, no next token; the hidden state after the last block is the result.
  bool encoder = false;
  HeadKind head = HeadKind::none;
  // The row of a sequence that its head looks at, where that is one: the first one; with an id here the first one of
  // this token (CLIP's end of text), with kLargestId that of the largest id.
  std::int32_t head_token = kFirstRow;
  // A token's position counts the tokens before it that are not this one, which itself gets position -1 (RoBERTa and
  // its relatives, whose tables keep a row for it); -1: positions just count.
  std::int32_t skipped_token = -1;
  std::optional<ImageShape> image;  // its sequences are images, each of max_positions rows
  std::optional<AudioShape> audio;  // its sequences are recordings, a row for each frame behind the stages

  /// The nodes of one block, in order.
  std::vector<Node> block(int layer) const;
};

/// Leaves out an encoder's head.
void drop_head(Program& program);

/// The tensors of which rows are looked up: a model's embeddings. None for some models of audio.
std::vector<std::string> tables_of(const Program& program);

/// A tensor that all checkpoints of the program have under this name, but for the prefix: the first table, or the
/// weight of the first convolution.
std::string first_tensor_of(const Program& program);

/// What an encoder's sequences are: "text", "images" or "audio".
std::string_view input_kind_of(const Program& program);

/// The modules of a linear node's parts: nodes with the same ones have the same weights.
std::string modules_of(const LinearNode& node);

/// Short name of a node's kind: "embed", "norm", "linear" ...
std::string_view kind_of(const Node& node);

}  // namespace nibble
