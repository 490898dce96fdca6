#include "core/error.h"
#include "formats/tokenizer_parts.h"

#include <nlohmann/json.hpp>

namespace nibble {
namespace {

/// Ids that one part may add, and that a whole file may: real ones add one or two.
constexpr std::size_t kMaxAdded = 64;

/// TemplateProcessing: "single" lists special tokens, by names that "special_tokens" resolves to ids, around the text
/// A.
SpecialFrame template_frame(const JsonView& part) {
  const auto specials = part.object("special_tokens");
  SpecialFrame frame;
  bool seen_text = false;
  for (const JsonView& item : part.objects("single", kMaxAdded)) {
    if (const auto text = item.object("Sequence")) {
      if (seen_text || text->text("id") != "A") part.refuse("single", "a template with the text A once and no other");
      seen_text = true;
      continue;
    }
    const auto special = item.object("SpecialToken");
    const std::string name = special ? special->text("id") : std::string();
    const auto token = specials ? specials->object(name) : std::nullopt;
    if (!token) part.refuse("single", "a template of texts and of tokens that special_tokens has");
    const std::vector<std::int64_t> ids = token->integers("ids");
    if (ids.size() > kMaxAdded) token->refuse("ids", "a short list of token ids");
    auto& side = seen_text ? frame.after : frame.before;
    for (const std::int64_t id : ids) side.push_back(to_token_id(id, token->place()));
  }
  if (!seen_text) part.refuse("single", "a template with the text A");
  return frame;
}

/// BertProcessing and RobertaProcessing: "cls" before, "sep" after, each [token, id].
SpecialFrame cls_sep_frame(const JsonView& part) {
  const auto id = [&](const char* key) {
    const auto pair = part.value().find(key);
    if (pair == part.value().end() || !pair->is_array() || pair->size() != 2) part.refuse(key, "[token, id]");
    return to_token_id((*pair)[1], part.place());
  };
  return {{id("cls")}, {id("sep")}};
}

}  // namespace

SpecialFrame make_special_frame(const JsonView& part) {
  const std::string type = part.text("type");
  if (type == "TemplateProcessing") return template_frame(part);
  if (type == "BertProcessing" || type == "RobertaProcessing") return cls_sep_frame(part);
  // Its work is on offsets into the text, which are not kept here.
  if (type == "ByteLevel") return {};
  if (type == "Sequence") {
    SpecialFrame frame;
    for (const JsonView& step : part.objects("processors", kMaxSequence)) {
      const SpecialFrame outer = make_special_frame(step);
      frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
      frame.after.insert(frame.after.end(), outer.after.begin(), outer.after.end());
      if (frame.before.size() + frame.after.size() > kMaxAdded * kMaxAdded) {
        fail("{}: it adds more than {} special tokens", part.place(), kMaxAdded * kMaxAdded);
      }
    }
    return frame;
  }
  fail(
      "{}: the post-processor \"{}\" is not supported (supported: TemplateProcessing, BertProcessing, "
      "RobertaProcessing, ByteLevel, Sequence)",
      part.place(), type);
}

}  // namespace nibble
