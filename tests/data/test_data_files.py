"""Paths of the settings: files, folders, patterns, lists; names tell the splits; what is passed over is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.user_paths import split_paths
from mini_chat_gpt.config_file import load_config
from mini_chat_gpt.data.chat_files import read_conversations
from mini_chat_gpt.data.data_files import local_files, splits
from mini_chat_gpt.data.hub_data import chat_files


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"question": name, "answer": "Yes."}) + "\n")
    return folder


def names(path: str, folder: Path) -> tuple[list[str], list[str], list[str]]:
    found = local_files(path)
    parts = ([file.relative_to(folder).as_posix() for file in part] for part in (found.train, found.held_out))
    return *parts, list(found.passed_over)  # type: ignore[return-value]


def test_a_folder_stands_for_its_files_of_known_kinds(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a/c.json.gz", "a/d.PARQUET", "README.md", ".git/x.json", ".hidden.json", "state.json")
    (tmp_path / "e.csv").touch()
    os.mkfifo(tmp_path / "f.tsv")
    used, held_out, passed_over = names(str(tmp_path), tmp_path)
    assert (used, held_out) == (["a/c.json.gz", "a/d.PARQUET", "b.jsonl"], [])
    assert passed_over == ["README.md", "e.csv (empty)", "f.tsv (not a file)"]


@pytest.mark.parametrize(
    ("files", "train", "held_out", "rest"),
    [
        (["train.jsonl", "valid.jsonl", "test.jsonl"], "train.jsonl", "valid.jsonl", "test.jsonl"),
        (["train.jsonl", "test.jsonl", "more.jsonl"], "train.jsonl", "test.jsonl", "more.jsonl"),
        (["a.jsonl", "dev.jsonl"], "a.jsonl", "dev.jsonl", ""),
        (["data/train_sft-00000-of-1.parquet", "data/val-1.parquet"], "data/train_sft-00000-of-1.parquet", "data/val-1.parquet", ""),
        (["train/data-0.arrow", "validation/data-0.arrow"], "train/data-0.arrow", "validation/data-0.arrow", ""),
        (["Training Set.csv", "Held-out set.csv"], "Training Set.csv", "Held-out set.csv", ""),
        (["test.jsonl"], "test.jsonl", "", ""),
        (["latest.jsonl", "trainer.jsonl", "contest.jsonl"], "latest.jsonl trainer.jsonl contest.jsonl", "", ""),
    ],
)  # fmt: skip
def test_names_tell_the_splits(files: list[str], train: str, held_out: str, rest: str) -> None:
    assert [" ".join(part) for part in splits(files)] == [train, held_out, rest]


def test_patterns(tmp_path: Path) -> None:
    write(tmp_path, "a1.jsonl", "a2.jsonl", "b.jsonl", "notes.md", "deep/c.json", "[x].jsonl", "train/d.csv")
    assert names(f"{tmp_path}/a?.jsonl", tmp_path)[0] == ["a1.jsonl", "a2.jsonl"]
    assert names(f"{tmp_path}/**/*.json", tmp_path)[0] == ["deep/c.json"]
    assert names(f"{tmp_path}/[x].jsonl", tmp_path)[0] == ["[x].jsonl"]  # a name, as there is such a file
    assert names(f"{tmp_path}/d*", tmp_path)[0] == ["deep/c.json"]
    assert names(f"{tmp_path}/[bn]*", tmp_path) == (["b.jsonl"], [], ["notes.md"])
    with pytest.raises(UserError, match=r"No file matches .*/\*.parquet; check"):
        local_files(f"{tmp_path}/*.parquet")


def test_folders_without_chats_and_links_to_nothing_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no files of chats \(.*\): it has no data at all; name"):
        local_files(str(tmp_path / "empty"))
    (tmp_path / "empty" / "notes.md").write_text("x")
    with pytest.raises(UserError, match=r"has no files of chats \(.*\): it has notes.md; name"):
        local_files(str(tmp_path / "empty"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").symlink_to("nowhere.jsonl")
    for path in ("data", "data/a.jsonl", "data/*.jsonl"):
        with pytest.raises(UserError, match=r"a.jsonl is a link to nowhere.jsonl, which does not exist"):
            local_files(str(tmp_path / path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b/c.jsonl")
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"a.jsonl can't be read \(Permission denied\)"):
        list(read_conversations(tmp_path))
    (tmp_path / "b").chmod(0)
    with pytest.raises(UserError, match=r"b can't be read \(Permission denied\); check its permissions"):
        local_files(str(tmp_path))
    (tmp_path / "b").chmod(0o700)


def test_a_saved_data_set_without_one_of_its_files_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, "train/a.arrow", "test/b.arrow")
    (tmp_path / "train" / "state.json").write_text(
        '{"_data_files": [{"filename": "a.arrow"}, {"filename": "b.arrow"}]}'
    )
    with pytest.raises(UserError, match=r"train lacks b.arrow, which its state.json names; get the data set again"):
        local_files(str(tmp_path))
    for text in ("{}", "[", '{"_data_files": 3}'):  # of another program
        (tmp_path / "train" / "state.json").write_text(text)
        assert names(str(tmp_path), tmp_path)[:2] == (["train/a.arrow"], ["test/b.arrow"])


def test_a_training_split_without_data_is_not_replaced_by_another(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "test.jsonl")
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"has no files of chats .*: it has train.jsonl \(empty\); name"):
        local_files(str(tmp_path))


def test_chats_of_a_folder_have_the_file_in_their_place(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "valid.jsonl", "notes.md")
    found = list(read_conversations(tmp_path))
    assert [(c.path, c.place, c.held_out) for c in found] == [
        (str(tmp_path), "train.jsonl, line 1", False),
        (str(tmp_path), "valid.jsonl, line 1", True),
    ]
    note = chat_files(tmp_path).note("data")
    assert note == "data: trained on: train.jsonl; held out: valid.jsonl; not used: notes.md."
    assert (
        chat_files(tmp_path).note("data", splits=False)
        == "data: trained on: train.jsonl; not used: valid.jsonl, notes.md."
    )
    assert chat_files(tmp_path / "train.jsonl").note("data/train.jsonl") is None


def test_commas_separate_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/x")
    assert split_paths("a, b.jsonl,hub:org/c,") == ["a", "b.jsonl", "hub:org/c"]
    assert load_config(None, ["chats.files=a.jsonl,~/b.jsonl"]).chats.files == {"a.jsonl": 1, "/home/x/b.jsonl": 1}
    write(tmp_path, "a,b.jsonl")
    assert split_paths("a,b.jsonl") == ["a,b.jsonl"]


def test_folders_and_patterns_next_to_a_config_file_are_found(tmp_path: Path) -> None:
    write(tmp_path, "data/a.jsonl", "b.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text("chats: {files: 'data, *.jsonl, hub:org/x'}\n")
    expected = {f"{tmp_path}/data": 1, f"{tmp_path}/*.jsonl": 1, "hub:org/x": 1}
    assert load_config(config, []).chats.files == expected


def test_the_folder_of_a_run_is_not_data(tmp_path):
    for name in ("run.json", "metrics.jsonl", "result.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is a run or a model, which has no chats"):
        local_files(str(tmp_path))
