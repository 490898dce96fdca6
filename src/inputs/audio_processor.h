// From sound to what a model of audio takes, as the preprocessor_config.json beside it says.
#pragma once

#include "formats/json.h"
#include "inputs/sound.h"

#include <cstdint>
#include <filesystem>
#include <vector>

namespace nibble {

/// Samples, or a spectrogram: channels are planes.
struct AudioFeatures {
  std::int64_t channels = 0;
  std::int64_t steps = 0;     // samples, or frames of the spectrogram
  std::vector<float> values;  // [channels, steps]
  bool cut = false;           // the sound is longer than what the model looks at
};

/// Resamples, and normalises (wav2vec 2.0, HuBERT) or makes the log-mel spectrogram of (Whisper), as transformers'
/// feature extractors of these do. Sounds of Whisper are cut, or filled up with silence, to chunk_length seconds.
class AudioProcessor {
 public:
  /// Reads a preprocessor_config.json. Error for other types of feature extractors, and for fields that ask for
  /// something else.
  explicit AudioProcessor(const JsonView& config);

  /// Reads the preprocessor_config.json of a folder.
  static AudioProcessor read(const std::filesystem::path& folder);

  /// Samples a second that the model takes.
  std::int64_t rate() const { return rate_; }

  AudioFeatures process(const Sound& sound) const;

  /// The spectrogram of samples at rate(), of the length that the model takes:
  ///   (max(log10 max(M |X|^2, 1e-10), largest - 8) + 4) / 4,
  /// with X the transforms of n_fft samples under a periodic Hann window every hop_length, the sound mirrored at both
  /// ends, and M `feature_size` triangles that are evenly spaced in mel from 0 to 8000 Hz, each of area 1 (Slaney's
  /// scale: linear up to 1000 Hz, 27 steps to a factor of 6.4 above).
  AudioFeatures spectrogram(const std::vector<float>& samples) const;

 private:
  void read_whisper(const JsonView& config);
  void make_filters();

  std::int64_t rate_ = 0;
  bool whisper_ = false;
  bool normalises_ = true;
  std::int64_t bins_ = 0, window_ = 0, hop_ = 0, length_ = 0;  // of the spectrogram; samples, but for the bins
  std::vector<double> filters_;                                // [bins, window / 2 + 1]
};

}  // namespace nibble
