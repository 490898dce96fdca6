#include "formats/chat_template.h"

#include "core/error.h"
#include "core/file.h"
#include "formats/chat_template_render.h"
#include "formats/json.h"
#include "formats/unicode.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace nibble {
namespace {

namespace fs = std::filesystem;
using chat::Value;
using Variables = std::vector<std::pair<std::string, Value>>;

/// What a template may do: real ones take some hundred steps a message and copy each text a few times. The constant is
/// about a second of work.
constexpr std::uint64_t kBudget = 16'000'000;
constexpr std::uint64_t kBudgetPerByte = 64;

std::string render_with(std::string_view template_text, Variables variables, std::size_t input_bytes,
                        std::optional<std::time_t> now) {
  const chat::Template parsed = chat::parse_template(template_text);
  return chat::render(parsed, std::move(variables), chat::Budget(kBudget + kBudgetPerByte * input_bytes),
                      now.value_or(std::time(nullptr)));
}

Variables to_variables(std::string_view json) {
  Variables out;
  if (json.empty()) return out;
  const nlohmann::ordered_json parsed =
      parse_ordered_json(json, "the variables of the chat template", chat::kMaxValueDepth);
  if (!parsed.is_object())
    fail("the variables of the chat template should be a JSON object, found {}", parsed.type_name());
  for (const auto& [name, value] : parsed.items()) out.emplace_back(name, chat::from_json(value));
  return out;
}

}  // namespace

std::optional<std::string> load_chat_template(const fs::path& folder, std::string_view name) {
  if (name.empty() || name.find('/') != std::string_view::npos || name.starts_with('.')) {
    fail_usage("\"{}\" is no name of a chat template", name);
  }
  std::error_code ignored;
  const fs::path file = name == "default" ? folder / "chat_template.jinja"
                                          : folder / "additional_chat_templates" / (std::string(name) + ".jinja");
  if (fs::exists(file, ignored)) return read_text_file(file, chat::kMaxTemplateBytes);
  const fs::path config_file = folder / "tokenizer_config.json";
  if (!fs::exists(config_file, ignored)) return std::nullopt;
  const nlohmann::json json = read_json_file(config_file);
  const JsonView config(json, config_file.string());
  if (!config.has("chat_template")) return std::nullopt;
  if (!config.value().at("chat_template").is_array()) {
    return name == "default" ? std::optional(config.text("chat_template")) : std::nullopt;
  }
  // Known folders have two or three: default, tool_use, rag.
  constexpr std::size_t kMaxTemplates = 64;
  for (const JsonView& item : config.objects("chat_template", kMaxTemplates)) {
    if (item.text("name") == name) return item.text("template");
  }
  return std::nullopt;
}

std::string render_chat(std::string_view template_text, const std::vector<ChatMessage>& messages,
                        const ChatOptions& options) {
  std::size_t bytes = template_text.size() + options.variables_json.size();
  std::vector<Value> list;
  list.reserve(messages.size());
  for (const ChatMessage& message : messages) {
    bytes += message.role.size() + message.content.size() + 64;
    list.push_back(Value::dict({{"role", to_valid_utf8(message.role)}, {"content", to_valid_utf8(message.content)}}));
  }
  Variables variables = to_variables(options.variables_json);
  const auto set = [&](std::string_view name, Value value) {
    std::erase_if(variables, [&](const auto& item) { return item.first == name; });
    variables.emplace_back(name, std::move(value));
  };
  set("messages", Value::list(std::move(list)));
  set("add_generation_prompt", options.add_generation_prompt);
  if (options.bos_token) set("bos_token", to_valid_utf8(*options.bos_token));
  if (options.eos_token) set("eos_token", to_valid_utf8(*options.eos_token));
  // transformers defines these two in any case.
  for (const std::string_view name : {"tools", "documents"}) {
    const bool given =
        std::any_of(variables.begin(), variables.end(), [&](const auto& item) { return item.first == name; });
    if (!given) set(name, chat::None{});
  }
  return render_with(template_text, std::move(variables), bytes, options.now);
}

std::string render_template(std::string_view template_text, std::string_view variables_json,
                            std::optional<std::time_t> now) {
  return render_with(template_text, to_variables(variables_json), template_text.size() + variables_json.size(), now);
}

}  // namespace nibble
