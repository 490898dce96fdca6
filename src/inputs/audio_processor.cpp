#include "inputs/audio_processor.h"

#include "core/error.h"
#include "inputs/fourier.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace nibble {
namespace {

constexpr std::int64_t kMaxWindow = 4096;
constexpr std::int64_t kMaxBins = 1024;
constexpr std::int64_t kMaxFeatures = std::int64_t{1} << 28;  // of a recording, 1 GB
constexpr double kHighest = 8000;                             // Hz, of the last triangle
constexpr double kFloor = 1e-10;

// Slaney's scale of pitch, and back.
constexpr double kLinear = 200.0 / 3;  // Hz a step
constexpr double kBend = 1000;         // Hz, where it becomes logarithmic
double steps_a_log() { return 27 / std::log(6.4); }
double mel_of(double hertz) {
  return hertz < kBend ? hertz / kLinear : kBend / kLinear + std::log(hertz / kBend) * steps_a_log();
}
double hertz_of(double mel) {
  const double bend = kBend / kLinear;
  return mel < bend ? mel * kLinear : kBend * std::exp((mel - bend) / steps_a_log());
}

std::int64_t limited(const JsonView& config, std::string_view key, std::int64_t fallback, std::int64_t most) {
  const std::int64_t value = config.positive(key, fallback);
  if (value > most) config.refuse(key, "at most " + std::to_string(most));
  return value;
}

// To mean 0 and variance 1, as transformers has it: a variance over all samples, and 1e-7 beside it.
void normalise(std::vector<float>& samples) {
  if (samples.empty()) return;
  const auto count = static_cast<double>(samples.size());
  double mean = 0;
  for (const float value : samples) mean += static_cast<double>(value);
  mean /= count;
  double variance = 0;
  for (const float value : samples) variance += std::pow(static_cast<double>(value) - mean, 2);
  const double factor = 1 / std::sqrt(variance / count + 1e-7);
  for (float& value : samples) value = static_cast<float>((static_cast<double>(value) - mean) * factor);
}

}  // namespace

AudioProcessor::AudioProcessor(const JsonView& config) {
  const std::string type = config.text("feature_extractor_type", "Wav2Vec2FeatureExtractor");
  whisper_ = type == "WhisperFeatureExtractor";
  if (!whisper_ && type != "Wav2Vec2FeatureExtractor")
    config.refuse("feature_extractor_type", "Wav2Vec2FeatureExtractor or WhisperFeatureExtractor");
  rate_ = limited(config, "sampling_rate", 16000, kMaxSampleRate);
  if (rate_ < kMinSampleRate) config.refuse("sampling_rate", "at least 1000");
  if (config.number("padding_value", 0) != 0) config.refuse("padding_value", "0");
  if (whisper_) {
    read_whisper(config);
    return;
  }
  if (config.integer("feature_size", 1) != 1) config.refuse("feature_size", "1: samples of one channel");
  normalises_ = config.boolean("do_normalize", true);
}

void AudioProcessor::read_whisper(const JsonView& config) {
  if (config.number("dither", 0) != 0) config.refuse("dither", "0: results are to be the same each time");
  bins_ = limited(config, "feature_size", 80, kMaxBins);
  window_ = limited(config, "n_fft", 400, kMaxWindow);
  hop_ = limited(config, "hop_length", 160, kMaxWindow);
  length_ = limited(config, "chunk_length", 30, kMaxSamples / rate_) * rate_;
  if (length_ <= window_) config.refuse("chunk_length", "longer than n_fft samples");
  if (length_ / hop_ > kMaxFeatures / bins_) config.refuse("chunk_length", "a length of at most 268435456 values");
  make_filters();
}

AudioProcessor AudioProcessor::read(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "preprocessor_config.json";
  const nlohmann::json config = read_json_file(path);
  return AudioProcessor(JsonView(config, path.string()));
}

void AudioProcessor::make_filters() {
  const std::int64_t frequencies = window_ / 2 + 1;
  const double highest = mel_of(kHighest);
  const auto corner = [&](std::int64_t i) {
    return hertz_of(highest * static_cast<double>(i) / static_cast<double>(bins_ + 1));
  };
  // The frequency that the last value stands for is half of the rate, whether or not n_fft is even.
  const double half = std::floor(static_cast<double>(rate_) / 2);
  const double step = frequencies > 1 ? half / static_cast<double>(frequencies - 1) : 0;
  filters_.reserve(static_cast<std::size_t>(bins_ * frequencies));
  for (std::int64_t bin = 0; bin < bins_; ++bin) {
    const double left = corner(bin);
    const double middle = corner(bin + 1);
    const double right = corner(bin + 2);
    for (std::int64_t k = 0; k < frequencies; ++k) {
      const double hertz = step * static_cast<double>(k);
      const double height = std::min((hertz - left) / (middle - left), (right - hertz) / (right - middle));
      filters_.push_back(std::max(0.0, height) * 2 / (right - left));
    }
  }
}

AudioFeatures AudioProcessor::process(const Sound& sound) const {
  const bool same = sound.rate == rate_;
  const Sound changed = same ? Sound() : resample(sound, rate_);
  const std::vector<float>& samples = same ? sound.samples : changed.samples;
  if (whisper_) return spectrogram(samples);
  AudioFeatures out{1, static_cast<std::int64_t>(samples.size()), samples, false};
  if (normalises_) normalise(out.values);
  return out;
}

AudioFeatures AudioProcessor::spectrogram(const std::vector<float>& samples) const {
  const auto bins = static_cast<std::size_t>(bins_);
  const auto frequencies = static_cast<std::size_t>(window_ / 2 + 1);
  const std::int64_t frames = length_ / hop_;
  const auto count = static_cast<std::int64_t>(samples.size());
  AudioFeatures out{bins_, frames, {}, count > length_};
  out.values.resize(bins * static_cast<std::size_t>(frames));
  std::vector<double> hann, taken, power(frequencies);
  hann.reserve(static_cast<std::size_t>(window_));
  for (std::int64_t i = 0; i < window_; ++i) {
    const double turn = static_cast<double>(i) / static_cast<double>(window_);
    hann.push_back(0.5 - 0.5 * std::cos(2 * std::numbers::pi * turn));
  }
  taken.resize(hann.size());
  PowerSpectrum spectrum(window_);
  double largest = std::log10(kFloor);
  for (std::int64_t frame = 0; frame < frames; ++frame) {
    for (std::int64_t i = 0; i < window_; ++i) {
      std::int64_t at = std::abs(frame * hop_ + i - window_ / 2);
      if (at >= length_) at = 2 * (length_ - 1) - at;
      taken[static_cast<std::size_t>(i)] =
          at < count ? static_cast<double>(samples[static_cast<std::size_t>(at)]) * hann[static_cast<std::size_t>(i)]
                     : 0;
    }
    spectrum.compute(taken, power);
    for (std::size_t bin = 0; bin < bins; ++bin) {
      double sum = 0;
      for (std::size_t k = 0; k < frequencies; ++k) sum += filters_[bin * frequencies + k] * power[k];
      const double value = std::log10(std::max(sum, kFloor));
      largest = std::max(largest, value);
      out.values[bin * static_cast<std::size_t>(frames) + static_cast<std::size_t>(frame)] = static_cast<float>(value);
    }
  }
  for (float& value : out.values)
    value = static_cast<float>((std::max(static_cast<double>(value), largest - 8) + 4) / 4);
  return out;
}

}  // namespace nibble
