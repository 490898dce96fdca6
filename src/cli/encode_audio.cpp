#include "cli/encode_audio.h"

#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "engine/text_encoder.h"
#include "inputs/audio_processor.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

namespace nibble {
namespace {

// Values of a batch's inputs, its padding included (256 MB): recordings differ in length more than texts do.
constexpr std::int64_t kMostValues = std::int64_t{64} << 20;

Pooling choose_pooling(const std::string& name) {
  if (name == "auto") return Pooling::mean;
  const Pooling pooling = pooling_named(name);
  if (pooling == Pooling::pooler) fail_usage("--pooling pooler: models of audio have none; use mean or cls");
  return pooling;
}

class AudioEncoder {
 public:
  AudioEncoder(EncoderEngine& engine, const AudioProcessor& processor, Pooling pooling, bool normalize)
      : engine_(engine), processor_(processor), pooling_(pooling), normalize_(normalize) {}

  AudioFeatures read(const std::string& file) const {
    AudioFeatures features = processor_.process(read_wav(file));
    const AudioShape& shape = *engine_.program().audio;
    const std::int64_t frames = engine_.frames(features.steps);
    if (frames < 1) {
      fail("{}: {} samples of {} a second are too short for this model; expected at least {}", file, features.steps,
           processor_.rate(), shape.least_steps());
    }
    if (frames > engine_.max_length()) {
      fail("{}: {} samples of {} a second are too long for this model, {} frames; expected at most {}: split the file",
           file, features.steps, processor_.rate(), frames, engine_.max_length());
    }
    return features;
  }

  // An embedding of each, [recordings, hidden]. Those of about one length share a batch; where padding counts, those of
  // the same length.
  std::vector<float> encode(const std::vector<AudioFeatures>& recordings) {
    std::vector<std::size_t> order(recordings.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return recordings[a].steps > recordings[b].steps; });
    std::vector<float> out(recordings.size() * static_cast<std::size_t>(engine_.program().hidden));
    for (std::size_t first = 0; first < order.size();) {
      const AudioFeatures& longest = recordings[order[first]];
      const auto values = static_cast<std::int64_t>(longest.values.size());
      std::size_t last = first + 1;
      while (last < order.size() && static_cast<std::int64_t>(last - first + 1) * values <= kMostValues &&
             (recordings[order[last]].steps == longest.steps || !engine_.program().audio->padding_counts)) {
        ++last;
      }
      run(recordings, std::span(order).subspan(first, last - first), out);
      first = last;
    }
    return out;
  }

 private:
  // One batch, padded to the first of them.
  void run(const std::vector<AudioFeatures>& recordings, std::span<const std::size_t> batch, std::vector<float>& out) {
    const AudioFeatures& longest = recordings[batch.front()];
    values_.clear();
    lengths_.clear();
    for (const std::size_t i : batch) {
      const AudioFeatures& features = recordings[i];
      lengths_.push_back(static_cast<std::int32_t>(features.steps));
      for (std::int64_t channel = 0; channel < features.channels; ++channel) {
        const auto from = features.values.begin() + channel * features.steps;
        values_.insert(values_.end(), from, from + features.steps);
        values_.insert(values_.end(), static_cast<std::size_t>(longest.steps - features.steps), 0.0F);
      }
    }
    const auto count = static_cast<std::int64_t>(batch.size());
    engine_.forward(AudioBatch{count, longest.channels, longest.steps, values_, lengths_}, {}, result_);
    const auto width = static_cast<std::size_t>(engine_.program().hidden);
    const std::size_t each = result_.hidden.size() / batch.size();
    for (std::size_t r = 0; r < batch.size(); ++r) {
      const auto rows = static_cast<std::size_t>(engine_.frames(lengths_[r]));
      const std::span<float> to = std::span(out).subspan(batch[r] * width, width);
      pool(pooling_, TextRows{std::span<const float>(result_.hidden).subspan(r * each, rows * width), {}}, to);
      if (normalize_) to_unit_length(to);
    }
  }

  EncoderEngine& engine_;
  const AudioProcessor& processor_;
  Pooling pooling_;
  bool normalize_;
  std::vector<float> values_;
  std::vector<std::int32_t> lengths_;
  EncoderResult result_;
};

}  // namespace

int encode_audio(const EncoderModelOptions& model, const AudioEmbeddingOptions& options,
                 const std::vector<std::string>& files, const std::string& format, const std::string& output) {
  check_embedding_output(format, output);
  const Pooling pooling = choose_pooling(options.pooling);
  const std::shared_ptr<const Checkpoint> checkpoint = model.open();
  EncoderEngine engine(checkpoint, model.text_model_options().engine);
  const Program& program = engine.program();
  require_input(*checkpoint, program, "audio");
  const AudioProcessor processor = AudioProcessor::read(checkpoint->folder());
  AudioEncoder encoder(engine, processor, pooling, options.normalize.value_or(false));
  EmbeddingWriter writer(format, output, static_cast<std::size_t>(program.hidden));
  Progress progress("encode", static_cast<std::int64_t>(files.size()));
  std::size_t cut = 0;
  std::vector<AudioFeatures> recordings;
  for (std::size_t first = 0; first < files.size(); first += model.batch_size) {
    const std::size_t count = std::min(model.batch_size, files.size() - first);
    recordings.clear();
    recordings.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      recordings.push_back(encoder.read(files[first + i]));
      if (recordings.back().cut) ++cut;
    }
    writer.add(encoder.encode(recordings));
    progress.update(static_cast<std::int64_t>(first + count));
  }
  writer.finish();
  progress.finish(fmt::format("{} recordings", writer.count()));
  if (cut > 0) {
    log_warn(fmt::format("{} of {} recordings are longer than what the model looks at and were cut: split them", cut,
                         files.size()));
  }
  return 0;
}

}  // namespace nibble
