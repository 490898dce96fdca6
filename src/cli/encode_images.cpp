#include "cli/encode_images.h"

#include "core/error.h"
#include "core/progress.h"
#include "engine/text_encoder.h"
#include "inputs/image_processor.h"
#include "models/family.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace nibble {
namespace {

// The model of images of a checkpoint that holds one of texts, too.
std::string image_part(const Checkpoint& checkpoint) {
  const std::vector<std::string> known = known_families();
  const std::string part = checkpoint.config().value("model_type", std::string()) + "/vision";
  return std::find(known.begin(), known.end(), part) != known.end() ? "vision" : "";
}

Pooling choose_pooling(const std::string& name, const Program& program) {
  const bool pooler = program.head == HeadKind::pooler || program.head == HeadKind::projection;
  if (name == "auto") return pooler ? Pooling::pooler : Pooling::cls;
  const Pooling pooling = pooling_named(name);
  if (pooling == Pooling::pooler && !pooler)
    fail_usage("--pooling pooler: this model has {}; use cls or mean", name_of(program.head));
  return pooling;
}

// One image's rows of hidden states, [rows, out.size()], to its embedding.
void pool(std::span<const float> hidden, Pooling pooling, std::span<float> out) {
  const std::size_t rows = pooling == Pooling::cls ? 1 : hidden.size() / out.size();
  std::fill(out.begin(), out.end(), 0.0F);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += hidden[row * out.size() + i] / static_cast<float>(rows);
  }
}

void to_unit_length(std::span<float> values) {
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * static_cast<double>(value);
  const double length = std::sqrt(squares);
  if (length == 0) return;
  for (float& value : values) value = static_cast<float>(static_cast<double>(value) / length);
}

}  // namespace

int encode_images(const EncoderModelOptions& model, const ImageEmbeddingOptions& options,
                  const std::vector<std::string>& files, const std::string& format, const std::string& output) {
  check_embedding_output(format, output);
  const std::shared_ptr<const Checkpoint> checkpoint = model.open();
  EncoderOptions engine_options = model.text_model_options().engine;
  engine_options.part = image_part(*checkpoint);
  EncoderEngine engine(checkpoint, engine_options);
  const Program& program = engine.program();
  if (!program.image) {
    fail("{} is a {} model, which takes text: leave out --images", checkpoint->folder().string(), program.architecture);
  }
  const Pooling pooling = choose_pooling(options.pooling, program);
  const bool by_head = pooling == Pooling::pooler;
  const ImageProcessor processor = ImageProcessor::read(checkpoint->folder());
  const auto dimension = static_cast<std::size_t>(by_head ? engine.head_columns() : program.hidden);
  const bool normalize = options.normalize.value_or(program.head == HeadKind::projection);

  EmbeddingWriter writer(format, output, dimension);
  Progress progress("encode", static_cast<std::int64_t>(files.size()));
  std::vector<float> pixels;
  std::vector<float> embeddings;
  EncoderResult result;
  for (std::size_t first = 0; first < files.size(); first += model.batch_size) {
    const std::size_t count = std::min(model.batch_size, files.size() - first);
    pixels.clear();
    ImageBatch batch{static_cast<std::int64_t>(count), program.image->channels, 0, 0, {}};
    for (std::size_t i = 0; i < count; ++i) {
      const Pixels image = processor.process(read_image(files[first + i]));
      if (i > 0 && (image.height != batch.height || image.width != batch.width)) {
        fail("{} becomes {} x {} pixels, and the images before it {} x {}: use --batch-size 1", files[first + i],
             image.width, image.height, batch.width, batch.height);
      }
      batch.height = image.height;
      batch.width = image.width;
      pixels.insert(pixels.end(), image.values.begin(), image.values.end());
    }
    batch.pixels = pixels;
    engine.forward(batch, {.hidden = !by_head, .head = by_head}, result);
    embeddings.resize(count * dimension);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<float> to = std::span(embeddings).subspan(i * dimension, dimension);
      if (by_head) {
        std::copy_n(result.head.begin() + static_cast<std::ptrdiff_t>(i * dimension), dimension, to.begin());
      } else {
        const std::size_t values = result.hidden.size() / count;
        pool(std::span(result.hidden).subspan(i * values, values), pooling, to);
      }
      if (normalize) to_unit_length(to);
    }
    writer.add(embeddings);
    progress.update(static_cast<std::int64_t>(first + count));
  }
  writer.finish();
  progress.finish(fmt::format("{} images", writer.count()));
  return 0;
}

}  // namespace nibble
