#include "engine/audio_input.h"

#include "core/checked.h"
#include "core/error.h"
#include "engine/row_buckets.h"

#include <algorithm>

namespace nibble {

void check_audio(const AudioBatch& batch, const AudioShape& shape, const std::string& where) {
  if (batch.recordings < 1) fail("a batch of {} recordings was given; expected at least one", batch.recordings);
  if (batch.channels != shape.channels) {
    fail("audio of {} channels was given, but {} takes {}: process it as its preprocessor_config.json says",
         batch.channels, where, shape.channels);
  }
  if (shape.length > 0 && batch.steps != shape.length)
    fail("audio of {} steps was given, but {} takes {}: pad or cut it", batch.steps, where, shape.length);
  const std::int64_t row = checked_mul(batch.channels, batch.steps, "a recording");
  if (batch.values.size() != static_cast<std::size_t>(checked_mul(batch.recordings, row, "a batch of recordings"))) {
    fail("a batch of {} recordings of {} steps with {} channels came with {} values", batch.recordings, batch.steps,
         batch.channels, batch.values.size());
  }
  if (!batch.lengths.empty() && batch.lengths.size() != static_cast<std::size_t>(batch.recordings))
    fail("a batch of {} recordings came with {} lengths", batch.recordings, batch.lengths.size());
  if (shape.frames(batch.steps) < 1) {
    fail("a recording of {} steps is too short for {}: expected at least {}", batch.steps, where, shape.least_steps());
  }
  for (std::size_t r = 0; r < batch.lengths.size(); ++r) {
    const std::int32_t length = batch.lengths[r];
    if (length > batch.steps || shape.frames(length) < 1)
      fail("recording {} has a length of {}; expected {} to {}", r, length, shape.least_steps(), batch.steps);
    if (shape.length > 0 && length != batch.steps) {
      fail("recording {} has a length of {}, but {} looks at all {} steps of each: leave lengths out", r, length, where,
           batch.steps);
    }
  }
}

AudioInput::AudioInput(const AudioShape& shape, Backend& backend, Stream& stream, const Options& options)
    : shape_(shape),
      backend_(backend),
      stream_(stream),
      options_(options),
      looks_at_padding_(options.padded || shape.padding_counts || shape.length > 0),
      aligned_(options.aligned && shape.aligns()) {}

void AudioInput::allocate(std::int64_t recordings, std::int64_t steps) {
  Device& device = backend_.device();
  const std::int64_t room = shape_.room(steps, 0, options_.aligned);
  const auto values = static_cast<std::size_t>(recordings * room * shape_.channels);
  most_rows_ = recordings * shape_.room(steps, shape_.stages.size(), options_.aligned);
  steps_ = device.allocate(values * bytes_of(steps_type()), "the audio of a pass");
  if (device.info().kind == DeviceKind::cuda && shape_.channels > 1)
    spectrograms_ = device.allocate(values * sizeof(float), "the spectrograms of a pass");
}

void AudioInput::release() {
  steps_.reset();
  spectrograms_.reset();
  turned_.clear();
}

std::int64_t AudioInput::steps_of(const AudioBatch& batch, std::int64_t recording) const {
  const bool all = looks_at_padding_ || batch.lengths.empty();
  return all ? batch.steps : batch.lengths[static_cast<std::size_t>(recording)];
}

void AudioInput::place(const AudioBatch& batch, std::int64_t first, std::int64_t last, bool in_steps,
                       Pass& pass) const {
  const std::size_t stages = shape_.stages.size();
  pass.frame_begin.assign(stages + 1, {0});
  pass.frames.resize(stages + 1);
  for (std::int64_t r = first; r < last; ++r) {
    const std::int64_t steps = steps_of(batch, r);
    for (std::size_t stage = 0; stage <= stages; ++stage) {
      pass.frame_begin[stage].push_back(pass.frame_begin[stage].back() + shape_.room(steps, stage, options_.aligned));
      pass.frames[stage].push_back(shape_.frames(steps, stage));
    }
  }
  if (!in_steps || looks_at_padding_) return;
  // Behind the last recording there is room that only fills the bucket; nobody reads what becomes of it.
  const std::int64_t rows = pass.frame_begin.back().back();
  std::int64_t more = std::min(bucket_of(rows), most_rows_) - rows;
  for (std::size_t stage = stages;; --stage) {
    pass.frame_begin[stage].back() += more;
    if (stage == 0) break;
    more *= shape_.stages[stage - 1].stride;
  }
}

void AudioInput::begin(const AudioBatch& batch, std::int64_t first, std::int64_t last, bool in_steps, Pass& pass) {
  place(batch, first, last, in_steps, pass);
  const std::vector<std::int64_t>& begin = pass.frame_begin.front();
  pass.images = last - first;
  pass.steps = {steps_->data(), steps_type(), begin.back(), batch.channels, batch.channels};
  turned_.clear();
  const std::int64_t each = batch.channels * batch.steps;
  const float* from = batch.values.data() + first * each;
  const auto bytes_from = [&](std::int64_t values) { return static_cast<std::size_t>(values) * sizeof(float); };
  if (batch.channels > 1) {
    // The host's memory is the device's on the CPU.
    float* there = const_cast<float*>(from);
    if (spectrograms_) {
      there = reinterpret_cast<float*>(spectrograms_->data());
      stream_.copy_to_device(there, from, bytes_from((last - first) * each));
    }
    for (std::int64_t r = first; r < last; ++r) {
      const auto at = static_cast<std::size_t>(r - first);
      const std::int64_t steps = steps_of(batch, r);
      std::byte* const to =
          steps_->data() + static_cast<std::size_t>(begin[at] * batch.channels) * bytes_of(steps_type());
      turned_.emplace_back(MatrixRef{there + (r - first) * each, DType::f32, batch.channels, steps, batch.steps},
                           MatrixRef{to, steps_type(), steps, batch.channels, batch.channels});
    }
    return;
  }
  for (std::int64_t r = first; r < last; ++r, from += each) {
    std::byte* const to = steps_->data() + bytes_from(begin[static_cast<std::size_t>(r - first)]);
    stream_.copy_to_device(to, from, bytes_from(steps_of(batch, r)));
  }
}

void AudioInput::enqueue() const {
  for (const auto& [from, to] : turned_) backend_.transpose(from, to, stream_);
}

}  // namespace nibble
