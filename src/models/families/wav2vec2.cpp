// wav2vec 2.0: convolutions over samples of sound, then blocks whose positions come from a convolution, too.
#include "models/family.h"
#include "models/wav2vec2_like.h"

namespace nibble {
namespace {

Program wav2vec2(const JsonView& config) { return build_encoder(read_wav2vec2_like(config, "wav2vec2.")); }

NIBBLE_REGISTER_FAMILY("wav2vec2", wav2vec2);

}  // namespace
}  // namespace nibble
