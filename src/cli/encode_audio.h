#pragma once

#include "cli/embedding_writer.h"
#include "cli/encoder_options.h"

#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// How the embedding of a recording is made.
struct AudioEmbeddingOptions {
  std::string pooling = "auto";   // auto: mean, of the frames that hold no padding; cls: the first frame's state
  std::optional<bool> normalize;  // to length 1; unset: no
};

/// Runs WAV files through a model of audio and writes an embedding each, in their order; warns of those that the model
/// does not look at to their end. Embeddings do not depend on how files share batches. Error naming the file that
/// cannot be read, or is too short or too long, and for a model that takes no audio.
int encode_audio(const EncoderModelOptions& model, const AudioEmbeddingOptions& options,
                 const std::vector<std::string>& files, const std::string& format, const std::string& output);

}  // namespace nibble
