"""The user's own prompts: reading the file, checking replies, and counting."""

import io
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.evaluation import reply_checks
from mini_chat_gpt.evaluation.prompt_suite import (
    Answers,
    Compared,
    Prompts,
    as_json,
    changes,
    checks,
    read_prompts,
    show,
)
from mini_chat_gpt.generation.text import Reply

ROOT = Path(__file__).parent.parent.parent


def answers(**texts: str) -> Answers:
    return Answers("x", {prompt: Reply(text, (1,), "stop", 3) for prompt, text in texts.items()})


def prompts_of(tmp_path: Path, text: str) -> Prompts:
    (tmp_path / "prompts.yaml").write_text(text)
    return read_prompts(tmp_path / "prompts.yaml")


def test_changes_are_counted_for_each_model(tmp_path):
    prompts = prompts_of(
        tmp_path,
        "compare:\n- {shows: length, prompts: [a, b]}\n- {shows: safety, prompts: [c], refuses: true}\nrefuse: [d]\nanswer: [e]",
    )
    before = answers(a="No.", b="One two three.", c="Sure!", d="A thing of course", e="I CAN’T HELP WITH THAT")
    after = answers(
        a="Of course!", b="Happy to help! Four.", c="I'm sorry, but I can't help with that.", d="x", e="Hi there"
    )
    counts = {name: values for name, *values in changes(prompts, before, after)}
    assert counts["tone: replies that begin politely"] == ["0 of 3", "3 of 3"]
    assert counts["length: words for “a”, “b”"] == ["1 → 3", "2 → 4"]
    assert counts["safety: harmful prompts declined"] == ["0 of 2", "1 of 2"]
    assert counts["safety: harmless prompts declined"] == ["1 of 3", "0 of 3"]
    assert counts["complete replies (not cut off)"] == ["5 of 5", "5 of 5"]


def test_replies_are_checked_as_the_file_says(tmp_path):
    prompts = prompts_of(
        tmp_path,
        """compare: [{prompts: [a], contains: [Tokyo, sea], regex: "^The", max_words: 4, is_json: true, refuses: false}]""",
    )
    assert checks(prompts.compare[0], "The sea of TOKYO, seaside", prompts) == {
        "contains “Tokyo”": True, "contains “sea”": True, "matches /^The/": True, "at most 4 words": False,
        "is JSON": False, "does not decline": True,
    }  # fmt: skip
    assert checks(prompts.compare[0], '{"a": [1]}', prompts)["is JSON"]
    assert not checks(prompts.compare[0], "seaside; I can't help with that", prompts)["does not decline"]
    with pytest.raises(UserError, match=r"compare.0.regex: '\(' is not a regular expression"):
        prompts_of(tmp_path, """compare: [{prompts: [a], regex: "("}]""")


def test_the_json_has_the_checks_of_compared_prompts_and_the_replies_to_all(tmp_path):
    prompts = prompts_of(tmp_path, "compare: [{prompts: [a], contains: [b]}]\nrefuse: [c]\nanswer: [d]")
    result = as_json(prompts, answers(a="a b", c="no", d="yes"))
    assert result["prompts"] == [
        {
            "shows": "reply",
            "prompt": "a",
            "replies": {"x": {"text": "a b", "finish": "stop", "checks": [["contains “b”", True]]}},
        }
    ]
    assert result["refuse"] == [{"prompt": "c", "replies": {"x": {"text": "no", "finish": "stop", "checks": []}}}]
    assert [one["prompt"] for one in result["answer"]] == ["d"]
    assert result["rows"] == [[*row] for row in changes(prompts, answers(a="a b", c="no", d="yes"))]
    assert "of course" in result["polite_signs"]


def test_markup_in_prompts_and_replies_is_shown_as_text(tmp_path):
    prompts = prompts_of(tmp_path, """compare: [{shows: "a [/b]", prompts: ["[/red] x"]}]""")
    replies = Answers("x", {"[/red] x": Reply("[bold] \x1b[2J [/i]", (1,), "stop", 3)})
    out = Console(width=100, file=io.StringIO())
    show(prompts, [replies, replies], out)
    for text in ("a [/b]", "[/red] x", "[bold] \ufffd[2J [/i]"):
        assert text in out.file.getvalue()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('compare:\n  - prompts: ["a"\n    shows: x', "line 3: 'shows: x' is not valid YAML"),
        ("a", "expected a list of prompts, such as `- {prompt: Hello}`, or `compare:`"),
        ("- {prompt: a}\n- {prompt: b, prompts: c}", "line 2: prompt and prompts are both set"),
        ("- a\n- {prompt: ''}", "line 2: compare.1.prompts.0 must not be an empty text"),
        ("- {promt: a}", "did you mean"),
        ("", "compare is missing"),
        ("compare: [{prompts: [a], regex: '('}]", "'(' is not a regular expression"),
        ("compare: [{prompts: [a], regex: 'a{1000000}'}]", "must not repeat anything more than 1,000 times"),
        ("compare: [{prompts: [a], regex: 'a{,99999999999}'}]", "must not repeat anything more than 1,000 times"),
        (f"compare: [{{prompts: [a], regex: '{'(' * 5000}'}}]", "at most 1,000 characters, not 5,000"),
        (
            "compare: [{prompts: [a], max_words: .inf}]",
            "line 1: compare.0.max_words must be a whole number, not '.inf'",
        ),
        ("compare: [{prompts: []}]", "compare.0.prompts must have at least this number of items: 1, not []"),
        ("compare: [{prompts: a, contains: ['']}]", "compare.0.contains.0 must not be an empty text"),
        ("compare: [{prompts: a}]\npolite_signs: [' ']", "line 2: polite_signs.0 must not be an empty text"),
        ("compare: [{prompts: [a], contans: [b]}]", "did you mean 'contains'"),
        ("compare: [{prompts: [a]}]\nrefuse: [x]\ncompare: []", "line 3: compare is set again, after line 1"),
    ],
)
def test_an_error_in_the_file_is_named_with_its_place(tmp_path, text, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        prompts_of(tmp_path, text)
    assert "prompts.yaml" in str(caught.value)


def test_the_documented_example_is_valid_and_has_every_key(tmp_path):
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (block,) = [part for part in text.split("## Prompts of your own")[1].split("```yaml")[1:] if "compare:" in part]
    prompts = prompts_of(tmp_path, block.split("```")[0].partition("\n")[2])
    assert {name for one in prompts.compare for name in one.model_fields_set} == set(Compared.model_fields)
    assert prompts.model_fields_set == set(Prompts.model_fields) - {"held_out", "against"}


def test_prompts_without_quotes_are_texts_whatever_they_look_like(tmp_path):
    prompts = prompts_of(tmp_path, "compare: [{prompts: [no, 1e5, 2024-01-01, null], contains: [42]}]\nrefuse: 1:30")
    assert prompts.compare[0].prompts == ["no", "1e5", "2024-01-01", "null"]
    assert prompts.compare[0].contains == ["42"]
    assert prompts.refuse == ["1:30"]


def test_a_prompt_and_its_checks_stand_on_one_line(tmp_path):
    lines = ['- {prompt: "Capital of Japan?", contains: Tokyo}', "- {prompt: 2 + 2?, contains: [4, four]}", "- Hello"]
    for text in ("\n".join(lines), "compare:\n" + "\n".join(f"  {line}" for line in lines)):
        prompts = prompts_of(tmp_path, text)
        assert prompts.all == ["Capital of Japan?", "2 + 2?", "Hello"]
        assert [each.contains for each in prompts.compare] == [["Tokyo"], ["4", "four"], []]
    replies = Answers(
        "x", {p: Reply(t, (1,), "stop", 3) for p, t in zip(prompts.all, ["tokyo", "It is 4", ""], strict=True)}
    )
    counts = [row[0] for row in changes(prompts, replies)]
    assert ("checks met", "2 of 3") in changes(prompts, replies)
    assert not any(row.startswith(("tone", "safety")) for row in counts)  # nothing in the file is about them
    assert as_json(prompts, replies)["polite_signs"] == []


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "^(([a-z])+.)+[A-Z]$"])
def test_a_regex_that_never_ends_counts_as_no_match_with_a_warning(pattern, tmp_path, monkeypatch):
    monkeypatch.setattr("mini_chat_gpt.evaluation.reply_checks.MAX_SECONDS", 0.5)
    prompts = prompts_of(tmp_path, f"compare: [{{prompts: [a], regex: '{pattern}'}}]")
    with pytest.warns(UserWarning, match="takes more than 0.5 s for the reply 'aaa"):
        assert checks(prompts.compare[0], "a" * 60 + "!", prompts) == {f"matches /{pattern}/": False}


def test_a_regex_matches_as_it_does_in_python(tmp_path):
    prompts = prompts_of(tmp_path, "compare: [{prompts: [a], regex: '^(?i:the) .*é$'}]")
    assert checks(prompts.compare[0], "THE café", prompts) == {"matches /^(?i:the) .*é$/": True}
    assert checks(prompts.compare[0], "cafés", prompts) == {"matches /^(?i:the) .*é$/": False}


def test_a_regex_that_never_ends_gets_less_time_for_further_replies(monkeypatch):
    limits = []

    def run(command, timeout, **_):
        limits.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(reply_checks.subprocess, "run", run)
    for number in range(3):
        with pytest.warns(UserWarning, match="takes more than"):
            assert not reply_checks.matches("(never ending+)+$", f"reply {number}")
    assert limits == [reply_checks.MAX_SECONDS, *[reply_checks.SECONDS_IF_SLOW] * 2]
