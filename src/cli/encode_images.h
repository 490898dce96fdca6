#pragma once

#include "cli/embedding_writer.h"
#include "cli/encoder_options.h"

#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// How the embedding of an image is made.
struct ImageEmbeddingOptions {
  std::string pooling = "auto";   // auto: pooler where the model has one (or a projection), else cls; mean, cls, pooler
  std::optional<bool> normalize;  // unset: to length 1 where the model is one of two that are compared (CLIP's)
};

/// Runs image files, JPEG or PNG, through a model of images and writes an embedding each, in their order. Error naming
/// the file that cannot be read, and for a model that takes no images.
int encode_images(const EncoderModelOptions& model, const ImageEmbeddingOptions& options,
                  const std::vector<std::string>& files, const std::string& format, const std::string& output);

}  // namespace nibble
