"""The data folder keeps its files, and SOURCE.json describes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.writable import require_space
from mini_chat_gpt.prepare.data_folder import drafts, present_files, read_source, write_source

TRAIN, VALID, HUB_TRAIN = (
    "TinyStoriesInstruct-train.txt",
    "TinyStoriesInstruct-valid.txt",
    "TinyStories-Instruct-train.txt",
)


@pytest.mark.parametrize("name", [TRAIN, HUB_TRAIN])
def test_both_spellings_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert present_files(tmp_path) == {"train": tmp_path / name}


def test_drafts_are_renamed_together_at_the_end(tmp_path: Path) -> None:
    with drafts(tmp_path / "new") as draft:
        (draft / TRAIN).write_text("one")
        (draft / VALID).write_text("two")
        assert present_files(tmp_path / "new") == {}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [TRAIN, VALID]


def test_drafts_are_deleted_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), drafts(tmp_path) as draft:
        (draft / TRAIN).write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_drafts_do_not_replace_a_file_that_was_added_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not replaced"), drafts(tmp_path) as draft:
        (draft / TRAIN).write_text("new")
        (draft / VALID).write_text("new")
        (tmp_path / VALID).write_text("own")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(VALID, "own")]


def test_a_source_is_read_back(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text("x")
    write_source(tmp_path, "own", {TRAIN: {"from": "y"}}, options={"a": 1})
    source = read_source(tmp_path)
    assert (source["source"], source["options"], source["files"][TRAIN]["from"]) == ("own", {"a": 1}, "y")
    assert len(source["files"][TRAIN]["sha256"]) == 64


def test_files_without_a_source_have_an_unknown_origin(tmp_path: Path) -> None:
    assert read_source(tmp_path)["source"] == "unknown"


@pytest.mark.parametrize("change", ["other size", "other file"])
def test_a_source_does_not_apply_to_other_files(tmp_path: Path, change: str) -> None:
    (tmp_path / TRAIN).write_text("x")
    write_source(tmp_path, "public", {TRAIN: {}})
    (tmp_path / (TRAIN if change == "other size" else VALID)).write_text("own")
    assert read_source(tmp_path)["source"] == "unknown"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"source": "public"}', '{"source": "own", "files": {"x": {"bytes": "3"}}}', "[" * 10_000]
)
def test_a_damaged_source_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "SOURCE.json").write_text(text)
    with pytest.raises(UserError, match=r"SOURCE.json is damaged.*delete it"):
        read_source(tmp_path)


@pytest.mark.parametrize("change", [{"source": "stolen"}, {"options": 3}, {"options": {"splits": 3}}, {"files": None}])
def test_values_that_no_version_writes_are_one_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "SOURCE.json").write_text(json.dumps({"source": "public", "files": {}} | change))
    with pytest.raises(UserError, match=rf"SOURCE.json is damaged: {next(iter(change))}.*delete it"):
        read_source(tmp_path)


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "a/b", "..", ""])
def test_a_source_that_lists_files_elsewhere_is_refused_because_the_sample_is_deleted_by_its_names(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "SOURCE.json").write_text(json.dumps({"source": "sample", "files": {name: {"bytes": 3}}}))
    with pytest.raises(UserError, match=r"is not the name of a file in this folder"):
        read_source(tmp_path)


def test_free_space_is_that_of_the_disk_where_the_folder_will_be(tmp_path: Path) -> None:
    assert require_space(tmp_path / "not" / "yet", 1) > 0
    with pytest.raises(UserError, match=r"needs .* TB, but the disk of .*yet has"):
        require_space(tmp_path / "not" / "yet", 10**15)
