#include "cli/encode_images.h"

#include "cli/image_batch.h"
#include "core/error.h"
#include "core/progress.h"
#include "engine/image_text.h"
#include "engine/text_encoder.h"
#include "inputs/image_processor.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

namespace nibble {
namespace {

Pooling choose_pooling(const std::string& name, const Program& program) {
  const bool pooler = program.head == HeadKind::pooler || program.head == HeadKind::projection;
  if (name == "auto") return pooler ? Pooling::pooler : Pooling::cls;
  const Pooling pooling = pooling_named(name);
  if (pooling == Pooling::pooler && !pooler)
    fail_usage("--pooling pooler: this model has {}; use cls or mean", name_of(program.head));
  return pooling;
}

}  // namespace

int encode_images(const EncoderModelOptions& model, const ImageEmbeddingOptions& options,
                  const std::vector<std::string>& files, const std::string& format, const std::string& output) {
  check_embedding_output(format, output);
  const std::shared_ptr<const Checkpoint> checkpoint = model.open();
  EncoderOptions engine_options = model.text_model_options().engine;
  engine_options.part = part_of(*checkpoint, "vision");
  EncoderEngine engine(checkpoint, engine_options);
  const Program& program = engine.program();
  require_input(*checkpoint, program, "images");
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
    const ImageBatch batch =
        read_image_batch(std::span(files).subspan(first, count), processor, program.image->channels, pixels);
    engine.forward(batch, {.hidden = !by_head, .head = by_head}, result);
    embeddings.resize(count * dimension);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<float> to = std::span(embeddings).subspan(i * dimension, dimension);
      const auto rows = [&](const std::vector<float>& values) {
        return std::span<const float>(values).subspan(i * values.size() / count, values.size() / count);
      };
      pool(pooling, by_head ? TextRows{{}, rows(result.head)} : TextRows{rows(result.hidden), {}}, to);
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
