// CLIP's encoder of images by itself: patches behind a class token, with a norm before the blocks.
#include "models/clip_like.h"
#include "models/family.h"

namespace nibble {
namespace {

Program clip_vision(const JsonView& config) { return build_encoder(read_clip_vision(config, clip_projection(config))); }

NIBBLE_REGISTER_FAMILY("clip_vision_model", clip_vision);

}  // namespace
}  // namespace nibble
