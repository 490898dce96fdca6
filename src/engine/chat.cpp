#include "engine/chat.h"

#include "core/error.h"

namespace nibble {

std::vector<std::int32_t> chat_prompt(const std::filesystem::path& folder, const Tokenizer& tokenizer,
                                      const std::vector<ChatMessage>& messages) {
  const std::optional<std::string> text = load_chat_template(folder);
  if (!text) {
    fail(
        "{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): this model "
        "completes text, "
        "leave out --chat",
        folder.string());
  }
  ChatOptions options;
  if (tokenizer.special().bos) options.bos_token = tokenizer.token(*tokenizer.special().bos);
  if (tokenizer.special().eos) options.eos_token = tokenizer.token(*tokenizer.special().eos);
  // The template writes the special tokens out, so the tokenizer adds none.
  return tokenizer.encode(render_chat(*text, messages, options), false);
}

}  // namespace nibble
