// Images and texts as vectors of one space (CLIP): two encoders of one checkpoint, and how well each pair fits.
#pragma once

#include "engine/encoder.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// `part` where the checkpoint holds several models and one of them has this name ("text", "vision"); empty where it is
/// one model.
std::string part_of(const Checkpoint& checkpoint, std::string_view part);

class ImageTextEngine {
 public:
  /// Opens and packs both encoders; `part` and `head` of the options are set here. Error for a checkpoint that is not
  /// of this kind.
  explicit ImageTextEngine(const std::shared_ptr<const Checkpoint>& checkpoint, const EncoderOptions& options = {});

  EncoderEngine& text() { return text_; }
  EncoderEngine& vision() { return vision_; }
  /// Columns of both kinds of vectors.
  std::int64_t columns() const { return text_.head_columns(); }

  /// [sequences, columns()], each of length 1. Errors as EncoderEngine::forward().
  std::vector<float> text_embeds(const EncoderBatch& batch);
  /// [images, columns()], each of length 1. Errors as EncoderEngine::forward().
  std::vector<float> image_embeds(const ImageBatch& batch);

  /// [images, texts] scaled cosines of vectors as the two functions above give them. Softmax over an image's row says
  /// which text fits it best. Error where a list is not made of rows of columns() values.
  std::vector<float> logits_per_image(std::span<const float> images, std::span<const float> texts) const;

 private:
  EncoderEngine text_, vision_;
  float scale_ = 1;
};

}  // namespace nibble
