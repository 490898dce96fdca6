// An encoder's two paths against each other, over batch sizes, lengths and shares of padding.
#pragma once

#include "bench/gpu_watch.h"
#include "engine/encoder.h"
#include "formats/checkpoint.h"
#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// One batch to measure. Both paths get the same one. A model of images takes `batch` random ones; their rows are the
/// lengths. A model of audio takes random sound; the rows that it becomes are the lengths.
struct EncoderCell {
  std::int64_t batch = 1;
  std::int64_t length = 1;            // columns of the padded batch
  double padding = 0;                 // share of padding that was asked for
  std::vector<std::int32_t> lengths;  // [batch] tokens of each sequence
  std::int64_t steps = 0;             // of audio: columns of the padded batch of samples, or of spectrograms; else 0
  std::vector<std::int32_t> audio_lengths = {};  // [batch] steps of each recording

  std::int64_t tokens() const;
  /// The share of the batch's cells that are padding.
  double padded_share() const;
};

/// Lengths as optimum's benchmark draws them: of a normal distribution around int((1 - padding) * length), cut to whole
/// numbers and to [1, length]. All are `length` where padding is 0. The same for the same arguments everywhere.
std::vector<std::int32_t> draw_lengths(std::int64_t batch, std::int64_t length, double padding, double stddev,
                                       std::uint64_t seed);

/// Random tokens in [1, vocabulary - 2], as optimum's benchmark has them, [batch, length], `padding` behind each
/// sequence's end and nowhere else: some families count positions by it.
std::vector<std::int32_t> random_ids(const Program& program, const EncoderCell& cell, std::uint64_t seed,
                                     std::int32_t padding);

/// The cell of a model of images.
EncoderCell image_cell(const EncoderEngine& engine, std::int64_t images);

/// The cell of a model of audio whose `steps` are the length and lengths of this one: those too short for a row are
/// taken as long as one needs. UsageError where recordings cannot be so long, or so short.
EncoderCell audio_cell(const EncoderEngine& engine, const EncoderCell& steps);

/// A file of lengths. Either of given batches: the line "batch_size,seqlen,padding,lengths", then a line each, the
/// lengths separated by spaces; or of real texts: one length a line, of which a batch draws its own.
class LengthsFile {
 public:
  /// Throws Error naming the line that is neither.
  explicit LengthsFile(const std::filesystem::path& file);

  /// The batches given; empty where the file holds the lengths of texts.
  const std::vector<EncoderCell>& cells() const { return cells_; }
  /// `batch` of the texts' lengths, longer ones cut to `length`.
  std::vector<std::int32_t> draw(std::int64_t batch, std::int64_t length, std::uint64_t seed) const;

 private:
  std::vector<EncoderCell> cells_;
  std::vector<std::int32_t> texts_;
};

struct EncoderBenchOptions {
  std::string device = "cpu";
  std::optional<DType> compute;
  bool eager = true;  // measure the eager path beside the fast one
  std::int64_t pass_rows = 0;
  std::int64_t num_batches = 50;
  double seconds = 0;  // > 0: a cell ends once its timed forward passes took that long, after three of each path
  std::uint64_t seed = 1;
};

struct EncoderPathResult {
  std::vector<double> seconds;  // of each timed forward pass: ids in host memory to hidden states in the device's
  // Bytes: weights, and the most that a forward pass took beside them: of the process, or on a GPU of it as NVML says,
  // else as planned.
  std::size_t peak_memory = 0;
  std::size_t planned_memory = 0;  // what the memory plan says
};

struct EncoderCellResult {
  std::string error;  // why there are no figures; empty where there are
  EncoderPathResult eager, fast;
  double difference = 0;  // of the paths' hidden states, rows of padding left out: the largest, of the largest value
  Cost cost;              // the least that the useful tokens need
  GpuRun gpu;             // what the GPU did while the paths were timed
  // Seconds that copying the pixels or sound of the batch to a GPU takes by itself, a part of each pass's time.
  std::optional<double> copy;
};

/// Times a model on a GPU from its inputs in host memory that the device copies from at its own speed (ids, pixels,
/// sound) to hidden states in device memory.
class EncoderBench {
 public:
  EncoderBench(const std::shared_ptr<const Checkpoint>& checkpoint, const EncoderBenchOptions& options);
  ~EncoderBench();

  EncoderEngine& fast();
  /// Runs both paths on the cell's batch, compares what comes out, and times them in turns. A cell whose paths disagree
  /// is not timed. `progress` gets the share of the cell that is done.
  EncoderCellResult run(const EncoderCell& cell, const std::function<void(double share)>& progress);
  /// The fast path's time for each node, on the cell's batch.
  std::vector<NodeTime> profile(const EncoderCell& cell);

 private:
  friend struct BenchBatch;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Times by node of one forward pass, as text for people: the same node of all layers is one line.
std::string profile_text(const std::vector<NodeTime>& times);

}  // namespace nibble
