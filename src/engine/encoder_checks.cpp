#include "engine/encoder_checks.h"

#include "core/checked.h"
#include "core/error.h"

namespace nibble {

void check_batch(const EncoderBatch& batch, const Program& program, bool with_padding) {
  const auto cells = static_cast<std::size_t>(checked_mul(batch.sequences, batch.length, "the tokens of a batch"));
  if (batch.sequences < 1 || batch.length < 1) {
    fail("a batch of {} sequences of {} tokens was given; expected at least one of each", batch.sequences,
         batch.length);
  }
  if (batch.ids.size() != cells || batch.lengths.size() != static_cast<std::size_t>(batch.sequences) ||
      (!batch.types.empty() && batch.types.size() != cells)) {
    fail("a batch of {} sequences of {} tokens came with {} ids, {} lengths and {} types", batch.sequences,
         batch.length, batch.ids.size(), batch.lengths.size(), batch.types.size());
  }
  if (!batch.types.empty() && program.types == 0)
    fail("token types were given to a {} model, which has none: leave them out", program.architecture);
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    const std::int64_t length = batch.lengths[static_cast<std::size_t>(s)];
    if (length < 1 || length > batch.length)
      fail("sequence {} has a length of {}; expected 1 to {}", s, length, batch.length);
    for (std::int64_t i = 0; i < (with_padding ? batch.length : length); ++i) {
      const auto at = static_cast<std::size_t>(s * batch.length + i);
      if (batch.ids[at] < 0 || batch.ids[at] >= program.vocab) {
        fail("sequence {} holds token id {}, but the model's vocabulary has {} entries", s, batch.ids[at],
             program.vocab);
      }
      if (!batch.types.empty() && (batch.types[at] < 0 || batch.types[at] >= program.types)) {
        fail("sequence {} holds token type {}, but the model knows {}", s, batch.types[at], program.types);
      }
    }
  }
}

void check_batch(const ImageBatch& batch, const Program& program, const std::string& folder) {
  const ImageShape& shape = *program.image;
  if (batch.images < 1) fail("a batch of {} images was given; expected at least one", batch.images);
  if (batch.channels != shape.channels || batch.height != shape.size || batch.width != shape.size) {
    fail(
        "images of {} x {} pixels (width, height) with {} channels were given, but {} takes {} x {} with {}: resize "
        "them as its preprocessor_config.json says",
        batch.width, batch.height, batch.channels, folder, shape.size, shape.size, shape.channels);
  }
  if (batch.pixels.size() != static_cast<std::size_t>(checked_mul(batch.images, shape.values(), "a batch of images"))) {
    fail("a batch of {} images of {} x {} pixels with {} channels came with {} values", batch.images, batch.width,
         batch.height, batch.channels, batch.pixels.size());
  }
}

void check_batch(const AudioBatch& batch, const Program& program, const std::string& folder) {
  const AudioShape& shape = *program.audio;
  if (batch.recordings < 1) fail("a batch of {} recordings was given; expected at least one", batch.recordings);
  if (batch.channels != shape.channels) {
    fail("audio of {} channels was given, but {} takes {}: process it as its preprocessor_config.json says",
         batch.channels, folder, shape.channels);
  }
  if (shape.length > 0 && batch.steps != shape.length) {
    fail("audio of {} steps was given, but {} takes {}: pad or cut it", batch.steps, folder, shape.length);
  }
  const std::int64_t row = checked_mul(batch.channels, batch.steps, "a recording");
  if (batch.values.size() != static_cast<std::size_t>(checked_mul(batch.recordings, row, "a batch of recordings"))) {
    fail("a batch of {} recordings of {} steps with {} channels came with {} values", batch.recordings, batch.steps,
         batch.channels, batch.values.size());
  }
  if (!batch.lengths.empty() && batch.lengths.size() != static_cast<std::size_t>(batch.recordings))
    fail("a batch of {} recordings came with {} lengths", batch.recordings, batch.lengths.size());
  if (shape.frames(batch.steps) < 1) {
    fail("a recording of {} steps is too short for {}: expected at least {}", batch.steps, folder, shape.least_steps());
  }
  for (std::size_t r = 0; r < batch.lengths.size(); ++r) {
    const std::int32_t length = batch.lengths[r];
    if (length > batch.steps || shape.frames(length) < 1) {
      fail("recording {} has a length of {}; expected {} to {}", r, length, shape.least_steps(), batch.steps);
    }
    if (shape.length > 0 && length != batch.steps) {
      fail("recording {} has a length of {}, but {} looks at all {} steps of each: leave lengths out", r, length,
           folder, batch.steps);
    }
  }
}

}  // namespace nibble
