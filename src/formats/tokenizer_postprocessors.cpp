#include "core/error.h"
#include "formats/tokenizer_parts.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>

namespace nibble {
namespace {

/// Parts of one template at most: real ones have up to five.
constexpr std::size_t kMaxFrameParts = 64;

std::int32_t read_type_id(const JsonView& item) {
  const std::int64_t type_id = item.integer("type_id", 0);
  // Models have one or two segments; four leave room for those (XLNet) that count special tokens apart.
  if (type_id < 0 || type_id > 3) item.refuse("type_id", "an integer from 0 to 3");
  return static_cast<std::int32_t>(type_id);
}

/// TemplateProcessing: "single" and "pair" list texts (A, B) and special tokens, by names that "special_tokens"
/// resolves to ids.
std::vector<FramePart> template_parts(const JsonView& part, const char* key, int texts) {
  const auto specials = part.object("special_tokens");
  std::vector<FramePart> out;
  std::array<bool, 2> seen{};
  const auto refuse = [&] {
    part.refuse(key, texts == 1 ? "a template with the text A once and no other"
                                : "a template with each of the texts A and B once and no other");
  };
  for (const JsonView& item : part.objects(key, kMaxFrameParts)) {
    if (const auto text = item.object("Sequence")) {
      const std::string name = text->text("id");
      const int index = name == "A" ? 0 : name == "B" && texts == 2 ? 1 : -1;
      if (index < 0 || seen[static_cast<std::size_t>(index)]) refuse();
      seen[static_cast<std::size_t>(index)] = true;
      out.push_back({index, -1, read_type_id(*text)});
      continue;
    }
    const auto special = item.object("SpecialToken");
    const std::string name = special ? special->text("id") : std::string();
    const auto token = specials ? specials->object(name) : std::nullopt;
    if (!token) part.refuse(key, "a template of texts and of tokens that special_tokens has");
    const std::vector<std::int64_t> ids = token->integers("ids");
    if (ids.size() > kMaxFrameParts) token->refuse("ids", "a short list of token ids");
    for (const std::int64_t id : ids) out.push_back({-1, to_token_id(id, token->place()), read_type_id(*special)});
  }
  if (!seen[0] || (texts == 2 && !seen[1])) refuse();
  return out;
}

SpecialFrame template_frame(const JsonView& part) {
  SpecialFrame frame;
  frame.single = template_parts(part, "single", 1);
  if (part.has("pair")) frame.pair = template_parts(part, "pair", 2);
  return frame;
}

/// The id of "cls" or "sep" of BertProcessing and RobertaProcessing: [token, id].
std::int32_t role_id(const JsonView& part, const char* key) {
  const auto pair = part.value().find(key);
  if (pair == part.value().end() || !pair->is_array() || pair->size() != 2) part.refuse(key, "[token, id]");
  return to_token_id((*pair)[1], part.place());
}

/// [CLS] A [SEP], and B [SEP] after it in a segment of its own.
SpecialFrame bert_frame(std::int32_t cls, std::int32_t sep) {
  SpecialFrame frame;
  frame.single = {{-1, cls, 0}, {0, -1, 0}, {-1, sep, 0}};
  frame.pair = frame.single;
  frame.pair.insert(frame.pair.end(), {{1, -1, 1}, {-1, sep, 1}});
  return frame;
}

/// <s> A </s>, and </s> B </s> after it; RoBERTa has one segment.
SpecialFrame roberta_frame(std::int32_t cls, std::int32_t sep) {
  SpecialFrame frame;
  frame.single = {{-1, cls, 0}, {0, -1, 0}, {-1, sep, 0}};
  frame.pair = frame.single;
  frame.pair.insert(frame.pair.end(), {{-1, sep, 0}, {1, -1, 0}, {-1, sep, 0}});
  return frame;
}

/// What changes ids or segments; ByteLevel works on offsets into the text, which are not kept here.
bool makes_frame(const std::string& type) { return type != "ByteLevel"; }

}  // namespace

std::size_t SpecialFrame::special_count(const std::vector<FramePart>& parts) {
  return static_cast<std::size_t>(
      std::count_if(parts.begin(), parts.end(), [](const FramePart& part) { return part.text < 0; }));
}

SpecialFrame make_special_frame(const JsonView& part) {
  const std::string type = part.text("type");
  if (type == "TemplateProcessing") return template_frame(part);
  if (type == "BertProcessing") return bert_frame(role_id(part, "cls"), role_id(part, "sep"));
  if (type == "RobertaProcessing") return roberta_frame(role_id(part, "cls"), role_id(part, "sep"));
  if (!makes_frame(type)) return {};
  if (type == "Sequence") {
    SpecialFrame frame;
    bool found = false;
    for (const JsonView& step : part.objects("processors", kMaxSequence)) {
      if (!makes_frame(step.text("type"))) continue;
      if (found) fail("{}: two of its steps add special tokens; expected one, as real tokenizers have", part.place());
      found = true;
      frame = make_special_frame(step);
    }
    return frame;
  }
  fail(
      "{}: the post-processor \"{}\" is not supported (supported: TemplateProcessing, BertProcessing, "
      "RobertaProcessing, ByteLevel, Sequence)",
      part.place(), type);
}

}  // namespace nibble
