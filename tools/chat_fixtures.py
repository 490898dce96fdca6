"""The chat part of make_tokenizer_fixtures.py: templates in the style of well-known models, and snippets of the
template language, rendered by transformers."""

import itertools
import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

TEMPLATES = {
    # The common form: role and text of each turn between two marks.
    "chatml": """{% for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    # A system turn of its own where the conversation begins without one.
    "smollm2": """{%- for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' ~ m.role ~ '
' ~ m.content ~ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    # Llama 2: the system text inside the first user turn; turns must alternate.
    "llama2": """{% if messages[0]['role'] == 'system' %}
  {%- set turns = messages[1:] -%}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{% else %}
  {%- set turns = messages -%}
  {%- set system = '' -%}
{% endif %}
{%- for m in turns -%}
  {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('Roles must alternate user/assistant, found ' ~ m['role'] ~ ' at turn ' ~ loop.index) }}
  {%- endif -%}
  {%- set text = (system + m['content']) if loop.first else m['content'] -%}
  {%- if m['role'] == 'user' -%}
    {{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
  {%- elif m['role'] == 'assistant' -%}
    {{ ' ' + text.strip() + ' ' + eos_token }}
  {%- endif -%}
{%- endfor -%}
""",
    # Llama 3: headers around roles, blanks trimmed, a date if one is given, a begin mark before the first turn only.
    "llama3": """{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- macro header(role) -%}
{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}
{%- endmacro %}
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = "" %}
    {%- set rest = messages %}
{%- endif %}
{{- header('system') }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system }}
{{- "<|eot_id|>" }}
{%- for m in rest %}
    {{- header(m.role) + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
""",
    # Mistral: the system text before the last user turn; answers close with the end mark.
    "mistral": """{%- set ns = namespace(system=none, last=-1) %}
{%- for m in messages %}
    {%- if m.role == "system" %}{% set ns.system = m.content %}{% endif %}
    {%- if m.role == "user" %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in messages if m.role not in ["system"] %}
    {%- if m.role == "user" %}
        {%- if loop.last and ns.system is not none %}
            {{- "[INST] " + ns.system + "\\n\\n" + m.content + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + m.content + "[/INST]" }}
        {%- endif %}
    {%- elif m.role == "assistant" %}
        {{- " " + m.content|trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user, system and assistant roles are known, not " + m.role) }}
    {%- endif %}
{%- endfor %}
""",
    # Qwen 2.5: tools described in the system turn, as JSON; tool turns gathered under one user mark.
    "qwen2_5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- set plain = m.role == "assistant" and not m.tool_calls %}
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) or plain %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {{- '<|im_start|>' + m.role }}
        {%- for call in m.tool_calls %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": '
                ~ (call.arguments | tojson) ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""",
}

USER, ASSISTANT, SYSTEM = ("user", "assistant", "system")
CONVERSATIONS = [
    [(USER, "Hello!")],
    [(SYSTEM, "  Be brief.  "), (USER, " What is 2 + 2? \n")],
    [(USER, "Hi"), (ASSISTANT, " Hello, how can I help?\n"), (USER,
        "Größe of a 🧑🏿‍🚀? 'quoted' \"twice\" {{ not a tag }}")],
    [(SYSTEM, "You know\nall."), (USER, "One"), (ASSISTANT, "Two"), (USER, "Three"), (ASSISTANT, "Four")],
    [(ASSISTANT, "I begin"), (USER, "")],
]
TOOL_CONVERSATION = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather",
        "arguments": {"city": "Köln", "days": 3, "exact": True, "x": None, "f": 1.50}}}]},
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": "wind"},
]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells \"it\".",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": []}}}

# Snippets of the language, and the variables that they see.
SNIPPETS = pathlib.Path(__file__).resolve().parent / "chat_snippets.json"


def attempt(render):
    """The text, or None where transformers' environment refuses."""
    try:
        return render()
    except Exception:  # any refusal: the message is ours to choose
        return None


def write(write_json):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    chats = []

    def chat(name, messages, **options):
        def render():
            return tokenizer.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False, **options)

        chats.append({"template": name, "messages": messages, "options": options, "text": attempt(render)})

    for name, turns, prompt in itertools.product(TEMPLATES, CONVERSATIONS, (True, False)):
        chat(name, [{"role": role, "content": content} for role, content in turns], add_generation_prompt=prompt)
    chat("llama3", [{"role": "user", "content": "Hi"}], add_generation_prompt=True, date_string="1 Jan 2030")
    chat("qwen2_5", [{"role": "user", "content": "Hi"}], add_generation_prompt=True, enable_thinking=False)
    chat("qwen2_5", TOOL_CONVERSATION, add_generation_prompt=True, tools=[TOOL])
    language = json.loads(SNIPPETS.read_text())
    compile_template = chat_template_utils._compile_jinja_template
    snippets = [{"template": text, "text": attempt(lambda: compile_template(text).render(**language["data"]))}
        for text in language["snippets"]]
    write_json("chat.json", {"templates": TEMPLATES, "chats": chats, "data": language["data"], "snippets": snippets})
