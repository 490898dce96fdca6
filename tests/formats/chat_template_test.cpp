// Chat templates against what transformers makes of them (tools/make_tokenizer_fixtures.py), and limits.
#include "formats/chat_template.h"

#include "core/error.h"
#include "core/file.h"
#include "formats/json.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace nibble {
namespace {

using nlohmann::ordered_json;
using test::expect_error;

const ordered_json& fixture() {
  static const std::filesystem::path path = std::filesystem::path(NIBBLE_TEST_DATA) / "tokenizers" / "chat.json";
  static const ordered_json json = parse_ordered_json(read_text_file(path, kJsonSizeLimit), path.string());
  return json;
}

TEST(ChatTemplate, RendersConversationsAsTransformersDoes) {
  ASSERT_GT(fixture().at("chats").size(), 50U);
  for (const ordered_json& chat : fixture().at("chats")) {
    const std::string text = fixture().at("templates").at(chat.at("template").get<std::string>()).get<std::string>();
    ordered_json variables = chat.at("options");
    variables["messages"] = chat.at("messages");
    variables["bos_token"] = "<s>";
    variables["eos_token"] = "</s>";
    if (!variables.contains("tools")) variables["tools"] = nullptr;
    if (chat.at("text").is_null()) {
      expect_error("the template refuses this conversation", [&] { render_template(text, variables.dump()); });
    } else {
      EXPECT_EQ(render_template(text, variables.dump()), chat.at("text").get<std::string>()) << chat;
    }
  }
}

TEST(ChatTemplate, RendersTheLanguageAsTransformersDoes) {
  const std::string data = fixture().at("data").dump();
  ASSERT_GT(fixture().at("snippets").size(), 300U);
  for (const ordered_json& snippet : fixture().at("snippets")) {
    const std::string text = snippet.at("template").get<std::string>();
    if (snippet.at("text").is_null()) {
      EXPECT_THROW(render_template(text, data), Error) << text;
      continue;
    }
    try {
      EXPECT_EQ(render_template(text, data), snippet.at("text").get<std::string>()) << text;
    } catch (const Error& error) {
      ADD_FAILURE() << text << " gives the error " << error.what();
    }
  }
}

TEST(ChatTemplate, LoopsOverATupleThatEndsWithAComma) {
  EXPECT_EQ(render_template("{% for x in 1, 2, %}{{ x }}{% endfor %}", "{}"), "12");
  EXPECT_EQ(render_template("{% for x in 1, 2 if x > 1 %}{{ x }}{% endfor %}", "{}"), "2");
}

TEST(ChatTemplate, GivesMessagesTokensAndVariablesToTheTemplate) {
  const std::string text =
      "{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}{{ eos_token is defined }}"
      "{{ add_generation_prompt }}{{ tools }}{{ mood }}";
  ChatOptions options;
  options.bos_token = "<s>";
  options.add_generation_prompt = false;
  options.variables_json = R"({"mood": "good"})";
  EXPECT_EQ(render_chat(text, {{"user", "a\xFF"}, {"assistant", "b"}}, options),
            "<s>[user:a\uFFFD][assistant:b]FalseFalseNonegood");
}

TEST(ChatTemplate, TellsTheTimeThatItIsGiven) {
  const std::time_t noon = 1'700'000'000;  // November 2023 in every zone
  EXPECT_EQ(render_template("{{ strftime_now('%b %Y') }}", "{}", noon), "Nov 2023");
  expect_error("strftime_now gives nothing", [&] { render_template("{{ strftime_now('%9999d') }}", "{}", noon); });
}

TEST(ChatTemplate, NamesTheLineThatFails) {
  expect_error("chat template, line 3: \"x\" is undefined", [] { render_template("a\n\n{{ x.y }}", "{}"); });
  expect_error("chat template, line 2: expected an expression", [] { render_template("a\n{{ }}", "{}"); });
  expect_error("chat template, line 2: a string has no end", [] { render_template("\n{{ 'abc }}", "{}"); });
  expect_error("a block has no end ({% endfor %})", [] { render_template("{% for x in y %}", "{}"); });
  expect_error("the statement \"include\" is not known here or not supported",
               [] { render_template("{% include 'x' %}", "{}"); });
  expect_error("the template refuses this conversation: no",
               [] { render_template("{{ raise_exception('no') }}", "{}"); });
}

TEST(ChatTemplate, EndsWhateverTheTemplateDoes) {
  const auto fails = [](std::string_view part, const std::string& text) {
    expect_error(part, [&] { render_template(text, "{}"); });
  };
  const std::string work = "more work than any real one";
  fails(work,
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% "
        "endfor %}");
  fails(work, "{{ 'x' * 1000000000000 }}");
  fails(work, "{{ range(1000000000000) }}");
  fails(work, "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}");
  fails(work,
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('', ns.x) %}{% endfor %}");
  fails(work,
        "{% set ns = namespace(x=[1]) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}");
  fails(work, "{{ 'x'|indent(99999999999) }}");
  fails("deeper than 64 levels",
        "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}{% endfor %}");
  fails("deeper than 500 levels", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
  std::string sum = "{{ 1";
  for (int i = 0; i < 100'000; ++i) sum += "+1";
  fails("deeper than 500 levels", sum + " }}");
  fails("nested deeper than 100 levels", "{{ " + std::string(100'000, '(') + "1" + std::string(100'000, ')') + " }}");
  fails("nested deeper than 100 levels", "{{ " + std::string(100'000, '-') + "1 }}");
  std::string ifs;
  for (int i = 0; i < 100'000; ++i) ifs += "{% if a %}";
  fails("nested deeper than 100 levels", ifs);
  std::string elifs = "{% if a %}";
  for (int i = 0; i < 50'000; ++i) elifs += "{% elif a %}";
  EXPECT_EQ(render_template(elifs + "{% else %}last{% endif %}", "{}"), "last");
  fails("more than the 1048576 allowed", std::string(2'000'000, 'x'));
  fails("does not fit in 64 bits", "{{ 9223372036854775807 + 1 }}");
  fails("does not fit in 64 bits", "{{ 10 ** 30 }}");
  fails("an integer of 64 bits", "{{ 99999999999999999999 }}");
}

TEST(ChatTemplate, KeepsNoCycleAlive) {
  // Leaks would show under AddressSanitizer.
  EXPECT_EQ(render_template("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns.me.me is defined }}", "{}"), "True");
  EXPECT_EQ(render_template(
                "{% set ns = namespace() %}{% for x in [1] %}{% set ns.l = loop %}{% endfor %}{{ ns.l.length }}", "{}"),
            "1");
}

TEST(ChatTemplate, IsFoundInAFolder) {
  const test::TempFolder folder;
  EXPECT_EQ(load_chat_template(folder.path()), std::nullopt);
  folder.write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(load_chat_template(folder.path()), std::nullopt);
  folder.write("tokenizer_config.json", R"({"chat_template": "plain"})");
  EXPECT_EQ(load_chat_template(folder.path()), "plain");
  EXPECT_EQ(load_chat_template(folder.path(), "tool_use"), std::nullopt);
  folder.write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]})");
  EXPECT_EQ(load_chat_template(folder.path()), "one");
  EXPECT_EQ(load_chat_template(folder.path(), "tool_use"), "two");
  folder.write("chat_template.jinja", "from the file");
  folder.write("additional_chat_templates/rag.jinja", "more");
  EXPECT_EQ(load_chat_template(folder.path()), "from the file");
  EXPECT_EQ(load_chat_template(folder.path(), "rag"), "more");
  expect_error("is no name of a chat template", [&] { load_chat_template(folder.path(), "../secret"); });
  folder.write("tokenizer_config.json", R"({"chat_template": 3})");
  std::filesystem::remove(folder.path() / "chat_template.jinja");
  expect_error("chat_template should be a string", [&] { load_chat_template(folder.path()); });
}

}  // namespace
}  // namespace nibble
