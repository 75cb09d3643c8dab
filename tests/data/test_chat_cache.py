"""Chats are read and rendered once; large files into a cache, which is verified before it is used and made again if it is damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_tokenizer

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import write_manifest
from mini_chat_gpt.config import ChatsSection, DataSection
from mini_chat_gpt.data import chat_cache
from mini_chat_gpt.data.batching import Example
from mini_chat_gpt.data.chat_cache import render_files
from mini_chat_gpt.data.rendered_chats import RenderedChats

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "chats.jsonl"
    turns = [
        [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": f"Hello {n}!"}] for n in range(40)
    ]
    turns[7] *= 9  # too long
    path.write_text("\n".join(json.dumps({"messages": one}) for one in turns))
    return path


def rendered(
    path: Path, seq_len: int = 50, data: dict[str, object] | None = None, **chats: object
) -> tuple[RenderedChats, str]:
    """The chats, and what was printed."""
    output = StringIO()
    section = ChatsSection(files={str(path): 1.0}, **chats)
    found = render_files(
        section, DataSection(seq_len=seq_len, **(data or {})), TOKENIZER, Console(file=output, width=300)
    )
    return found, output.getvalue()


@pytest.fixture
def large(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same file, which counts as too large for rendering it in memory."""
    monkeypatch.setattr(chat_cache, "IN_MEMORY", 500)
    return path


def examples(chats: RenderedChats) -> list[tuple[list[int], list[bool], str]]:
    every = (chats.example(number, "chats") for number in range(len(chats.examples)))
    return [(one.ids.tolist(), one.loss_mask.tolist(), one.origin) for one in every]


def test_a_small_file_needs_no_cache(path: Path) -> None:
    chats, _ = rendered(path)
    assert chats.folder is None
    assert [entry.name for entry in path.parent.iterdir()] == ["chats.jsonl"]
    assert chats.text(7)[0] == "line 8"
    assert "it is cut into" in chats.text(7)[1]


def test_a_large_file_is_rendered_once_with_the_same_result(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, _ = rendered(path)
    monkeypatch.setattr(chat_cache, "IN_MEMORY", 500)
    first, _ = rendered(path)
    assert first.folder is not None
    assert first.folder.parent == path.parent
    monkeypatch.setattr(chat_cache, "read_conversations", None)  # a later start reads no chat
    later, printed = rendered(path)
    assert printed == ""
    for chats in (first, later, pickle.loads(pickle.dumps(later)), pickle.loads(pickle.dumps(small))):
        assert examples(chats) == examples(small)
        assert (chats.chats == small.chats).all()
        assert [chats.text(n) for n in range(40)] == [small.text(n) for n in range(40)]
    assert [len(one[0]) for one in examples(small)] == small.lengths(np.arange(len(small.examples))).tolist()
    assert [Example(np.array(ids), np.array(mask), 1.0, "").n_trained for ids, mask, _ in examples(small)] == (
        small.examples["n_trained"].tolist()
    )


CHANGES: dict[str, Callable[[Path], dict[str, object]]] = {
    "the length": lambda _: {"seq_len": 60},
    "what is trained": lambda _: {"train": "last"},
    "what is done with long chats": lambda _: {"too_long": "drop"},
    "the system message": lambda _: {"data": {"system_message": "Be kind."}},
    "the time of the file": lambda path: os.utime(path, (1, 1)) or {},
    "the file, with its time": lambda path: replaced(path) or {},
}


def replaced(path: Path) -> None:
    stat = path.stat()
    text = path.read_text().replace("Hello 3!", "Hullo 3!")
    path.unlink()
    (path.parent / "other").write_text("takes the inode")
    path.write_text(text)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_cache_is_of_everything_that_the_chats_depend_on(change, large: Path) -> None:
    first, _ = rendered(large)
    later, _ = rendered(large, **change(large))
    assert later.folder != first.folder


def test_a_cache_of_a_file_that_has_changed_is_removed_by_the_next_one(large: Path) -> None:
    folders = [rendered(large)[0].folder, rendered(large, too_long="drop")[0].folder]
    assert all(folder.is_dir() for folder in folders)
    os.utime(large, (1, 1))
    new = rendered(large)[0].folder
    assert [*large.parent.glob(".chats-*")] == [new]


@pytest.mark.parametrize("settings", [{"valid_share": 0.5}, {"stories": 0.2}])
def test_what_is_held_out_is_decided_later(settings, large: Path) -> None:
    assert rendered(large)[0].folder == rendered(large, **settings)[0].folder


def flip(name: str, place: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])

    return damage


def cut(name: str, n: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-n])


def consistent(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def damaged(folder: Path) -> None:
        damage(folder)
        (folder / "verified.json").unlink()
        write_manifest(folder)

    return damaged


DAMAGE = {
    **{f"a bit of {name}": flip(name, 3) for name in (*chat_cache.FILES, "manifest.json")},
    **{f"{name} cut": cut(name, 5) for name in chat_cache.FILES},
    "ids cut, with a manifest": consistent(cut("ids.bin", 4)),
    "an unknown id, with a manifest": consistent(lambda folder: flip_high(folder)),
    "no ids": lambda folder: (folder / "ids.bin").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "meta of another structure": lambda folder: (folder / "meta.json").write_text("[1]"),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("no folder")),
}


def flip_high(folder: Path) -> None:
    data = (folder / "ids.bin").read_bytes()
    (folder / "ids.bin").write_bytes(b"\xff\xff" + data[2:])


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_named_and_made_again(damage, large: Path) -> None:
    first, _ = rendered(large)
    wanted, folder = examples(first), first.folder
    del first
    damage(folder)
    again, printed = rendered(large)
    assert examples(again) == wanted
    (line,) = printed.splitlines()
    assert f"{folder} is damaged" in line
    assert "The rendered chats of chats.jsonl are made again." in line
    assert rendered(large)[1] == ""


def test_an_interrupted_start_leaves_nothing_and_can_be_repeated(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = examples(rendered(large)[0])
    shutil.rmtree(next(large.parent.glob(".chats-*")))
    read = chat_cache.read_conversations

    def interrupted(*arguments):
        for number, conversation in enumerate(read(*arguments)):
            if number == 35:
                assert any(entry.name.endswith(".tmp") for entry in large.parent.iterdir())
                raise KeyboardInterrupt
            yield conversation

    with monkeypatch.context() as patched:
        patched.setattr(chat_cache, "read_conversations", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rendered(large)
    assert [entry.name for entry in large.parent.iterdir()] == ["chats.jsonl"]
    assert examples(rendered(large)[0]) == wanted


def test_bad_records_are_an_error_before_the_rest_is_rendered_or_are_skipped_and_remembered(large: Path) -> None:
    large.write_text(large.read_text() + '\n{"prompt": 1}\n')
    with pytest.raises(UserError, match="line 41"):
        rendered(large)
    assert [entry.name for entry in large.parent.iterdir()] == ["chats.jsonl"]
    notes = [rendered(large, skip_bad=True)[0].meta.notes for _ in range(2)]
    assert notes[0] == notes[1]
    assert "records skipped: 1\n  line 41: it has" in notes[0][0]


def test_progress_has_rate_and_time_left(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_cache, "_SECONDS_BETWEEN_REPORTS", 0)
    first = rendered(large)[1].splitlines()[0]
    assert first.startswith("Rendering chats.jsonl: 1 chats, ")
    assert "MB/s, about 0:0" in first
    assert first.endswith(" left")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.jsonl can't be read"):
        rendered(tmp_path / "no.jsonl")
