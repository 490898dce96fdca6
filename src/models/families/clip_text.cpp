// CLIP's encoder of text by itself: pre-norm blocks under a causal mask; a text is the row of its last token.
#include "models/clip_like.h"
#include "models/family.h"

namespace nibble {
namespace {

Program clip_text(const JsonView& config) { return build_encoder(read_clip_text(config, clip_projection(config))); }

NIBBLE_REGISTER_FAMILY("clip_text_model", clip_text);

}  // namespace
}  // namespace nibble
