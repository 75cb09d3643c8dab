"""The evaluation of templates agrees with Jinja's, as `transformers` sets it up, wherever it does not refuse."""

import random
import re
import time
from datetime import date, datetime

import pytest
from chat_template_samples import CONTROL, MACRO, SUPPORTED

from mini_chat_gpt.chat_format import Message
from mini_chat_gpt.tokenizer.template_inputs import values_of, with_slots
from mini_chat_gpt.tokenizer.template_sandbox import evaluate, parse
from mini_chat_gpt.tokenizer.template_values import ReadsContent, TemplateError

DATA = {
    "words": ["b", "A", "c", "b"],
    "numbers": [3, 1, 2.5],
    "nested": [{"role": "user", "n": 1, "f": {"name": "x"}}, {"role": "system", "n": 2, "f": {"name": "y"}}],
    "mapping": {"b": 1, "a": [1, None, True], "c": "é<&>'"},
    "text": "  Hello, World  ",
    "nothing": None,
}
SNIPPETS = """
{{ text | trim }}|{{ text.strip() }}|{{ text.lstrip() }}|{{ text | trim | length }}|{{ text.strip(' Hd') }}
{{ text | upper }}{{ text | lower }}{{ text | trim | capitalize }}{{ text.title() }}{{ text | replace('o', '0') }}
{{ text.replace('l', 'L', 1) }}{{ 'a-b-c'.split('-') | join('+') }}{{ 'a-b-c'.split('-', 1)[1] }}{{ 'a b'.split()[0] }}
{{ text[3:8] }}{{ text[-1] }}{{ text[::-1] }}{{ words[1:] | join }}{{ words[0] }}{{ words[99] }}{{ words[-1] }}
{{ words | join(', ') }}{{ words | first }}{{ words | last }}{{ words | sort | join }}{{ words | unique | join }}
{{ words | sort(reverse=true) | join }}{{ words | sort(case_sensitive=true) | join }}{{ words | reverse | list | join }}
{{ nested | map(attribute='role') | join(' ') }}{{ nested | map(attribute='f.name') | join }}{{ words | map('upper') | join }}
{{ nested | selectattr('role', 'equalto', 'user') | list | length }}{{ nested | rejectattr('n', 'gt', 1) | map(attribute='n') | join }}
{{ numbers | select('>', 1) | list | length }}{{ [0, 1, '', 'x'] | select | list | length }}{{ numbers | sort | join(' ') }}
{{ mapping | tojson }}{{ mapping | tojson(indent=2) }}{{ 'é"\\n' | tojson }}{{ [1, none, true] | tojson }}{{ mapping | dictsort | length }}
{% for key, value in mapping.items() %}{{ key }}:{{ value is string }} {% endfor %}{{ mapping.keys() | join }}{{ mapping.get('x', 'no') }}
{% for key in mapping %}{{ key }}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{% endfor %}{{ mapping['b'] }}{{ mapping.b }}
{% for word in words if word != 'b' %}{{ loop.length }}{{ word }}{{ loop.previtem }}{{ loop.nextitem }}{% else %}none{% endfor %}
{% for x in [] %}{% else %}empty{% endfor %}{% for x in range(2, 8, 3) %}{{ x }}{% if x > 4 %}{% break %}{% endif %}{% endfor %}
{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% continue %}{% endif %}{{ i }}{{ j }}{{ loop.index0 }}{% endfor %}{% endfor %}
{% set x = 1 %}{% for i in range(2) %}{% set x = 5 %}{% endfor %}{{ x }}{% if true %}{% set x = 7 %}{% endif %}{{ x }}
{% set ns = namespace(a=1, b='x') %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}
{% set a, b = words[:2] %}{{ a }}{{ b }}{% set block %} in {{ a }} {% endset %}{{ block | trim }}{% set c | upper %}c{% endset %}{{ c }}
{% macro f(x, y='d', z=none) %}<{{ x }}{{ y }}{{ z is none }}>{% endmacro %}{{ f(1) }}{{ f(1, z=2) }}{{ f('a', 'b') | length }}
{% macro g() %}({{ caller() }}){% endmacro %}{% call g() %}inner{% endcall %}{% with q = 3 %}{{ q }}{% endwith %}{{ q is defined }}
{% filter upper %}a{% filter trim %} b {% endfilter %}{% endfilter %}{% generation %}{% set hidden = 1 %}g{% endgeneration %}{{ hidden is defined }}
{{ 1 + 2 * 3 - 4 / 2 }}{{ 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 5 }}{{ -3 }}{{ 1.5 + 1 }}{{ 'ab' * 2 }}{{ 'a' ~ 1 ~ none ~ true }}{{ 'a' + 'b' }}
{{ 1 < 2 < 3 }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ 'a' in 'abc' }}{{ 'x' not in words }}{{ 'b' in mapping }}{{ 2 in numbers }}{{ 1 != 2 }}
{{ true and 'x' }}{{ '' or 'y' }}{{ not none }}{{ 'a' if false }}{{ 'a' if 0 else 'b' }}{{ (1, 2) | length }}{{ [1] + [2] | length }}
{{ missing }}{{ missing | default('d') }}{{ '' | default('e', true) }}{{ nothing | d('f') }}{{ missing is defined }}{{ missing is undefined }}
{{ nothing is none }}{{ text is string }}{{ mapping is mapping }}{{ words is sequence }}{{ words is iterable }}{{ 3 is number }}{{ 3 is integer }}
{{ true is boolean }}{{ true is true }}{{ 1 is odd }}{{ 2 is even }}{{ 9 is divisibleby 3 }}{{ 'a' is in words }}{{ 3 is ge(3) }}{{ 1.5 is float }}
{{ 'a\\nb' | indent(2) }}{{ 'a\\n\\nb' | indent(2, true) }}{{ 'x' | string }}{{ 3 | string | length }}{{ '12' | int + 1 }}{{ 'x' | int(7) }}{{ '1.5' | float }}
{{ -3 | abs }}{{ 'abc' | list | join('.') }}{{ 'abc' | reverse }}{{ 'Abc'.startswith('A') }}{{ 'abc'.endswith(('c', 'd')) }}{{ 'abc'.find('c') }}
{{ ', '.join(words) }}{{ 'a\\nb'.splitlines() | length }}{{ 'aXbX'.count('X') }}{{ 'prefix_x'.removeprefix('prefix_') }}{{ dict(a=1).a }}
{% if false %}a{% elif nothing is none %}b{% else %}c{% endif %}{#- a comment -#}   {{- 'x' -}}   {% raw %}{{ no }}{% endraw %}
{{ nothing.attribute }}{{ nothing['item'] }}{{ 'a'.missing }}{{ mapping.missing }}{{ mapping.items is defined }}{{ none == missing }}
{{ missing.attribute }}
{{ missing + 'a' }}
{{ none + 'a' }}
{{ 'a' + 1 }}
{{ [1, 2] | join(1) }}{{ {'a': 1} | length }}{{ {'a': {'b': 2}}.a.b }}{{ [1, [2]][1][0] }}{{ 'é' | length }}{{ 'a' > '' }}
""".strip("\n").split("\n")  # noqa: E501


def jinja(source: str, variables: dict) -> str:
    """Jinja's result, or that it refuses. Its time is the beginning of today, as ours is: templates may print seconds."""
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    try:
        return _cached_compile_jinja_template(source).render(strftime_now=beginning_of_today, **variables)
    except Exception as error:
        return f"refused: {type(error).__name__}"


def beginning_of_today(form: str) -> str:
    return datetime.combine(date.today(), datetime.min.time()).strftime(form)


def ours(source: str, variables: dict, contents: dict | None = None) -> str | None:
    try:
        parts, _ = evaluate(parse(source), variables, date.today())
    except TemplateError:
        return None
    return "".join(part if isinstance(part, str) else part.fill(contents or {}) for part in parts)


@pytest.mark.parametrize("source", SNIPPETS)
def test_expressions_and_statements_have_jinja_s_results(source):
    pytest.importorskip("transformers")
    expected = jinja(source, DATA)
    assert ours(source, DATA) == (None if expected.startswith("refused") else expected)


UNKNOWN_NAMES = """
{% for x in [] %}{{ x | nothing }}{% endfor %}
{% for x in [] | nothing %}{% endfor %}
{% macro m() %}{{ 1 is nothing }}{% endmacro %}
{{ 1 if true else 2 | nothing }}
{% if false %}{{ 1 | nothing }}{% endif %}
{% if false %}{% for x in [] %}{{ x | nothing }}{% endfor %}{% endif %}
{% if false %}{% for x in [1] | nothing %}{% endfor %}{% endif %}
{% if false %}{% set x %}{{ 1 | nothing }}{% endset %}{% endif %}
{% if true %}{% elif 1 is nothing %}{% else %}{{ 1 | nothing }}{% endif %}
""".strip("\n").split("\n")


@pytest.mark.parametrize("source", UNKNOWN_NAMES)
def test_unknown_filters_and_tests_are_refused_where_jinja_refuses_them(source):
    pytest.importorskip("transformers")
    expected = jinja(source, {})
    assert ours(source, {}) == (None if expected.startswith("refused") else expected)


def changed(rng: random.Random, sources: list[str], words: list[str]) -> str:
    """A template with one or two of its words removed, replaced, added or swapped."""
    parts = split(rng.choice(sources))
    for _ in range(rng.choice((1, 1, 2))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        kind = rng.choice(("remove", "replace", "add", "swap"))
        if kind == "remove" and len(parts) > 1:
            del parts[at]
        elif kind == "replace":
            parts[at] = rng.choice(words)
        elif kind == "add":
            parts.insert(at, rng.choice(words))
        elif kind == "swap":
            parts[at], parts[other] = parts[other], parts[at]
    return "".join(parts)


def split(source: str) -> list[str]:
    return re.findall(r"\{%-?|-?%\}|\{\{-?|-?\}\}|'[^']*'|\w+|[^\w\s]|\s+", source)


CALLS = ({"type": "function", "id": "a12345678", "function": {"name": "look", "arguments": {"at": ["é", {"b": 1}]}}},)
CHATS: list[tuple[list[Message], list[dict]]] = [
    ([Message("user", " content\n")], []),
    ([Message("system", " content\n"), Message("user", "x"), Message("assistant", "\ny", reasoning="\nthought\n")], []),
    (
        [
            Message("user", "x"),
            Message("assistant", "", tool_calls=CALLS),
            Message("tool", "\n", tool_call_id="a12345678"),
        ],
        [
            {
                "type": "function",
                "function": {"name": "look", "description": '"', "parameters": {"at": {}}, "strict": True},
            }
        ],
    ),
]


def compare_changed(seed: int, n: int) -> int:
    """Compare n changed templates; the number of comparisons in which nothing was refused."""
    pytest.importorskip("transformers")
    rng, sources = random.Random(seed), [*SUPPORTED.values(), MACRO]
    words = [word for source in sources for word in split(source)]
    n_compared = 0
    for _ in range(n):
        source = changed(rng, sources, words)
        for messages, tools in CHATS:
            common = {"documents": None, "bos_token": "<s>", "eos_token": "</s>"}
            common["add_generation_prompt"] = messages[-1].role == "user"
            values = values_of(messages, tools, "reasoning_content")
            if (result := ours(source, common | with_slots(values, frozenset(CONTROL)), values)) is not None:
                assert result == jinja(source, common | values), source
                n_compared += 1
    return n_compared


def test_changed_templates_have_jinja_s_results_or_are_refused():
    assert compare_changed(seed=0, n=150) > 50


@pytest.mark.slow
def test_many_changed_templates_have_jinja_s_results_or_are_refused():
    assert compare_changed(seed=1, n=10_000) > 3_000


def test_the_limit_on_work_is_reached_within_seconds():
    started = time.process_time()
    source = "{% for i in range(100000) %}{% for j in range(100000) %}{{ 'x' }}{% endfor %}{% endfor %}"
    assert ours(source, {}) is None
    assert time.process_time() - started < 5


TOOL = {
    "type": "function",
    "function": {"name": 'a"b', "description": "é\n", "parameters": {"b": [1, {"c": "\n"}], "a": {}}},
}
OPEN = """
{{ tools | tojson }}|{{ tools[0] | tojson(indent=2) }}|{{ tools | tojson(indent=4, sort_keys=true) }}|{{ tools[0] | tojson(indent='\t') }}
{{ tools[0].function | tojson(ensure_ascii=true) }}{{ tools[0] | tojson(separators=[',', ':']) }}{{ (tools | tojson)[:-2] }}
{{ messages[1].tool_calls[0].function.arguments | tojson }}{{ messages[1].tool_calls[0].function.name | tojson | trim }}
{{ messages[1].tool_calls[0].function.arguments is mapping }}{{ messages[1].tool_calls[0].function.arguments is string }}
{{ messages[1].tool_calls[0].id | length }}{{ messages[2].tool_call_id | length == 9 }}{{ 'tool_calls' in messages[0] }}
{{ '</think>' in messages[0].content }}{{ messages[0].content.split('</think>')[-1] }}{{ messages[0].content.startswith('<think>') }}
{{ messages[0].content.replace('<think>', '') }}{{ messages[0].content.find('<think>') }}{{ messages[0].content | replace('</think>', '') }}
{{ messages[0].content.endswith(('<think>', '</think>')) }}{{ messages[0].content == '<think>' }}{{ messages[0] == messages[0] }}
{{ messages[0].content.count('<think>') }}{{ messages[0].content.removeprefix('<think>') }}{{ messages[0].content.rsplit('<think>', 1) | first }}
""".strip("\n").split("\n")  # noqa: E501
READS = """
{{ 'x' in messages[0].content }}
{{ '</thi' in messages[0].content }}
{{ '<think>' in ('<thi' + messages[0].content) }}
{{ '<think>' in (messages[0].content | tojson) }}
{{ messages[0].content.split('a')[0] }}
{{ messages[0].content.split()[0] }}
{{ messages[0].content[:-1] }}
{{ (messages[0].content + 'ab')[:-3] }}
{{ messages[0].content | length }}
{{ messages[1].tool_calls[0].function.arguments.at }}
{{ messages[1].tool_calls[0].function.arguments['at'] }}
{{ messages[1].tool_calls[0].function.arguments | length }}
{% for key in messages[1].tool_calls[0].function.arguments %}{{ key }}{% endfor %}
{{ messages[1].tool_calls[0].function.arguments == {} }}
{{ 'at' in messages[1].tool_calls[0].function.arguments }}
{{ messages[0] == messages[3] }}
{{ messages[0].content.startswith(('<think>', 'x')) }}
{{ messages[1].tool_calls[0].function.arguments.items() }}
""".strip("\n").split("\n")
TALK = [
    Message("user", "Hi é\n"),
    Message("assistant", "", tool_calls=CALLS),
    Message("user", "x", tool_call_id="a12345678"),
    Message("user", "x"),
]


@pytest.mark.parametrize("source", OPEN)
def test_contents_can_be_written_as_json_and_searched_for_control_tokens(source):
    pytest.importorskip("transformers")
    values = values_of(TALK, [TOOL], "reasoning_content")
    assert ours(source, with_slots(values, frozenset(CONTROL)), values) == jinja(source, values)


@pytest.mark.parametrize("source", READS)
def test_what_would_depend_on_a_content_is_refused(source):
    variables = with_slots(values_of(TALK, [TOOL], "reasoning_content"), frozenset(CONTROL))
    with pytest.raises(ReadsContent):
        evaluate(parse(source), variables, date.today())
