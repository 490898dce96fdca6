// Everything that a model does beside its linear sites, as one device does it. On the CPU all activations are f32; on a
// GPU they may be f16 or bf16, and each MatrixRef says which.
// As for kernels: calls neither allocate nor wait, may be captured, and read changing values through fixed pointers.
#pragma once

#include "core/device.h"
#include "core/matrix.h"
#include "kernels/linear_kernel.h"

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace nibble {

/// y = scale * table[token] + positions[position + position_offset] + types[type], the latter two where there are such
/// tables. Tables are f32, f16 or bf16, each of its own type, in device memory.
struct EmbedArgs {
  RowMap map;
  MatrixRef table;  // [vocab, hidden]
  float scale = 1;
  MatrixRef y;               // [rows, hidden]
  MatrixRef positions = {};  // [positions, hidden]; no data: none
  std::int64_t position_offset = 0;
  MatrixRef types = {};  // [types, hidden]; no data: none
};

/// y = the square patches of images, a row each: images one after the other, patches row by row, a patch's values as
/// the weight of a convolution has them (channel, then row, then column).
struct PatchArgs {
  const float* pixels = nullptr;  // [images, channels, size, size], device memory
  std::int64_t images = 0;
  std::int64_t channels = 0;
  std::int64_t size = 0;   // pixels of a side
  std::int64_t patch = 0;  // pixels of a patch's side; what is left over of `size` is not read
  MatrixRef y;             // [images * (size / patch)^2, channels * patch * patch]
};

/// Each image's rows of y: the `leading` ones, then its rows of x, `positions` added to all. Tables are f32, f16 or
/// bf16.
struct PlaceArgs {
  std::int64_t images = 0;
  std::array<MatrixRef, 2> leading = {};  // [1, hidden] each; no data: none
  MatrixRef positions;                    // [rows of an image, hidden]
  MatrixRef x;                            // [images * (rows of an image without the leading ones), hidden]
  MatrixRef y;                            // [images * rows of an image, hidden]
};

enum class NormKind { rms, layer };
struct NormArgs {
  NormKind kind = NormKind::rms;
  MatrixRef x;                    // [rows, groups * width]
  std::int64_t groups = 1;        // each row is normed in this many equal parts with the same weight (per-head norms)
  const float* weight = nullptr;  // [width]
  const float* bias = nullptr;    // [width], layer norm only, may be null
  float eps = 0;
  MatrixRef y;  // may be x
  MatrixRef addend =
      {};              // added to x first; only where BackendTraits::fuses_add_norm, groups then are 1; no data: none
  MatrixRef sum = {};  // where x + addend goes, too (may be either of them); no data: nowhere
  /// Not null: x is the sum of these, 2 to kMostSumParts of [rows, width] one behind the other, and what x.data points
  /// at is not read; only with an addend.
  const float* x_parts = nullptr;
  int parts = 0;
};

/// Rotates the first `dims` dimensions of each head. table is [max_position, dims] floats: dims/2 cosines, then dims/2
/// sines, of position * inv_freq, scaling included.
struct RotaryArgs {
  RowMap map;
  MatrixRef x;  // [rows, heads * head_dim], rotated in place
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t dims = 0;
  bool interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + dims/2)
  const float* table = nullptr;
};

struct KvStoreArgs {
  RowMap map;
  MatrixRef k, v;  // [rows, kv_heads * head_dim]
  KvView cache;
};

/// What an attention call does first where the back end takes that in: rotate q and k (dims > 0), and store k and v.
struct AttentionStore {
  MatrixRef k, v;         // [rows, kv_heads * head_dim]
  std::int64_t dims = 0;  // as in RotaryArgs
  bool interleaved = false;
  const float* table = nullptr;
};

struct AttentionArgs {
  RowMap map;
  MatrixRef q;  // [rows, heads * head_dim]
  std::int64_t heads = 0;
  KvView cache;  // holds the keys of these rows already, unless `store` brings them
  float scale = 1;
  std::int64_t window = 0;  // > 0: the row at position i sees keys j with i - window < j <= i; 0: all j <= i
  float softcap = 0;        // > 0: scores become softcap * tanh(scores / softcap)
  MatrixRef y;              // [rows, heads * head_dim]
  std::byte* workspace = nullptr;
  std::optional<AttentionStore> store = {};  // only where BackendTraits::fuses_store; q, k and v may be changed then
};

/// Attention of the rows of each sequence to one another, without a cache: y = softmax(scale * q k^T + bias) v, as
/// encoders have it. A row sees its whole sequence, or with `causal` the rows up to itself.
struct SelfAttentionArgs {
  RowMap map;         // row_begin says which rows make a sequence
  MatrixRef q, k, v;  // [rows, heads * head_dim]
  std::int64_t heads = 0;
  float scale = 1;
  bool causal = false;
  /// f32, or bf16 or f16: q, k, v and the weights may be rounded to that type; sums are f32.
  DType compute = DType::f32;
  /// [sequences] the rows at the head of each sequence that count as keys: what follows them is padding. Null: all.
  const std::int32_t* valid = nullptr;
  /// Added to the scores of head h for the key at j and the query at i: bias[h * (2 * bias_reach + 1) + d +
  /// bias_reach], d = j - i, cut to [-bias_reach, bias_reach]. Null: none.
  const float* bias = nullptr;
  std::int64_t bias_reach = 0;
  /// Scores are kept as whole matrices between products of a library, as op-by-op programs do.
  bool materialise = false;
  /// > 0: every sequence has so many rows. A GPU needs it to materialise scores.
  std::int64_t length = 0;
  MatrixRef y;  // [rows, heads * head_dim]; not q, k or v
  std::byte* workspace = nullptr;
};

/// What self_attention()'s scratch depends on.
struct SelfAttentionShape {
  std::int64_t rows = 0;       // of a pass, at most
  std::int64_t sequences = 0;  // of a pass, at most
  std::int64_t longest = 0;    // rows of a sequence, at most
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  DType compute = DType::f32;
  bool materialise = false;
};

struct SampleParams {
  float temperature = 0;   // 0: greedy (the first largest logit), and the rest is ignored but for the penalty
  std::int32_t top_k = 0;  // 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;  // as transformers': logits of seen tokens divided (if positive) or multiplied by it
  std::uint64_t seed = 0;
};

struct SampleArgs {
  MatrixRef logits;                      // [n, vocab] f32; changed in place when not plainly greedy
  const SampleParams* params = nullptr;  // [n], device memory
  const std::uint8_t* seen = nullptr;    // [n, vocab] 1 for tokens seen so far; null when no row has a penalty
  const std::int32_t* positions =
      nullptr;                   // [n] draws are a function of (seed, position): they do not depend on the batch
  std::int32_t* next = nullptr;  // [n]
  std::byte* workspace = nullptr;
};

/// After a decode step: tokens[i] = next[i]; positions[i] += 1; history[i * history_stride + step_of[i]] = next[i];
/// step_of[i] += 1; seen[i * vocab + next[i]] = 1. So the step can be replayed without the host.
struct AdvanceArgs {
  std::int64_t sequences = 0;
  const std::int32_t* next = nullptr;
  std::int32_t* tokens = nullptr;
  std::int32_t* positions = nullptr;
  std::int32_t* history = nullptr;
  std::int64_t history_stride = 0;
  std::int32_t* step_of = nullptr;
  std::uint8_t* seen = nullptr;  // may be null
  std::int64_t vocab = 0;
};

/// A convolution over time: rows are frames, columns channels. Group g makes its outputs / groups channels of as many
/// inputs / groups: y[t, n] = act(bias[n] + sum over c, k of weight[n, c, k] * x[t * stride + k - padding, c]), where x
/// is 0 before a sequence's first row and behind its last.
struct ConvolutionShape {
  std::int64_t inputs = 0;   // channels
  std::int64_t outputs = 0;  // channels
  std::int64_t kernel = 1;   // frames
  std::int64_t stride = 1;   // frames
  std::int64_t padding = 0;  // frames before the first one
  std::int64_t groups = 1;   // divides inputs and outputs
  bool bias = false;
  std::optional<ActivationKind> activation = {};
  DType compute = DType::f32;  // as LinearSite::compute

  /// Weights of one output.
  std::int64_t window() const { return kernel * (inputs / groups); }
};

/// A convolution's weights in the layout that a back end wants.
class PackedConvolution {
 public:
  virtual ~PackedConvolution() = default;
};

/// Sequence s has rows [x_begin[s], x_begin[s + 1]) of x and [y_begin[s], y_begin[s + 1]) of y: the latter say how many
/// frames are made. Both lists are in the host's memory, so that a capture keeps them, unless `begin` is given. Without
/// padding, what frames hold whose windows reach behind a sequence's last row is not specified, and a back end with
/// BackendTraits::aligned_frames looks at the ends of the lists only where y_begin is x_begin divided by the stride.
struct ConvolveArgs {
  MatrixRef x;                            // [x_begin.back(), inputs]
  std::span<const std::int64_t> x_begin;  // [sequences + 1]
  MatrixRef y;                            // [y_begin.back(), outputs], not x
  std::span<const std::int64_t> y_begin;  // [sequences + 1]
  std::byte* workspace = nullptr;         // convolution_workspace() bytes
  /// Where x_begin and y_begin are one list: the same in device memory, [sequences + 1]. A back end that captures looks
  /// there, so that a capture may be replayed for other sequences of no more rows all together.
  const std::int32_t* begin = nullptr;
};

/// Group norm with a group a channel (instance norm): y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and
/// biased variance of a column over a sequence's rows.
struct InstanceNormArgs {
  MatrixRef x;                          // [begin.back(), columns]
  std::span<const std::int64_t> begin;  // [sequences + 1] as in ConvolveArgs
  const float* weight = nullptr;        // [columns]
  const float* bias = nullptr;          // [columns]
  float eps = 0;
  MatrixRef y;  // may be x
  /// [sequences] the rows at the head of each sequence that there are; what lies behind them is not looked at, and may
  /// be written. Empty: all.
  std::span<const std::int64_t> rows = {};
  std::optional<ActivationKind> activation = {};  // of y; only where BackendTraits::fuses_instance_norm
};

/// Row y_begin[s] + i of y, of sequence s, is row x_begin[s] + i of x for i < kept[s]. Other rows are zeros, those
/// behind the last sequence among them. The lists are in device memory.
struct TrimArgs {
  MatrixRef x;
  const std::int32_t* x_begin = nullptr;  // [sequences]
  const std::int32_t* kept = nullptr;     // [sequences], at most the rows of y
  MatrixRef y;                            // not x
  const std::int32_t* y_begin = nullptr;  // [sequences + 1]
  std::int64_t sequences = 0;
};

/// What a back end wants of lowering and of the memory plan.
struct BackendTraits {
  // Activations are of the type that linear sites compute in, but for the residual stream and the logits, which are f32
  // everywhere. False: all are f32.
  bool compute_activations = false;
  bool joins_parts = false;  // outputs of a site's parts (q, k, v) are to lie side by side, as columns of one matrix
  bool fuses_store = false;  // attention() takes AttentionStore
  bool self_attention =
      false;            // has self_attention(), activation() and the tables of positions and types: encoders run
  bool images = false;  // has cut_patches(), place_patches() and mean(): encoders of images run
  bool fuses_add_norm = false;  // norm() takes an addend; has pad_rows()
  bool audio =
      false;  // has convolve(), instance_norm(), trim_frames(), transpose() and place_patches(): encoders of audio run
  // Behind a convolution without padding, sequences are to begin at the rows where they begin before it divided by its
  // stride, so that one product makes the frames of all.
  bool aligned_frames = false;
  bool fuses_instance_norm = false;  // instance_norm() takes an activation
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device& device() = 0;
  virtual BackendTraits traits() const { return {}; }

  virtual void embed(const EmbedArgs& args, Stream& stream) = 0;
  virtual void norm(const NormArgs& args, Stream& stream) = 0;
  virtual void rotary(const RotaryArgs& args, Stream& stream) = 0;

  /// Bytes of K (and as many of V) for one layer's cache of the given shape; k and v of a KvView are 64-byte aligned.
  virtual std::size_t kv_bytes(const KvView& shape) const = 0;
  virtual void kv_store(const KvStoreArgs& args, Stream& stream) = 0;
  /// Scratch bytes for attention over up to `rows` rows, `heads` heads, contexts of up to cache.capacity.
  virtual std::size_t attention_workspace(std::int64_t rows, std::int64_t heads, const KvView& cache) const = 0;
  virtual void attention(const AttentionArgs& args, Stream& stream) = 0;

  /// Scratch bytes of self_attention(); only where BackendTraits::self_attention.
  virtual std::size_t self_attention_workspace(const SelfAttentionShape& shape) const;
  virtual void self_attention(const SelfAttentionArgs& args, Stream& stream);

  /// y = act(x); y may be x.
  virtual void activation(ActivationKind kind, const MatrixRef& x, const MatrixRef& y, Stream& stream);
  /// y = act(gate) * up; y may be gate or up. All [rows, columns].
  virtual void gated_activation(ActivationKind kind, const MatrixRef& gate, const MatrixRef& up, const MatrixRef& y,
                                Stream& stream) = 0;
  /// y = a + b; y may be a or b.
  virtual void add(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, Stream& stream) = 0;
  /// y = (a + b) / 2; y may be a or b.
  virtual void mean(const MatrixRef& a, const MatrixRef& b, const MatrixRef& y, Stream& stream);
  /// Only where BackendTraits::images, as is mean().
  virtual void cut_patches(const PatchArgs& args, Stream& stream);
  virtual void place_patches(const PlaceArgs& args, Stream& stream);
  /// Rows of packed sequences in a padded batch: y[s * length + i] = x[row_begin[s] + i], zeros behind a sequence's
  /// end. row_begin [sequences + 1] in device memory. Only where BackendTraits::fuses_add_norm.
  virtual void pad_rows(const MatrixRef& x, const std::int32_t* row_begin, std::int64_t sequences, std::int64_t length,
                        const MatrixRef& y, Stream& stream);
  /// Only where BackendTraits::audio, as all up to transpose(). Lays out a convolution's weights, once:
  /// weight [outputs, inputs / groups, kernel], bias [outputs] or empty.
  virtual std::unique_ptr<PackedConvolution> pack_convolution(const ConvolutionShape& shape,
                                                              std::span<const float> weight,
                                                              std::span<const float> bias, Stream& stream);
  /// Bytes that pack_convolution() keeps.
  virtual std::size_t convolution_bytes(const ConvolutionShape& shape) const;
  /// Scratch bytes of convolve() for any number of rows.
  virtual std::size_t convolution_workspace(const ConvolutionShape& shape) const;
  virtual void convolve(const PackedConvolution& packed, const ConvolveArgs& args, Stream& stream);
  virtual void instance_norm(const InstanceNormArgs& args, Stream& stream);
  virtual void trim_frames(const TrimArgs& args, Stream& stream);
  /// y[i, j] = x[j, i]; x of f32, and not y.
  virtual void transpose(const MatrixRef& x, const MatrixRef& y, Stream& stream);
  /// y[i] = x[indices[i]], i < y.rows; indices in device memory.
  virtual void gather_rows(const MatrixRef& x, const std::int32_t* indices, const MatrixRef& y, Stream& stream) = 0;

  virtual std::size_t sample_workspace(std::int64_t rows, std::int64_t vocab) const = 0;
  virtual void sample(const SampleArgs& args, Stream& stream) = 0;
  virtual void advance(const AdvanceArgs& args, Stream& stream) = 0;
};

/// The CPU's back end.
std::unique_ptr<Backend> make_cpu_backend();

}  // namespace nibble
