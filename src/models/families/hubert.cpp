// HuBERT: wav2vec 2.0 trained otherwise; its projection may go without a norm.
#include "models/family.h"
#include "models/wav2vec2_like.h"

namespace nibble {
namespace {

Program hubert(const JsonView& config) {
  if (config.boolean("conv_pos_batch_norm", false))
    config.refuse("conv_pos_batch_norm", "false: a batch norm before the positional convolution is not read");
  EncoderSpec s = read_wav2vec2_like(config, "hubert.");
  if (!config.boolean("feat_proj_layer_norm", true)) s.audio->projection_norm.clear();
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("hubert", hubert);

}  // namespace
}  // namespace nibble
