// Chat templates: how a conversation becomes the text that an instruction-tuned model was trained on. Hugging Face
// folders carry them as Jinja (https://jinja.palletsprojects.com/templates), rendered by transformers with trim_blocks
// and lstrip_blocks on and autoescape off. This is that subset of the language which such templates use, with limits,
// so that any template ends: with a text, or with an Error that names the line.
//
// Statements: for (with if, else, break, continue), if, set (also of a namespace's attribute, and as a block), macro,
// generation, raw, comments, and the white space marks - and +. Expressions: all operators, slices, calls, filters and
// tests of the language; docs of the functions: chat_template_builtins.h. Not here: import, include, inheritance,
// recursive loops, call blocks, format strings.
#pragma once

#include <ctime>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// One turn. Roles are the template's business: mostly "system", "user" and "assistant".
struct ChatMessage {
  std::string role;
  std::string content;
};

struct ChatOptions {
  /// End with what begins the model's turn.
  bool add_generation_prompt = true;
  /// Texts of the special tokens; undefined in the template where absent.
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  /// More variables for the template, as a JSON object: R"({"enable_thinking": false})".
  std::string variables_json;
  /// What strftime_now tells, in local time; the current time if absent.
  std::optional<std::time_t> now;
};

/// The template of a model folder: chat_template.jinja, or "chat_template" of tokenizer_config.json, which is a text or
/// a list of {name, template}. `name` picks from such a list, or additional_chat_templates/NAME.jinja. None if the
/// folder has no template of that name. Throws Error for files that cannot be read or are malformed.
std::optional<std::string> load_chat_template(const std::filesystem::path& folder, std::string_view name = "default");

/// The conversation as the model's prompt. Throws Error ("chat template, line 3: ...") where the template is malformed,
/// uses what is not supported, calls raise_exception, or exceeds a limit of nesting, work or memory.
std::string render_chat(std::string_view template_text, const std::vector<ChatMessage>& messages,
                        const ChatOptions& options);

/// Any template with the variables of a JSON object. Throws Error as render_chat does.
std::string render_template(std::string_view template_text, std::string_view variables_json,
                            std::optional<std::time_t> now = std::nullopt);

}  // namespace nibble
