// Whether a batch is one that an encoder takes.
#pragma once

#include "engine/encoder.h"
#include "models/program.h"

#include <string>

namespace nibble {

/// Error naming what is wrong: the sequence for ids outside of the vocabulary and lengths out of range. with_padding:
/// what stands behind a sequence's end goes through the model, too.
void check_batch(const EncoderBatch& batch, const Program& program, bool with_padding);
/// Error where sizes are not the model's; `folder` names the model.
void check_batch(const ImageBatch& batch, const Program& program, const std::string& folder);
void check_batch(const AudioBatch& batch, const Program& program, const std::string& folder);

}  // namespace nibble
