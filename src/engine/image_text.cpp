#include "engine/image_text.h"

#include "core/error.h"
#include "models/family.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

EncoderOptions options_of(EncoderOptions options, const char* part) {
  options.part = part;
  options.head = true;
  return options;
}

// Reads the logarithm of what cosines are multiplied by.
float read_scale(const Checkpoint& checkpoint) {
  const std::vector<float> values = to_float(checkpoint.tensor("logit_scale"));
  if (values.size() != 1) {
    fail("{}: tensor logit_scale has {} values, expected one", checkpoint.file_of("logit_scale").string(),
         values.size());
  }
  return std::exp(values.front());
}

std::vector<float> normalised(std::vector<float> rows, std::int64_t columns) {
  const auto width = static_cast<std::size_t>(columns);
  for (std::size_t first = 0; first < rows.size(); first += width) {
    const std::span<float> row = std::span(rows).subspan(first, width);
    const double sum = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
    // A row of zeros has no direction, and stays as it is.
    const double factor = sum > 0 ? 1 / std::sqrt(sum) : 1;
    for (float& value : row) value = static_cast<float>(value * factor);
  }
  return rows;
}

}  // namespace

std::string part_of(const Checkpoint& checkpoint, std::string_view part) {
  const std::vector<std::string> known = known_families();
  const std::string name = checkpoint.config().value("model_type", std::string()) + "/" + std::string(part);
  return std::find(known.begin(), known.end(), name) != known.end() ? std::string(part) : std::string();
}

ImageTextEngine::ImageTextEngine(const std::shared_ptr<const Checkpoint>& checkpoint, const EncoderOptions& options)
    : text_(checkpoint, options_of(options, "text")),
      vision_(checkpoint, options_of(options, "vision")),
      scale_(read_scale(*checkpoint)) {}

std::vector<float> ImageTextEngine::text_embeds(const EncoderBatch& batch) {
  EncoderResult result;
  text_.forward(batch, {.hidden = false, .head = true}, result);
  return normalised(std::move(result.head), columns());
}

std::vector<float> ImageTextEngine::image_embeds(const ImageBatch& batch) {
  EncoderResult result;
  vision_.forward(batch, {.hidden = false, .head = true}, result);
  return normalised(std::move(result.head), columns());
}

std::vector<float> ImageTextEngine::logits_per_image(std::span<const float> images,
                                                     std::span<const float> texts) const {
  const auto width = static_cast<std::size_t>(columns());
  if (images.size() % width != 0 || texts.size() % width != 0) {
    fail("vectors of {} and {} values were given; expected rows of {}", images.size(), texts.size(), width);
  }
  std::vector<float> out;
  out.reserve(images.size() / width * (texts.size() / width));
  for (std::size_t i = 0; i < images.size(); i += width) {
    for (std::size_t t = 0; t < texts.size(); t += width) {
      const auto image = images.subspan(i, width);
      out.push_back(scale_ * std::inner_product(image.begin(), image.end(), texts.subspan(t, width).begin(), 0.0F));
    }
  }
  return out;
}

}  // namespace nibble
