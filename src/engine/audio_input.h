// The audio of an encoder's pass: its steps in device memory, and where the rows of each recording lie behind each of
// the convolutions that make frames of them.
#pragma once

#include "engine/encoder.h"
#include "engine/pass.h"
#include "models/program.h"
#include "ops/backend.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

/// Error unless the batch is one that a model of this shape takes; `where` names the model.
void check_audio(const AudioBatch& batch, const AudioShape& shape, const std::string& where);

class AudioInput {
 public:
  struct Options {
    DType activations = DType::f32;  // RunSizes::activations
    bool aligned = false;            // RunSizes::aligned_frames
    bool padded = false;             // padding is looked at as the recordings are: the eager path
  };
  /// All three must outlive the input, and stay where they are.
  AudioInput(const AudioShape& shape, Backend& backend, Stream& stream, const Options& options);

  /// Takes the memory for passes of up to `recordings` recordings of up to `steps` steps; release() gives it back.
  void allocate(std::int64_t recordings, std::int64_t steps);
  void release();

  /// Whether a captured pass can be replayed for other recordings: where their frames lie is settled by how many there
  /// are and to what they are padded, or what convolutions do does not depend on it.
  bool repeats() const { return looks_at_padding_ || (aligned_ && shape_.channels == 1); }
  /// What a captured pass depends on beside its number of rows and recordings: the steps of each, where frames lie by
  /// them.
  std::int64_t settled_steps(const AudioBatch& batch) const { return looks_at_padding_ ? batch.steps : 0; }

  /// Says in `pass` where the rows of recordings [first, last) lie, and enqueues the copies of what the host holds of
  /// them. in_steps: with as many rows as a captured pass has.
  void begin(const AudioBatch& batch, std::int64_t first, std::int64_t last, bool in_steps, Pass& pass);
  /// Enqueues what makes steps of what begin() copied. The same for every pass that a capture is replayed for.
  void enqueue() const;

 private:
  std::int64_t steps_of(const AudioBatch& batch, std::int64_t recording) const;
  DType steps_type() const { return shape_.channels > 1 ? options_.activations : DType::f32; }  // samples stay
  void place(const AudioBatch& batch, std::int64_t first, std::int64_t last, bool in_steps, Pass& pass) const;

  const AudioShape& shape_;
  Backend& backend_;
  Stream& stream_;
  Options options_;
  bool looks_at_padding_;
  bool aligned_;
  std::int64_t most_rows_ = 0;  // behind all stages
  std::unique_ptr<Buffer> steps_, spectrograms_;
  std::vector<std::pair<MatrixRef, MatrixRef>> turned_;  // spectrograms [bins, steps], and where they become rows
};

}  // namespace nibble
