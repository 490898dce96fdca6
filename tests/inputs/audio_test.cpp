// Decoding and resampling of sound against formulas, features against transformers, and files that are not what they
// say.
#include "core/error.h"
#include "core/file.h"
#include "core/tensor.h"
#include "formats/safetensors.h"
#include "inputs/audio_processor.h"
#include "inputs/fourier.h"
#include "inputs/sound.h"
#include "support/expect_error.h"
#include "support/wav_file.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <complex>
#include <filesystem>
#include <limits>
#include <numbers>
#include <random>
#include <string>
#include <vector>

namespace nibble {
namespace {

namespace fs = std::filesystem;

using test::WavFile;

Sound decode(const std::string& file) { return decode_wav(std::as_bytes(std::span(file)), "x.wav"); }

TEST(Wav, DecodesEveryFormat) {
  for (const bool extensible : {false, true}) {
    WavFile wav;
    wav.extensible = extensible;
    const auto samples = [&](std::int64_t bits, std::uint16_t tag, const std::string& data) {
      wav.bits = bits;
      wav.tag = tag;
      wav.data = data;
      return decode(wav.bytes()).samples;
    };
    using List = std::vector<float>;
    EXPECT_EQ(samples(8, 1, test::packed<std::uint8_t>({0, 128, 192, 255})), (List{-1, 0, 0.5F, 127.0F / 128}));
    EXPECT_EQ(samples(16, 1, test::packed<std::int16_t>({0, 16384, -32768, 32767})),
              (List{0, 0.5F, -1, 32767.0F / 32768}));
    EXPECT_EQ(samples(24, 1, std::string("\x00\x00\x40\x00\x00\x80\x01\x00\x00", 9)), (List{0.5F, -1, 1.0F / 8388608}));
    EXPECT_EQ(
        samples(32, 1, test::packed<std::int32_t>({1 << 30, -(1 << 30), std::numeric_limits<std::int32_t>::min()})),
        (List{0.5F, -0.5F, -1}));
    EXPECT_EQ(samples(32, 3, test::packed<float>({0.25F, -3})), (List{0.25F, -3}));
    EXPECT_EQ(samples(64, 3, test::packed<double>({0.25, -0.125})), (List{0.25F, -0.125F}));
  }
}

TEST(Wav, ChannelsBecomeTheirMean) {
  WavFile wav;
  wav.channels = 3;
  wav.rate = 44100;
  wav.data = test::packed<std::int16_t>({16384, 0, -8192, 3, 6, 9});
  const Sound sound = decode(wav.bytes());
  EXPECT_EQ(sound.rate, 44100);
  EXPECT_EQ(sound.samples, (std::vector<float>{0.25F / 3, 6.0F / 32768}));
}

TEST(Wav, SkipsChunksAndReadsToTheEndWhereNoLengthIsKnown) {
  WavFile wav;
  wav.before = std::string("LIST\x03\0\0\0abc\0", 12);  // of an odd length, so that a byte follows
  wav.data = test::packed<std::int16_t>({1, 2});
  EXPECT_EQ(decode(wav.bytes()).samples.size(), 2U);
  wav.data_size = 0xFFFFFFFF;
  EXPECT_EQ(decode(wav.bytes()).samples.size(), 2U);
  wav.data_size = 4;
  wav.data += std::string("junk behind the data chunk");
  EXPECT_EQ(decode(wav.bytes()).samples.size(), 2U);
}

TEST(Wav, HostileFilesAreRefusedWithASentence) {
  test::expect_error("x.wav: 0 bytes that are no WAV file", [] { (void)decode(""); });
  test::expect_error("no WAV file", [] { (void)decode("RIFF    AVI and so on"); });
  const auto refuse = [](std::string_view part, const WavFile& wav) {
    test::expect_error(part, [&] { (void)decode(wav.bytes()); });
  };
  WavFile wav;
  wav.data = test::packed<std::int16_t>({1, 2});
  wav.data_size = 5;
  refuse("a chunk of 5 bytes begins at byte 44, but only 4 follow", wav);
  wav = {};
  wav.tag = 2;
  refuse("samples are of format 2 with 16 bits", wav);
  wav = {};
  wav.bits = 12;
  refuse("format 1 with 12 bits", wav);
  wav = {};
  wav.tag = 3;
  refuse("format 3 with 16 bits", wav);
  wav = {};
  wav.channels = 0;
  refuse("0 channels; expected 1 to 256", wav);
  wav = {};
  wav.rate = 10;
  refuse("10 samples a second; expected 1000 to 768000", wav);
  wav = {};
  wav.block = 3;
  refuse("is said to take 3 bytes; expected 2", wav);
  wav = {};
  wav.extensible = true;
  wav.identifier_end = 'x';
  refuse("identifier is not one of PCM or floats", wav);
  wav = {};
  wav.tag = 3;
  wav.bits = 32;
  wav.data = test::packed<float>({0, std::numeric_limits<float>::infinity()});
  refuse("sample 1 is inf", wav);

  const std::string whole = WavFile{}.bytes();
  test::expect_error("without a data chunk", [&] { (void)decode(whole.substr(0, 36)); });
  test::expect_error("begins at byte 20, but only 6 follow", [&] { (void)decode(whole.substr(0, 26)); });
  std::string swapped = whole.substr(0, 12) + whole.substr(36) + whole.substr(12, 24);
  test::expect_error("comes before the fmt chunk", [&] { (void)decode(swapped); });
  std::string small = whole;
  small[16] = 4;
  test::expect_error("the fmt chunk has 4 bytes; expected at least 16", [&] { (void)decode(small); });
  test::expect_error("nowhere.wav", [] { (void)read_wav("nowhere.wav"); });
}

Sound tone(std::int64_t rate, double hertz, std::int64_t count) {
  Sound sound{rate, {}};
  for (std::int64_t i = 0; i < count; ++i)
    sound.samples.push_back(static_cast<float>(
        std::sin(2 * std::numbers::pi * hertz * static_cast<double>(i) / static_cast<double>(rate))));
  return sound;
}

// The largest difference of two sounds, but for what the ends change.
double difference(const Sound& a, const Sound& b, std::size_t ends) {
  EXPECT_EQ(a.samples.size(), b.samples.size());
  double worst = 0;
  for (std::size_t i = ends; i + ends < std::min(a.samples.size(), b.samples.size()); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a.samples[i]) - static_cast<double>(b.samples[i])));
  return worst;
}

TEST(Resample, KeepsTonesAndDropsWhatTheRateCannotHold) {
  for (const std::int64_t from : {8000, 11025, 22050, 44100, 48000, 96000, 16001}) {
    SCOPED_TRACE(from);
    const std::int64_t count = from / 2;
    const std::int64_t outputs = (count * 16000 + from - 1) / from;
    const double passes = 0.44 * static_cast<double>(std::min<std::int64_t>(from, 16000));
    for (const double hertz : {0.2 * passes, passes}) {
      const Sound got = resample(tone(from, hertz, count), 16000);
      EXPECT_EQ(got.rate, 16000);
      EXPECT_LT(difference(got, tone(16000, hertz, outputs), 200), 2e-4) << hertz;
    }
    if (from < 20000) continue;
    const Sound silent = resample(tone(from, 8100, count), 16000);
    EXPECT_LT(difference(silent, tone(16000, 0, outputs), 200), 2e-4);
  }
}

TEST(Resample, KeepsConstantsAndEqualRates) {
  const Sound ones{44100, std::vector<float>(5000, 0.5F)};
  const Sound got = resample(ones, 16000);
  for (std::size_t i = 100; i + 100 < got.samples.size(); ++i) ASSERT_NEAR(got.samples[i], 0.5F, 1e-5);
  EXPECT_EQ(resample(ones, 44100).samples, ones.samples);
  EXPECT_TRUE(resample(Sound{44100, {}}, 16000).samples.empty());
  test::expect_error("expected 1000 to 768000", [&] { (void)resample(ones, 5); });
  const Sound long_one{1000, std::vector<float>(1'000'000)};
  test::expect_error("become 768000000 at 768000", [&] { (void)resample(long_one, 768'000); });
}

TEST(PowerSpectrum, IsThatOfItsFormula) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (const std::int64_t n : {1, 2, 3, 4, 7, 12, 30, 101, 400}) {
    std::vector<double> x(static_cast<std::size_t>(n));
    for (double& value : x) value = normal(random);
    std::vector<double> power(static_cast<std::size_t>(n / 2 + 1));
    PowerSpectrum(n).compute(x, power);
    for (std::size_t k = 0; k < power.size(); ++k) {
      std::complex<double> sum;
      for (std::size_t i = 0; i < x.size(); ++i)
        sum += x[i] * std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(i * k) / static_cast<double>(n));
      ASSERT_NEAR(power[k], std::norm(sum), 1e-9 * static_cast<double>(n)) << n << " " << k;
    }
  }
}

TEST(AudioProcessor, GivesWhatTransformersGives) {
  const fs::path folder = fs::path(NIBBLE_TEST_DATA) / "audio";
  const SafetensorsFile golden(folder / "audio.golden.safetensors");
  int compared = 0;
  for (const char* extractor : {"wav2vec2", "plain", "whisper", "whisper_odd"}) {
    const AudioProcessor processor = AudioProcessor::read(folder / extractor);
    EXPECT_EQ(processor.rate(), 16000);
    for (const auto& [name, tensor] : golden.header().tensors) {
      if (!name.starts_with(std::string(extractor) + "/")) continue;
      SCOPED_TRACE(name);
      const std::string sound = name.substr(name.find('/') + 1);
      const std::vector<float> want = to_float(*golden.find(name));
      const AudioFeatures got = processor.process({16000, to_float(*golden.find("sound/" + sound))});
      ASSERT_EQ((Shape{got.channels, got.steps}), golden.find(name)->shape);
      EXPECT_EQ(got.cut, sound == "longer" && std::string_view(extractor).starts_with("whisper"));
      // Spectrograms are made in single precision there: a small power beside a large one is off by some 1e-4.
      for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got.values[i], want[i], 1e-4) << i;
      ++compared;
    }
  }
  EXPECT_EQ(compared, 16);
}

AudioProcessor processor_of(const std::string& config) {
  const nlohmann::json json = parse_json(config, "preprocessor_config.json");
  return AudioProcessor(JsonView(json, "preprocessor_config.json"));
}

TEST(AudioProcessor, ResamplesToTheRateOfTheModel) {
  const AudioProcessor processor = processor_of(R"({"do_normalize": false, "sampling_rate": 8000})");
  const AudioFeatures got = processor.process(tone(44100, 500, 44100));
  EXPECT_EQ(got.steps, 8000);
  EXPECT_LT(difference({8000, got.values}, tone(8000, 500, 8000), 200), 2e-4);
}

TEST(AudioProcessor, RefusesWithASentence) {
  const auto refuse = [](std::string_view part, const std::string& config) {
    test::expect_error(part, [&] { (void)processor_of(config); });
  };
  refuse("Wav2Vec2FeatureExtractor or WhisperFeatureExtractor", R"({"feature_extractor_type": "ASTFeatureExtractor"})");
  refuse("sampling_rate", R"({"sampling_rate": 10})");
  refuse("padding_value", R"({"padding_value": 1.0})");
  refuse("feature_size should be 1", R"({"feature_size": 80})");
  const std::string whisper = R"({"feature_extractor_type": "WhisperFeatureExtractor", )";
  refuse("dither", whisper + R"("dither": 0.1})");
  refuse("n_fft should be at most 4096", whisper + R"("n_fft": 100000})");
  refuse("hop_length", whisper + R"("hop_length": 0})");
  refuse("chunk_length", whisper + R"("chunk_length": 1000000})");
  refuse("chunk_length", whisper + R"("chunk_length": 16000, "hop_length": 1, "feature_size": 1024})");
  test::expect_error("preprocessor_config.json", [] { (void)AudioProcessor::read("nowhere"); });
}

}  // namespace
}  // namespace nibble
