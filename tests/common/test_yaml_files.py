"""Reading YAML: bounded, nothing set twice, one sentence with the line."""

import os
import re
from pathlib import Path

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.yaml_files import MAX_BYTES, Plain, parse_yaml, read_yaml
from mini_chat_gpt.config_file import load_config

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def read(path: Path):
    return read_yaml(path, "config file", "make one", "sections").value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sft:\n  max_steps: 2\nsft:\n  x: 1\n", "line 3: sft is set again, after line 1"),
        ("sft:\n  max_steps: 2\n  x: 1\n  max_steps: 3\n", "line 4: sft.max_steps is set again, after line 2"),
        (
            "data:\n  mixture: {moral: 1,\n    summary: 2, moral: 3}\n",
            "line 3: data.mixture.moral is set again, after line 2",
        ),
        ("a: [{x: 1, 'x': 2}]", "line 1: a.0.x is set again, after line 1"),
        (BOMB, "line 6: more than 100,000 values, with aliases"),
        ("a: &a [*a]", "*a refers to nothing"),
        ("a: *nothing", "*nothing refers to nothing"),
        ("a: " + "[" * 50 + "]" * 50, "nested more than 20 levels deep"),
        ("a: " + "[" * 100_000, "line 1: "),
        ("{a: " * 50, "nested more than 20 levels deep"),
        ("? [a]\n: 1", "line 1: a key must be a text"),
        ("? {a: 1}\n: 1", "line 1: a key must be a text"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not supported"),
        ("a: !!timestamp 2001-99-99", "the tag !!timestamp is not supported"),
        ("a: !!binary x", "the tag !!binary is not supported"),
        ("a: !!set {x}", "the tag !!set is not supported"),
        ("a: !mine 3", "the tag !mine is not supported"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins here"),
        ("a: 1\n\tb: 2", "line 2: 'b: 2' is not valid YAML; indent with spaces, not with tabs"),
        ("a: b: c", "line 1: 'a: b: c' is not valid YAML; check quotes"),
        ("a: 'x", "is not valid YAML"),
        ("a: \0", "line 1: U+0000 is not a character of a text"),
        ("<<: 3", "<< takes a mapping"),
        ("%YAML 3.0\n---\na: 1", "is not valid YAML"),
        ('a: "\\UFFFFFFFF"', "is not valid YAML"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(text, words, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read(file)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value)) < 400
    with pytest.raises(UserError):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("\ufeffa: 1", {"a": "1"}),
        ("1: 2\nnull: 3\n2001-99-99: 4\ntrue: 5", {"1": "2", "null": "3", "2001-99-99": "4", "true": "5"}),
        ("a: !!int abc\nb: !!str 3\nc: ! x", {"a": "abc", "b": "3", "c": "x"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": "1"}, "c": {"b": "1"}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": "1", "c": "2"}, "d": {"b": "1", "c": "3"}}),
        ("a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne:\n  <<: [*x, *y]", {"e": {"b": "1", "d": "3"}}),
        ("a: |\n  x\n  y\nb: >\n  x\n  y\n", {"a": "x\ny\n", "b": "x y\n"}),
        ("--- {a: 1}\n...\n", {"a": "1"}),
    ],
)
def test_values_without_quotes_stay_as_typed(text, value, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    assert value.items() <= read(file).items()


def test_only_values_without_quotes_are_plain():
    values = parse_yaml("[a, 'a', \"a\", |\n a\n]".replace(", |\n a\n", ""), "the test").value
    assert [isinstance(value, Plain) for value in values] == [True, False, False]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a: é".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ("a: 1".encode("utf-16-le"), "U+0000 is not a character of a text"),
        (b"a: 1\nb: \xff", "line 2 is not UTF-8 text"),
        (b"PK\x03\x04\x00", "U+0003 is not a character of a text"),
        (b"a: " + b"x" * MAX_BYTES, "is larger than 1 MB"),
        (b"- 1", "expected sections, found a list"),
        (b"just text", "expected sections, found the text 'just text'"),
    ],
)
def test_a_file_that_is_no_such_text_is_one_sentence(data, words, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(words)):
        read(file)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        read(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a regular file"):
        read(pipe)
    if os.path.exists("/dev/zero"):
        with pytest.raises(UserError, match="not a regular file"):
            read(Path("/dev/zero"))
    with pytest.raises(UserError, match="There is no config file"):
        read(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="file name too long"):
        read(tmp_path / ("x" * 5000))


def test_a_value_has_its_line():
    lines = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n", "the test").lines
    assert (lines[("a", "b")], lines[("a", "c", "0")], lines[("a", "c", "1", "y")]) == (2, 4, 5)
