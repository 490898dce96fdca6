// DeiT: ViT with a second token, which was trained on what a teacher says. Its classifier looks at the first token; the
// one that was published with the teacher's takes the mean of one for each.
#include "models/bert_like.h"
#include "models/family.h"
#include "models/vit_like.h"

namespace nibble {
namespace {

Program deit(const JsonView& config) {
  EncoderSpec s = read_vit_like(config, "deit.", {"cls_token", "distillation_token"});
  const std::string architecture = architecture_of(config);
  if (architecture.ends_with("ForImageClassificationWithTeacher")) {
    s.head = linear_head(HeadKind::sequence_class, "cls_classifier", label_count(config));
    s.head.second = "distillation_classifier";
  } else if (architecture.ends_with("ForImageClassification")) {
    s.head = linear_head(HeadKind::sequence_class, "classifier", label_count(config));
  }
  return build_encoder(s);
}

NIBBLE_REGISTER_FAMILY("deit", deit);

}  // namespace
}  // namespace nibble
