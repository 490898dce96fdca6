// A model's forward pass as a short list of nodes over named buffers. From this one list come the eager and the fused
// path, the memory plan, the bytes and operations of the roofline, the quantiser's block runs and the captured step.
#pragma once

#include "kernels/linear_kernel.h"
#include "ops/backend.h"

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace nibble {

using BufferId = int;

/// How many rows a buffer has in a pass: one a token, or one for each token whose logits are wanted.
enum class RowSet { tokens, logits };

struct BufferDesc {
  std::string name;
  std::int64_t columns = 0;
  RowSet rows = RowSet::tokens;
  bool wide = false;  // f32 whatever linear sites compute in: the residual stream and the logits
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
/// y = the rows of x whose logits are wanted.
struct GatherNode {
  BufferId x = -1, y = -1;
};
/// Chooses the next token of each row of logits.
struct SampleNode {
  BufferId logits = -1;
};

struct Node {
  int layer = -1;  // the repeated block it belongs to, -1 before, `layers` after
  std::variant<EmbedNode, NormNode, LinearNode, RotaryNode, KvStoreNode, AttentionNode, SelfAttentionNode,
               ActivationNode, GatedNode, AddNode, GatherNode, SampleNode>
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

/// What follows an encoder's last block.
enum class HeadKind {
  none,
  pooler,          // one vector a sequence; may be missing in the checkpoint
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

  /// The nodes of one block, in order.
  std::vector<Node> block(int layer) const;
};

/// Leaves out an encoder's head.
void drop_head(Program& program);

/// The modules of a linear node's parts: nodes with the same ones have the same weights.
std::string modules_of(const LinearNode& node);

/// Short name of a node's kind: "embed", "norm", "linear" ...
std::string_view kind_of(const Node& node);

}  // namespace nibble
