#include "cli/classify_images.h"

#include "cli/image_batch.h"
#include "engine/text_heads.h"
#include "inputs/image_processor.h"

#include <fmt/format.h>
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
      const std::vector<float> scores = scores_of(std::span(result.head).subspan(i * columns, columns), labels.kind);
      nlohmann::ordered_json json = {{"image", file}, {"labels", nlohmann::ordered_json::array()}};
      std::string lines = file + "\n";
      for (const Candidate& best : best_of(scores, top_k)) {
        const std::string& label = labels.names[static_cast<std::size_t>(best.id)];
        json["labels"].push_back({{"label", label}, {"score", shortest(best.score)}});
        lines += fmt::format("  {:.4f}  {}\n", best.score, label);
      }
      print_out(as_json ? json_line(json) : lines);
    }
  }
  return 0;
}

}  // namespace nibble
