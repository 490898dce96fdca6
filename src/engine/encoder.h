// The encoder's engine: whole sequences through a model at once, no cache, in one of two ways: as op-by-op programs do
// it, padded, or packed and fused.
#pragma once

#include "core/device.h"
#include "engine/engine.h"
#include "engine/load_times.h"
#include "engine/plan.h"
#include "formats/checkpoint.h"
#include "models/program.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class EncoderPath {
  eager,  // op by op over every padded row; attention through whole matrices of scores; products by the library
  fast,   // padding left out before the first layer; neighbours fused; attention in tiles
};
std::string_view name_of(EncoderPath path);
/// "eager" or "fast"; UsageError for other names.
EncoderPath encoder_path_named(std::string_view name);

struct EncoderOptions {
  std::string device = "cpu";
  EncoderPath path = EncoderPath::fast;
  /// Kernel of the blocks' linear sites, by name; "auto": quantised sites by measured cost, others dense.
  std::string kernel = "auto";
  /// What linear sites and attention compute in: f32, bf16, or on a GPU f16. Unset: f32 for checkpoints of f32; for
  /// 16-bit ones their own type on a GPU, bf16 on the CPU.
  std::optional<DType> compute;
  /// Which model of a checkpoint that holds several ("text", "vision" of CLIP's); empty: its only one.
  std::string part = {};
  /// False: the model without its head.
  bool head = true;
  /// Rows a pass on the fast path, whole sequences: 0: what suits the device.
  std::int64_t pass_rows = 0;
  /// On a GPU's fast path: record a pass of each size once and replay it.
  bool capture = true;
};

/// Sequences of tokens, each padded to the same length.
struct EncoderBatch {
  std::int64_t sequences = 0;
  std::int64_t length = 0;                // columns: tokens of the longest sequence, or more
  std::span<const std::int32_t> ids;      // [sequences, length]; what stands behind a sequence's end is padding
  std::span<const std::int32_t> lengths;  // [sequences] tokens of each, 1 to `length`
  std::span<const std::int32_t> types;    // [sequences, length] token types, or empty: all 0
};

/// Images of the size that the model takes (Program::image), normalised as it was trained with.
struct ImageBatch {
  std::int64_t images = 0;
  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::span<const float> pixels;  // [images, channels, height, width]
};

/// Recordings as the model takes them: samples of its rate, or the log-mel spectrogram of each, normalised as it was
/// trained with, each padded to the same length.
struct AudioBatch {
  std::int64_t recordings = 0;
  std::int64_t channels = 0;              // 1 for samples, or the spectrogram's bins: Program::audio
  std::int64_t steps = 0;                 // of time, of the longest recording or more
  std::span<const float> values;          // [recordings, channels, steps]; what stands behind an end is padding: zeros
  std::span<const std::int32_t> lengths;  // [recordings] steps of each; empty: all of them
};

/// A token of a batch.
struct TokenPlace {
  std::int32_t sequence = 0;
  std::int32_t position = 0;  // among the sequence's tokens
};

/// Which results are wanted; what is not wanted costs nothing.
struct EncoderWants {
  bool hidden = true;  // [sequences, length, hidden]; an image's length is max_length(), a recording's frames()
  bool head = false;   // [sequences, length or 1, head_columns()], or [head_rows, head_columns()]
  /// Of a head that gives a row for each token: those that are wanted, in the order of the batch, none twice; empty:
  /// all of them.
  std::span<const TokenPlace> head_rows = {};
  /// Hidden states [sequences, length, hidden] in device memory, of the type computed in (EncoderEngine::on_device());
  /// only on a GPU.
  bool on_device = false;
};

struct EncoderResult {
  /// The hidden state after the last block. On the fast path rows of padding are zeros; on the eager path they hold
  /// what the model makes of padding.
  std::vector<float> hidden;
  /// What the head makes of each row (a masked language model's, a classifier of tokens), of the rows asked for, or of
  /// each sequence (a pooler, a classifier of sequences). Rows of padding are zeros on both paths.
  std::vector<float> head;
};

/// What an encoder computes in where EncoderOptions do not say.
DType default_compute(const Checkpoint& checkpoint, const Program& program, DeviceKind device);

/// The largest difference of two results [sequences, length, width] of a batch, rows of padding left out, as a share of
/// the largest value of `b`; infinity where one holds a NaN.
double largest_difference(const EncoderBatch& batch, std::span<const float> a, std::span<const float> b);

class EncoderEngine {
 public:
  /// Opens, plans, reads and packs. Throws Error for a checkpoint that is no encoder's.
  EncoderEngine(std::shared_ptr<const Checkpoint> checkpoint, EncoderOptions options);
  ~EncoderEngine();
  EncoderEngine(const EncoderEngine&) = delete;
  EncoderEngine& operator=(const EncoderEngine&) = delete;

  const Program& program() const;
  const EncoderOptions& options() const;
  DType compute() const;
  /// Of the largest batch so far; weights only before the first one.
  const MemoryPlan& plan() const;
  const LoadTimes& load_times() const;
  Device& device();
  /// The program as it was lowered, and which kernel runs each linear site.
  const std::vector<LoweredNode>& nodes() const;
  std::vector<SiteInfo> sites() const;
  /// The most tokens a sequence may have; the rows of an image: its patches and the model's own tokens.
  std::int64_t max_length() const;
  /// The rows that a recording of so many steps becomes (Program::audio); 0 where it is too short for one.
  std::int64_t frames(std::int64_t steps) const;
  /// Columns of the head's results; 0 where the model has no head.
  std::int64_t head_columns() const;
  /// Whether the head gives a row for each token.
  bool head_has_rows() const;

  /// Plans and takes the memory for batches of up to that many sequences of up to that many tokens, or of that many
  /// images, whose length is always max_length(), or of that many recordings of up to that many steps, whose heads are
  /// wanted of all rows. Error with what to change where they do not fit the device.
  void reserve(std::int64_t sequences, std::int64_t length);

  /// Gives back what reserve() took.
  void release();

  /// Runs a batch; reserve() first where it needs more than there is. Error naming the sequence for ids outside of the
  /// vocabulary, lengths out of range, models of images, models without a head whose result is wanted, and rows of the
  /// head that there are not.
  void forward(const EncoderBatch& batch, const EncoderWants& wants, EncoderResult& result);
  /// The same for a model of images; Error where their size is not the model's.
  void forward(const ImageBatch& batch, const EncoderWants& wants, EncoderResult& result);
  /// The same for a model of audio. Recordings do not depend on their batch, unless AudioShape::padding_counts: then
  /// they depend on the steps that they are padded to. Error for recordings that are too short for a row, or too long.
  void forward(const AudioBatch& batch, const EncoderWants& wants, EncoderResult& result);

  /// The hidden states that the last forward() with EncoderWants::on_device left in device memory, until the next call:
  /// rows of padding are zeros on the fast path.
  MatrixRef on_device() const;

  /// Bytes and operations of the linear sites and attention over sequences of these lengths, without padding; a
  /// recording's length is that of frames(), of the fewest steps that make so many.
  Cost cost(std::span<const std::int32_t> lengths) const;

  /// Time by node of one forward pass of this batch, in the order of the nodes, summed over its passes.
  std::vector<NodeTime> profile(const EncoderBatch& batch);
  std::vector<NodeTime> profile(const ImageBatch& batch);
  std::vector<NodeTime> profile(const AudioBatch& batch);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
