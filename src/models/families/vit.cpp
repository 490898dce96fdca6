// ViT: patches behind a class token, whose row a classifier or a pooler looks at.
#include "models/bert_like.h"
#include "models/family.h"
#include "models/vit_like.h"

namespace nibble {
namespace {

Program vit(const JsonView& config) {
  EncoderSpec s = read_vit_like(config, "vit.", {"cls_token"});
  if (architecture_of(config).ends_with("ForImageClassification"))
    s.head = linear_head(HeadKind::sequence_class, "classifier", label_count(config));
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("vit", vit);

}  // namespace
}  // namespace nibble
