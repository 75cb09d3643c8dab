"""The first things that people type wrong: the error says what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_names import hub_name
from mini_chat_gpt.common.user_paths import nearest_path, path_text
from mini_chat_gpt.data.data_files import local_files
from mini_chat_gpt.tinystories.records import find_instruct_file, find_text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("verb", "words", "sentence"),
    [
        ("sft", ["--data", "chats.jsonl"], "sft takes no '--data'; that is the setting chats.files=…"),
        ("sft", ["--output_dir=x"], "sft takes no '--output_dir=x'; that is the setting sft.save_dir=…"),
        ("sft", ["--lr", "1e-4"], "sft takes no '--lr'; that is the setting sft.learning_rate=…"),
        ("inspect", ["chats.jsonl", "--checkpoint", "x"], "that is the setting sft.pretrained_checkpoint=…"),
        ("inspect", ["--chats", "chats.jsonl"], "that is the setting chats.files=…"),
        ("pretrain", ["--data", "novel.txt"], "that is the setting pretrain.dataset_path=…"),
        ("pretrain", ["--seed", "1"], "that is the setting system.seed=…"),
        ("pretrain", ["--what"], "pretrain takes no '--what'; `mini-chat-gpt pretrain --help` lists what it takes."),
        ("sft", ["--skip_bad"], "sft takes no '--skip_bad'; did you mean '--skip-bad'?"),
        ("prepare", ["chats.jsonl"], "chats need no preparation: `mini-chat-gpt inspect FILE` shows them."),
        ("prepare", ["chats.files=chats.jsonl"], "chats need no preparation"),
        ("inspect", ["chat.jsonl"], "There is no chat.jsonl; did you mean 'chats.jsonl'?"),
        ("inspect", ["nothing"], "There is no nothing; give chat files, text, a folder with stories, or section.key"),
        (
            "inspect",
            ["https://example.com/a.jsonl"],
            "is an address, not a path; download the file, and give its path.",
        ),
    ],
)
def test_a_command_says_what_to_type_instead(verb: str, words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parse(verb, words)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("https://huggingface.co/datasets/org/name", "write hub:org/name."),
        ("https:/huggingface.co/org/name/tree/main", "write hub:org/name."),  # as `Path` writes it
        (
            "https://huggingface.co/datasets/org/name/resolve/main/a/b.jsonl?download=true",
            "write hub:org/name/a/b.jsonl.",
        ),
        ("hf://datasets/org/name", "write hub:org/name."),
        ("file:///home/me/chats.jsonl", "write the path without file://."),
        ("s3://bucket/chats.jsonl", "download the file, and give its path."),
    ],
)
def test_an_address_is_no_path(address: str, instead: str) -> None:
    with pytest.raises(UserError) as error:
        hub_name(address, "dataset")
    assert str(error.value).endswith(instead)
    assert hub_name("C:\\Users\\me\\chats.jsonl", "dataset") is None


def test_a_missing_path_is_compared_with_its_neighbors() -> None:
    Path("data").mkdir()
    Path("data/train.jsonl").touch()
    assert nearest_path("chats.json") == "; did you mean 'chats.jsonl'?"
    assert nearest_path("data/trian.jsonl") == "; did you mean 'data/train.jsonl'?"
    Path("mail.jsonl.txt").touch()  # Windows hides the second ending
    assert nearest_path("mail.jsonl") == "; did you mean 'mail.jsonl.txt'?"
    assert nearest_path("dta/train.jsonl") == "; did you mean 'data'?"
    assert nearest_path("long.jsonl") == nearest_path("pictures") == nearest_path("/no/such/place") == ""


@pytest.mark.parametrize("path", ["a\nb.jsonl", "chats.jsonl\n", "a\rb"])
def test_a_path_with_a_line_break_is_one_line(path: str) -> None:
    with pytest.raises(UserError, match="is not a path: it has a line break; several paths have commas") as error:
        path_text(path)
    assert "\n" not in str(error.value)


def test_a_file_of_a_folder_with_a_line_break_in_its_name_is_one_line() -> None:
    Path("data").mkdir()
    Path("data/a\nb.jsonl").write_text("{}", encoding="utf-8")
    for path in ("data", "data/*.jsonl"):
        with pytest.raises(UserError, match="has a line break in its name; rename it") as error:
            local_files(path)
        assert "\n" not in str(error.value)


def test_missing_stories_are_only_prepared_in_the_usual_place() -> None:
    with pytest.raises(UserError, match=r"There is no text at missing\.txt; check the path"):
        find_text("missing.txt", "train")
    with pytest.raises(UserError, match="There is no text at TinyStories; `mini-chat-gpt prepare` gets the stories"):
        find_text("./TinyStories", "train")


def test_chats_named_as_stories_say_where_they_belong() -> None:
    with pytest.raises(UserError, match="has chats, not stories; train on them with chats"):
        find_instruct_file("chats.jsonl", "valid")
