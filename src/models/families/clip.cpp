// CLIP: an encoder of text and one of images whose projections are compared, in one checkpoint.
#include "models/clip_like.h"
#include "models/family.h"

namespace nibble {
namespace {

JsonView part_of(const JsonView& config, std::string_view key) {
  const std::optional<JsonView> part = config.object(key);
  if (!part) config.refuse(key, "an object: the configuration of that encoder");
  return *part;
}

Program clip_texts(const JsonView& config) {
  EncoderSpec s = read_clip_text(part_of(config, "text_config"), config.positive("projection_dim", 512));
  s.prefix.clear();  // the projections stand beside the encoders, so names are always whole
  return build_encoder(s);
}

Program clip_images(const JsonView& config) {
  EncoderSpec s = read_clip_vision(part_of(config, "vision_config"), config.positive("projection_dim", 512));
  s.prefix.clear();
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("clip/text", clip_texts);
NIBBLE_REGISTER_FAMILY("clip/vision", clip_images);

}  // namespace
}  // namespace nibble
