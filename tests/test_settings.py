"""Values of settings: numbers are bounded, texts are taken as typed, `~` expands, messages are ours."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mini_chat_gpt.cli import VERBS, make_parser, parse
from mini_chat_gpt.cli_options import split_arguments
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.setting_types import seconds_in
from mini_chat_gpt.common.user_paths import path_text
from mini_chat_gpt.config import Config, SFTSection
from mini_chat_gpt.config_file import load_config, parse_config, to_yaml
from mini_chat_gpt.evaluation.prompt_suite import Prompts
from mini_chat_gpt.gpt_config import GPTConfig, LinearScaling, Llama3Scaling


def setting(override: str, file: Path | None = None) -> Any:
    """The value of a setting after `section.key=value`."""
    config: Any = load_config(file, [override])
    for part in override.partition("=")[0].split("."):
        config = getattr(config, part)
    return config


# Numbers


def numbers(kind: Any, metadata: list[Any], name: str) -> Iterator[tuple[str, Any, list[Any]]]:
    """(name, int or float, its constraints) of all numbers in a type."""
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        yield from numbers(kind, [*metadata, *more], name)
    elif get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
        for key, field in kind.model_fields.items():
            yield from numbers(field.annotation, field.metadata, f"{name}.{key}")
    elif kind in (int, float):
        yield name, kind, metadata
    else:
        for part in get_args(kind):
            is_union = get_origin(kind) in (Union, UnionType)  # otherwise what is known of a list isn't of its items
            yield from numbers(part, metadata if is_union else [], name)


def bounds(metadata: list[Any]) -> tuple[float, float]:
    least, most = -math.inf, math.inf
    for one in metadata:
        for item in getattr(one, "metadata", [one]):
            if isinstance(item, annotated_types.Ge | annotated_types.Gt):
                least = getattr(item, "ge", getattr(item, "gt", None))
            if isinstance(item, annotated_types.Le | annotated_types.Lt):
                most = getattr(item, "le", getattr(item, "lt", None))
    return least, most


SECTIONS = [Config, GPTConfig, Prompts, LinearScaling, Llama3Scaling]
NUMBERS = [one for section in SECTIONS for one in numbers(section, [], section.__name__)]


def test_the_walk_over_the_settings_finds_the_numbers():
    names = {name for name, *_ in NUMBERS}
    assert len(names) > 70
    assert {
        "Config.data.curriculum.share",
        "Config.chats.files",
        "Config.data.mixture",
        "Config.model.windows",
    } <= names


@pytest.mark.parametrize(("name", "kind", "metadata"), NUMBERS, ids=[name for name, *_ in NUMBERS])
def test_every_number_has_finite_bounds(name, kind, metadata):
    least, most = bounds(metadata)
    assert 0 <= least < most < 2**63, name


HOSTILE = [
    math.inf,
    -math.inf,
    math.nan,
    10**30,
    -(10**30),
    -1e30,
    1e300,
    -1,
    True,
    "text",
    "",
    "1e999",
    [],
    {},
    "9" * 5000,
]
PLAIN = ["inf", "nan", ".inf", ".nan", "-.inf", "1e999", "-1", "1" + "0" * 30, "true", "text", "0x10", "1:30", "９"]
FIELDS = [
    (section, key)
    for section, value in Config()
    for key in type(value).model_fields
    if any(True for _ in numbers(type(value).model_fields[key].annotation, [], ""))
]


@pytest.mark.parametrize(("section", "key"), FIELDS)
def test_no_number_is_infinite_huge_or_a_bool(section, key):
    optional_words = {"compile", "mixed_precision"}  # these take true and false
    for value in HOSTILE:
        if isinstance(value, list | dict) and key in (
            "windows",
            "curriculum",
            "files",
            "valid_files",
            "mixture",
            "loss_weights",
        ):
            continue
        if isinstance(value, str) and key in ("files", "valid_files"):
            continue
        if key in optional_words or (key == "time_limit"):
            continue
        with pytest.raises(UserError) as caught:
            parse_config({section: {key: value}}, "the test")
        check_message(str(caught.value))
    for text in PLAIN:
        if key in ("files", "valid_files"):
            continue
        with pytest.raises(UserError) as caught:
            load_config(None, [f"{section}.{key}={text}"])
        check_message(str(caught.value))


def check_message(text: str) -> None:
    """The words are ours, and what was given is cut."""
    for jargon in ("Input should", "input should", "validation error", "Extra inputs", "type=", "pydantic", "tag:yaml"):
        assert jargon not in text, text
    assert len(text) < 600


def test_a_preset_and_the_values_at_all_bounds_are_valid_or_refused_with_a_sentence():
    for name, kind, metadata in NUMBERS:
        section, _, key = name.removeprefix("Config.").partition(".")
        if (
            not name.startswith("Config.")
            or "." in key
            or key in ("files", "valid_files", "mixture", "loss_weights", "windows")
        ):
            continue
        for value in bounds(metadata):
            try:
                parse_config({section: {key: kind(value)}}, "the test")
            except UserError as error:
                check_message(str(error))


@pytest.mark.parametrize(
    "text", ["0", "0s", "", "-1h", "1e999h", "9" * 30 + "h", "inf", "٣h", "1h 1h", "99999999h", "2h30", "1:30"]
)
def test_a_duration_is_finite_and_longer_than_nothing(text):
    with pytest.raises(ValueError, match="is not a duration"):
        seconds_in(text)


# Texts


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        *(
            (text, text)
            for text in ("r/exp #2", "2024", "1e5", "a: b", "yes", "No.", "null", "2024-01-01", "[x]/y", "{a}")
        ),
        *((text, text) for text in (" x ", "- a", "*x", "&a b", "!!int 3", "a\\nb", "1:30", "0x1F", "'", "%", "@x")),
        ('"quoted"', "quoted"),
        ("'it''s'", "it's"),
        (r'"\u00e9"', "é"),
        ('"Hi!" she said', '"Hi!" she said'),
        ('"not closed', '"not closed'),
        ('"a" #b', '"a" #b'),
    ],
)
def test_a_text_on_the_command_line_is_taken_as_typed(typed, value):
    if typed != '"a" #b':  # a comment after a quoted text is YAML, and not part of it
        assert setting(f"sft.save_dir={typed}") == value
        assert setting(f"data.system_message={typed}") == (None if typed == "null" else value)


@pytest.mark.parametrize(
    "typed", ["2024", "1e5", "yes", "no", "2024-01-01", "2001-99-99", "1:30", "010", "0x1F", "1_000", "on", "NO."]
)
def test_a_text_without_quotes_in_a_file_is_taken_as_typed(typed, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        f"wandb: {{name: {typed}}}\nsft: {{save_dir: {typed}, prompts: [{typed}]}}\nchats: {{files: {{{typed}: 2}}}}"
    )
    config = load_config(file)
    assert (config.wandb.name, config.sft.save_dir, config.sft.prompts) == (typed, typed, [typed])
    assert config.chats.files == {typed: 2}


@pytest.mark.parametrize("typed", ["null", "~", "", "Null", "NULL"])
def test_null_means_none_where_a_setting_can_be_null(typed):
    assert setting(f"wandb.name={typed}") is None
    assert setting(f"sft.max_steps={typed}") is None
    assert setting(f"data.mixture={typed}") is None


@pytest.mark.parametrize("typed", ["", "   "])
def test_a_path_is_not_empty(typed):
    with pytest.raises(UserError, match=r"sft.save_dir must be a path, not an empty text"):
        setting(f"sft.save_dir={typed}")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sft.prompts=Hello", ["Hello"]),
        ("sft.prompts=No. Why? #1", ["No. Why? #1"]),
        ('sft.prompts=["a", 3, no]', ["a", "3", "no"]),
        ("sft.prompts=", []),
        ("lora.targets=q_proj", ("q_proj",)),
        ("lora.targets=[q_proj, v_proj, q_proj]", ("q_proj", "v_proj")),
        ("chats.files=a: b", {"a: b": 1}),
        ("chats.files=2024", {"2024": 1}),
        ("chats.files=x #1.jsonl", {"x #1.jsonl": 1}),
        ('chats.files="[x].jsonl"', {"[x].jsonl": 1}),
        ("chats.files=[2024, yes]", {"2024": 1, "yes": 1}),
        ("chats.files={no: 2, 1e5: 3}", {"no": 2, "1e5": 3}),
        ("chats.files=", {}),
        ("model.windows=[4, null, 4, 4, 4, ~]", (4, None, 4, 4, 4, None)),
        ("model.rope_scaling={rope_type: linear, factor: 2.5}", {"rope_type": "linear", "factor": 2.5}),
        ("sft.max_steps=1e3", 1000),
        ("sft.max_steps= 1_000 ", 1000),
        ("sft.max_steps=010", 10),
        ("system.mixed_precision=no", False),
        ("system.mixed_precision=bf16", "bf16"),
        ("chats.skip_bad=on", True),
        ("training.time_limit=90", "90"),
    ],
)
def test_the_type_of_a_setting_decides_how_its_value_is_read(override, value):
    assert setting(override) == value


def test_a_value_that_is_not_utf8_is_one_sentence():
    with pytest.raises(UserError, match="not valid UTF-8"):
        load_config(None, [os.fsdecode(b"sft.save_dir=r\xff")])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives_being_written_and_read(text):
    path = f"x{text}".translate(dict.fromkeys(map(ord, "\0\n\r")))
    config = Config(data={"system_message": text}, sft={"prompts": [text], "save_dir": path})
    from mini_chat_gpt.common.typed_values import read_as
    from mini_chat_gpt.common.yaml_files import parse_yaml

    assert Config.model_validate(read_as(parse_yaml(to_yaml(config), "the test").value, Config)) == config


# Home folders


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "x/" * 3000, "a\0b"])
def test_what_no_file_system_takes_as_a_path_is_one_sentence(name):
    for key in ("sft.save_dir", "pretrain.dataset_path", "sft.resume_from", "chats.files"):
        with pytest.raises(UserError, match=r"file name too long|contains a NUL"):
            parse_config({key.split(".")[0]: {key.split(".")[1]: name}}, "the test")
    with pytest.raises(UserError, match=r"file name too long|contains a NUL"):
        parse("chat", ["--checkpoint", name])


@pytest.mark.parametrize("key", ["wandb.name", "wandb.project", "sft.best_metric"])
def test_a_name_is_short(key):
    with pytest.raises(UserError, match=f"{key} must have at most this number of characters: 128, not 'xxx"):
        load_config(None, [f"{key}={'x' * 5000}"])


def test_a_long_text_on_the_command_line_of_inspect_is_not_taken_for_a_file():
    prompt = "sft.prompts=" + "x" * 5000
    assert split_arguments([prompt, "x.jsonl"]) == ([prompt], ["x.jsonl"])


@pytest.mark.parametrize("override", ["sft=", "data=null", "chats= "])
def test_a_section_is_not_unset_on_the_command_line(override):
    with pytest.raises(UserError, match="would unset a whole section"):
        load_config(None, [override])


def test_a_home_folder_expands_in_every_path_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [
        f"{section}.{key}"
        for section, value in Config()
        for key, field in type(value).model_fields.items()
        if key in ("save_dir", "dataset_path", "pretrained_checkpoint", "resume_from", "tokenizer")
    ]
    assert len(paths) == 8
    for key in paths:
        assert setting(f"{key}=~/x") == f"{tmp_path}/x"
    assert setting("chats.files=~/x") == {f"{tmp_path}/x": 1}
    assert setting("chats.valid_files={~/x: 2, y: 1}") == {f"{tmp_path}/x": 2, "y": 1}
    file = tmp_path / "c.yaml"
    file.write_text("sft: {save_dir: ~/x, resume_from: ~}\nchats: {files: [~/y]}")
    config = load_config("~/c.yaml")
    assert (config.sft.save_dir, config.sft.resume_from) == (f"{tmp_path}/x", None)
    assert config.chats.files == {f"{tmp_path}/y": 1}
    assert SFTSection(save_dir="~").save_dir == str(tmp_path)
    assert setting("sft.save_dir=$HOME/x") == "$HOME/x"


def test_an_unknown_home_folder_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="the home folder of a user 'nouser' is not known"):
        setting("sft.save_dir=~nouser/x")
    with pytest.raises(UserError, match="the home folder of a user 'nouser' is not known"):
        load_config("~nouser/c.yaml")
    monkeypatch.chdir(tmp_path)
    Path("~notes.txt").touch()  # an editor's backup
    assert path_text("~notes.txt") == "~notes.txt"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, and a user id without an entry
    with pytest.raises(UserError, match=r"the home folder \(set HOME\) is not known"):
        setting("sft.save_dir=~/x")


PATH_OPTIONS = {
    "prepare": ["folder", "source", "label", "tokenizer"],
    "inspect": ["config", "html", "tokenizer"],
    "pretrain": ["config"],
    "sft": ["config"],
    "quickstart": ["config", "base"],
    "recipe": ["recipe", "base", "output", "evaluate", "against"],
    "recipe check": ["recipes"],
    "recipe new": ["folder", "data", "base"],
    "chat": ["checkpoint"],
    "generate": ["checkpoint", "prompt_file", "why", "data", "json", "report", "prompts", "review", "checklist"],
    "evaluate": ["checkpoint", "against", "data", "json", "report", "prompts", "review", "checklist"],
    "serve": [],  # PATH or NAME=PATH: see tests/serve/test_models.py
    "export": ["checkpoint", "destination"],
    "merge": ["adapter", "out", "base"],
    "import": ["source", "folder", "tokenizer"],
    "doctor": ["config"],
    "selfcheck": ["checkpoint", "config"],
    "config": ["config"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_home_folder_expands_in_every_path_option(verb, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    actions = {action.dest: action for action in make_parser(verb)._actions}
    for name in PATH_OPTIONS[verb]:
        assert str(actions[name].type("~/x")) == f"{tmp_path}/x"
    for name, action in actions.items():  # a new option is not forgotten
        names_a_path = action.metavar in ("PATH", "FILE", "FOLDER", "SRC", "DST", "NAME", "FILE.html", "PAGE.html")
        assert not names_a_path or name in PATH_OPTIONS[verb], name


# Messages


def test_every_kind_of_mistake_is_described_in_our_words():
    given: list[dict[str, Any]] = [
        {section: {key: value}}
        for section, fields in Config()
        for key in type(fields).model_fields
        for value in (
            None,
            3,
            2.5,
            True,
            "x",
            [],
            {},
            [3],
            {"x": "y"},
            [{"x": 1}],
            object(),
            b"\xff",
            math.nan,
            10**400,
            -1,
            {3: 4},
        )
    ]
    given += [{"sft": 3}, {"x": 1}, {"data": {"curriculum": [{}]}}, {"data": {"curriculum": [{"share": 7, "x": 1}]}}]
    n_mistakes = 0
    for values in given:
        try:
            parse_config(values, "the test")
        except UserError as error:
            n_mistakes += 1
            check_message(str(error).partition(" (known here")[0])
    assert n_mistakes > 800


def test_a_message_lists_ten_problems_of_a_file_and_the_number_of_the_others(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("sft:\n" + "".join(f"  x{n}: 1\n" for n in range(500)))
    with pytest.raises(UserError, match=r"line 2: sft.x0 is not .*; line 11: sft.x9 is not .*; and 490 more\.$"):
        load_config(file)


@pytest.mark.parametrize("section", ["sft", "training", "model"])
def test_a_message_about_many_settings_is_short(tmp_path, section):
    file = tmp_path / "c.yaml"
    file.write_text(f"{section}:\n" + "".join(f"  an_unknown_setting_{n}: 1\n" for n in range(30)))
    with pytest.raises(UserError, match=r"and \d+ more") as error:
        load_config(file, [f"chats.x{n}=1" for n in range(30)])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "argv",
    [
        ["sft", "--config", ""],
        ["prepare", "--sample", "--folder", ""],
        ["generate", "--checkpoint", " ", "--prompt", "x"],
        ["evaluate", "--checkpoint", "runs/sft", "--json", ""],
        ["merge", "runs/lora", ""],
        ["inspect", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_refused_instead_of_the_working_directory(argv):
    with pytest.raises(UserError, match=r"^A path is empty"):
        parse(argv[0], argv[1:])


def test_a_file_among_the_overrides_is_one_sentence_that_says_which_setting_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"'chats.jsonl' is a file or folder; name chats with chats.files=chats.jsonl"):
        load_config(None, ["chats.jsonl"])
    with pytest.raises(UserError, match=r"'missing.jsonl' is not an override; write section.key=value"):
        load_config(None, ["missing.jsonl"])
