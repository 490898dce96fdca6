"""The chat part of make_tokenizer_fixtures.py: templates in the style of well-known models, and snippets of the template
language, rendered by transformers."""

import itertools

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
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) or (m.role == "assistant" and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {{- '<|im_start|>' + m.role }}
        {%- for call in m.tool_calls %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) ~ '}\\n</tool_call>' }}
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
    [(USER, "Hi"), (ASSISTANT, " Hello, how can I help?\n"), (USER, "Größe of a 🧑🏿‍🚀? 'quoted' \"twice\" {{ not a tag }}")],
    [(SYSTEM, "You know\nall."), (USER, "One"), (ASSISTANT, "Two"), (USER, "Three"), (ASSISTANT, "Four")],
    [(ASSISTANT, "I begin"), (USER, "")],
]
TOOL_CONVERSATION = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 3, "exact": True, "x": None, "f": 1.50}}}]},
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": "wind"},
]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells \"it\".", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": []}}}

# Snippets of the language, each rendered with DATA.
DATA = {
    "a": 7, "b": -3, "f": 2.5, "t": "Hello, World", "u": "Größe ßx ſ 👍🏽 é", "s": "  two  words \n", "yes": True, "no": False, "nothing": None,
    "xs": [3, 1, 2, 1], "words": ["pear", "Apple", "fig", "apple"], "empty": [], "d": {"k": "v", "n": 1, "deep": {"x": [1, {"y": "z"}]}},
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25}, {"name": "Cy", "age": 30, "tags": []}],
}
EXPRESSIONS = """
a + b, a - b, a * b, a / b, a // b, a % b, b % a, b // 2, a ** 2, 2 ** -1, -a, +b, -a ** 2, f * 2, f // 1, -f % 2, 7 / 7
a ~ b ~ t ~ nothing ~ yes, "x" * 3, [1] * 2, [1] + [2, 3], "a" "b", 1_000 + 1, 1e3, 1.5e-7, 1e16, 123456789.125
1 < 2 < 3, 1 < 3 < 2, 1 == 1.0, "1" == 1, yes == 1, not yes, not no and yes, nothing or "x", "" and 1, 1 if no else 2, 1 if no
"ell" in t, "k" in d, 9 in xs, 1 not in xs, not 1 in xs, "x" in missing, t[0], t[-1], t[1:4], t[::-1], t[:-3], t[99:], u[2], u[::-1], xs[1:], xs[-2:], xs[::2], xs[0], xs[9], xs[5:1]
d.k, d["k"], d.deep.x[1].y, d.missing, d["missing"], d.get("k"), d.get("q", 4), d.get("q"), people[0].name, people[1].tags, nothing.x, t.x
missing, missing is defined, d.missing is defined, a is defined, missing is undefined, missing == missing, missing|default("dd"), nothing|default("dd"), nothing|default("dd", true), ""|d("e", boolean=true)
nothing is none, a is none, t is string, a is string, d is mapping, xs is mapping, xs is iterable, a is iterable, t is sequence, a is number, yes is number, f is float, a is integer, yes is integer, yes is boolean, a is boolean, yes is true, a is true, no is false
a is odd, a is even, a is divisibleby 7, a is divisibleby(2), a is eq 7, a is equalto(8), a is ne 7, a is gt 3, a is lt(3), a is ge 7, a is in [1, 7], a is not in [1, 7], t is not none, "abc" is lower, "ABC" is upper, "aB" is lower, a is sameas 7, range is callable
t|upper, t|lower, t|length, t|title, "hELLO wORLD"|capitalize, s|trim, s|trim|length, "xxaxx"|trim("x"), t|replace("l", "L"), t|replace("l", "L", 1), t|first, t|last, t|reverse, u|upper, u|lower, u|title, u|length, t|list, "ab"|join("-")
xs|length, xs|count, xs|sum, xs|min, xs|max, xs|sort, xs|sort(reverse=true), xs|unique|list, xs|first, xs|last, xs|join(", "), xs|reverse|list, empty|first, empty|last, empty|join(","), words|sort, words|sort(case_sensitive=true), words|unique|list, words|map("upper")|join(" "), words|map("length")|list, words|select("equalto", "fig")|list, xs|select("odd")|list, xs|reject("odd")|list, xs|select|list
people|map(attribute="name")|join(","), people|map(attribute="tags", default=0)|list, people|selectattr("age", "equalto", 30)|map(attribute="name")|list, people|rejectattr("age", "gt", 26)|map(attribute="name")|list, people|selectattr("tags")|list|length, people|selectattr("tags", "defined")|list|length, people|sort(attribute="age")|map(attribute="name")|list, people|sum(attribute="age"), people|map(attribute="tags.0", default="-")|list
d|tojson, d|tojson(indent=2), xs|tojson, t|tojson, "<a href='x'>&\\n\\t\\u00e9\\"\\\\"|tojson, nothing|tojson, f|tojson, yes|tojson, []|tojson(indent=4), {}|tojson, {"a": []}|tojson(indent=1), 5.0|tojson, "\\x07"|tojson
d|items|list, d.items()|list, d.keys()|list, d.values()|list, d|dictsort, d|length, d|list, {"b": 1, "A": 2}|dictsort, {"x": 1, "x": 2}, dict(q=1, r="2"), {"k": d.k, "l": [1, (2, 3)]}
xs|string, d|string, [1.0, "it's", 'say "x"', "both ' and \\"", none, true, "new\\nline\\ttab\\\\"]|string, 3|string + "x", "5"|int + 1, "x"|int, "x"|int(9), "3.7"|int, 3.9|int, "2.5"|float, 7|float, "q"|float, -5|abs, 2.567|round(2), 2.5|round, 2.4|round, 2.1|round(0, "ceil"), 2.9|round(method="floor")
t.upper(), t.lower(), t.title(), t.strip("Hd"), s.strip(), s.lstrip(), s.rstrip(), t.split(","), t.split(), s.split(), "a,b,,c".split(","), "a b c".split(" ", 1), " a b  c ".split(None, 1), "a b c".rsplit(" ", 1), " a b  c ".rsplit(None, 1), "l1\\nl2\\r\\nl3\\n".splitlines(), t.startswith("He"), t.startswith(("x", "He")), t.endswith("d"), t.find("o"), t.find("zz"), t.count("l"), t.replace("o", "0"), "-".join(words), "12".isdigit(), "".isdigit(), "ab".isalpha(), " ".isspace(), "hello World".capitalize(), t.split(", ")[-1], "</think>x</think>y".split("</think>")[-1].lstrip("\\n")
range(4)|list, range(2, 5)|list, range(5, 0, -2)|list, range(0)|list, "line1\\nline2\\n\\nx"|indent(2), "line1\\nline2"|indent(width=3, first=true), "<&>'\\""|e, "<b>"|safe, "\\n\\t\\x41\\u00e9\\U0001f600\\'\\"\\\\\\q"
namespace(x=1).x, (1, 2), (1,), ((3)), [1, 2,], [[]], "a" ~ 1.0, -2.5, 1.0, 100000000000000000000.0, 0.1 + 0.2, 1/3, 10 // 3 * 3, 2 * 3 + 4 * 5, 2 + 3 ~ 4 + 5, (2 + 3) * 4, not (1 > 2), "%}" ~ "}}", {"a": {"b": {}}}
a.b.c, missing.x, missing + 1, missing(), t(), t + 1, 1 / 0, 1 % 0, xs["a"]["b"], a|nofilter, a is notest, "abc".nomethod(), d.pop("k"), xs.append(1), [3, "x"]|sort, "a" < 1, 5|length, a|join, raise_exception("stop"), 1 in 2, range(1, 2, 0), "x".split(""), range(10 ** 15)
""".strip()
STATEMENTS = [
    "{% for x in xs %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}={{ x }};{% endfor %}",
    "{% for x in xs %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.cycle('a', 'b') }} {% endfor %}",
    "{% for x in xs if x != 1 %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}",
    "{% for x in empty %}x{% else %}none{% endfor %}{% for x in missing %}x{% else %}gone{% endfor %}{% for x in xs if x > 9 %}x{% else %}few{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'aé' %}[{{ c }}]{% endfor %}",
    "{% for p in people %}{% for t in p.tags %}{{ loop.depth }}{{ t }}{% else %}-{% endfor %}{{ loop.depth0 }}{% endfor %}",
    "{% for x in xs %}{% if x == 2 %}{% break %}{% endif %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% set q = 1 %}{% for x in xs %}{{ q }}{% set q = q + x %}{{ q }} {% endfor %}{{ q }}",
    "{% set ns = namespace(n=0, found=false) %}{% for x in xs %}{% set ns.n = ns.n + x %}{% set ns.found = true %}{% endfor %}{{ ns.n }}{{ ns.found }}{{ ns.nope is defined }}",
    "{% if a > 9 %}big{% elif a > 5 %}mid{% elif a > 1 %}low{% else %}no{% endif %}{% if no %}x{% endif %}{% if empty %}x{% else %}y{% endif %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set x = (1, 2) %}{{ x }}{% set y %}block {{ a }}{% endset %}[{{ y }}]",
    "{% if true %}{% set inner = 5 %}{% endif %}{{ inner }}{% for i in [1] %}{% set out = 3 %}{% endfor %}{{ out is defined }}",
    "{% macro m(x, y=2, z='q') %}{{ x }}-{{ y }}-{{ z }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(x=4, z='w') }}{{ m() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% set g = 'global' %}{% macro m() %}{{ g }}{{ x is defined }}{% endmacro %}{% for x in [1] %}{{ m() }}{% endfor %}",
    "{% raw %}{{ not }} {% parsed %}{% endraw %}|{#- comment {{ x }} -#}|{# c #}\n x",
    "  {% if yes %}\n  kept\n  {% endif %}\nend",
    "a\n  {%- if yes -%}  \n b \n {%- endif %}\nc",
    "x {% if yes %} y {% endif %} z\n\n",
    "  {{ a }}\n  {{- b }}\n  {{ f -}}  \n  tail",
    "\t{# lead #}\nx\n\t {%+ if yes %}y{% endif +%}\nz",
    "{% if yes %}\n\n{% endif %}\n{% for i in [1,2] %}\n{{ i }}\n{% endfor %}\nlast\n",
    "a\r\nb\rc\n{{ 'x\\r\\ny' }}\n",
    "{% generation %}out{{ a }}{% endgeneration %}!",
    "{{ {'a': 1}['a'] }}{{ {'}}': '%}'}['}}'] }}{{ 'a'if yes else'b' }}",
    "{%if yes%}tight{%endif%}{{a}}{{-b-}}",
    "{% for i in range(3) %}{{ i }}{{ ', ' if not loop.last else '.' }}{% endfor %}",
    "{% set ns = namespace(m=[]) %}{% for p in people %}{% set ns.m = ns.m + [p.name] %}{% endfor %}{{ ns.m | join('+') }}",
    "{{ t | replace('World', 'you') | upper | length }}{{ (t ~ 'x') | length }}{{ -a | abs }}{{ 3 is odd and a is odd }}",
    "{% if t is string and xs is not string and (t|length > 3 or no) %}ok{% endif %}",
    "{% for x in [3,1]|sort %}{{ x }}{% endfor %}{% for x in xs[1:] %}{{ x }}{% endfor %}{% for x, y in [[1, 2], (3, 4)] %}{{ x + y }}{% endfor %}",
    # Templates that fail.
    "{% for x in xs %}", "{% endif %}", "{% if %}x{% endif %}", "{{ a", "{{ a b }}", "{% unknown %}", "{{ 'open }}", "{# open", "{{ a. }}", "{{ [1, }}",
    "{% set %}", "{% for in xs %}{% endfor %}", "{{ }}", "{% if yes %}{% else %}{% elif no %}{% endif %}", "{{ a | }}", "{{ a is }}", "{% macro %}{% endmacro %}",
    "{% set d.k = 1 %}", "{% for a, b in xs %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% break %}", "{{ 1 ! 2 }}", "{{ m(1, x=2, 3) }}", "{% raw %}x",
]


def attempt(render):
    """The text, or None where transformers' environment refuses."""
    try:
        return render()
    except Exception:  # any refusal: the message is ours to choose
        return None


def split_row(row):
    """Cuts at commas outside of brackets and strings."""
    parts, depth, quote, start, skip = [], 0, None, 0, False
    for i, c in enumerate(row):
        if skip:
            skip = False
        elif quote:
            skip = c == "\\"
            quote = None if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(row[start:i].strip())
            start = i + 1
    return parts + [row[start:].strip()]


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
    rows = EXPRESSIONS.splitlines()
    templates = ["{{ " + part + " }}" for row in rows for part in split_row(row)] + STATEMENTS
    compile_template = chat_template_utils._compile_jinja_template
    snippets = [{"template": text, "text": attempt(lambda: compile_template(text).render(**DATA))} for text in templates]
    write_json("chat.json", {"templates": TEMPLATES, "chats": chats, "data": DATA, "snippets": snippets})
