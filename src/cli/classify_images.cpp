#include "cli/classify_images.h"

#include "cli/image_batch.h"
#include "cli/label_lines.h"
#include "engine/text_heads.h"
#include "inputs/image_processor.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <span>

namespace nibble {

int classify_images(const EncoderModelOptions& model, const std::vector<std::string>& files, std::size_t top_k,
                    bool as_json) {
  const std::shared_ptr<const Checkpoint> checkpoint = model.open();
  require_head(*checkpoint, {HeadKind::sequence_class}, "nibble classify --images");
  EncoderEngine engine(checkpoint, model.text_model_options().engine);
  const Program& program = engine.program();
  require_input(*checkpoint, program, "images");
  const ImageProcessor processor = ImageProcessor::read(checkpoint->folder());
  const Labels labels = read_labels(*checkpoint, program.head, engine.head_columns());
  const auto columns = static_cast<std::size_t>(engine.head_columns());
  std::vector<float> pixels;
  EncoderResult result;
  for (std::size_t first = 0; first < files.size(); first += model.batch_size) {
    const std::size_t count = std::min(model.batch_size, files.size() - first);
    const ImageBatch batch =
        read_image_batch(std::span(files).subspan(first, count), processor, program.image->channels, pixels);
    engine.forward(batch, {.hidden = false, .head = true}, result);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string& file = files[first + i];
      print_out(label_lines({{"image", file}}, file, std::span(result.head).subspan(i * columns, columns), labels,
                            top_k, as_json));
    }
  }
  return 0;
}

}  // namespace nibble
