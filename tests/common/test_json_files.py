"""The one reader of JSON files: bounds, declared structure, one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, parse_json, read_json, short


class Entry(JSONRecord):
    size: int
    name: str = "x"


class Listing(JSONRecord):
    files: dict[str, Entry]
    more: Any = None


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "listing.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_with_the_declared_structure_is_returned_as_that(tmp_path: Path) -> None:
    path = write(tmp_path, '{"files": {"a": {"size": 3, "later": [1]}}, "unknown": 1}')
    assert read_json(path, Listing, "use another") == Listing(files={"a": Entry(size=3)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid JSON"),
        ("[]", "the file must be a mapping of keys to values, not []"),
        ("null", "the file must be a mapping of keys to values, not null"),
        ('{"files": {"a": {"sizf": 3}}}', "files.a.size is missing"),
        ('{"files": {"a": {"size": "3"}}}', "files.a.size must be a whole number, not '3'"),
        ('{"files": {"a": {"size": 3.5}}}', "files.a.size must be a whole number, not 3.5"),
        ('{"files": {"a": {"size": true}}}', "files.a.size must be a whole number, not true"),
        ('{"files": [1]}', "files must be a mapping of keys to values, not [1]"),
        (b'{"files": \xff}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"files": {}, "more": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
        ('{"files": {"a": {"size": ' + "9" * 5000 + "}}}", "number out of range"),
        ('{"files": {}, "more": ' + "9" * 5000 + "}", "number out of range"),
        ('{"files": {"a": {"size": ' + "9" * 4000 + ".5}}}", "files.a.size must be a whole number"),
    ],
)
def test_any_other_content_is_one_sentence_with_file_key_and_remedy(
    text: str | bytes, expected: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DamagedJSON) as caught:
        read_json(path, Listing, "use another")
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: ")
    assert expected in message
    assert message.endswith("; use another.")
    assert len(message) < len(str(path)) + 250


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"files": {}, "more": "x" * 3_000_000}))
    assert read_json(path, Listing, "use another").files == {}
    with pytest.raises(DamagedJSON, match="is larger than the 1 MB that such a file can have; use another"):
        read_json(path, Listing, "use another", max_bytes=2**20)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", Listing, "use another")
    with pytest.raises(UserError, match=r"can't be read \(is a directory\); use another"):
        read_json(tmp_path, Listing, "use another")


def test_a_value_in_a_message_is_cut_even_if_it_refers_to_itself_a_million_times() -> None:
    nested: Any = ["x"]
    for _ in range(60):
        nested = [nested] * 9
    assert len(short(nested)) <= 60
    assert short(10**5000) == "a very large number" or len(short(10**5000)) <= 60


def test_text_from_elsewhere_names_its_source() -> None:
    with pytest.raises(DamagedJSON, match=r"^metrics\.jsonl, line 3 is damaged: size is missing; remove the line"):
        parse_json("{}", Entry, "metrics.jsonl, line 3", "remove the line")
