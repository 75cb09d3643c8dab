"""The tokens of a text file: made once, verified before they are used, and made again if they are damaged."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from commands import environment
from rich.console import Console
from tiny import TEXTS, tiny_tokenizer
from tiny_disk import enlarge, tiny_disk

from mini_chat_gpt.common import cached_folder, files
from mini_chat_gpt.common.cached_folder import DamagedFolder
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.manifest import write_manifest
from mini_chat_gpt.data.token_file import TokenFile, tokenize_file

TOKENIZER = tiny_tokenizer()
WANTED = [[TOKENIZER.document_id, *TOKENIZER.encode(text)] for text in TEXTS * 4]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "stories.txt"
    path.write_text("the texts are given", encoding="utf-8")
    return path


def tokens(path: Path) -> tuple[TokenFile, str]:
    """The token file, and what was printed."""
    output = StringIO()
    file = tokenize_file(path, iter(TEXTS * 4), TOKENIZER, Console(file=output, width=300))
    return file, output.getvalue()


def as_lists(file: TokenFile) -> list[list[int]]:
    return [document.tolist() for document in file]


def change(name: str, new: Callable[[bytes], bytes], consistent: bool = False) -> Callable[[Path], None]:
    """Damage that replaces the content of a file, with the manifest that fits it if `consistent`."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(new((folder / name).read_bytes()))
        if consistent:
            (folder / "verified.json").unlink()
            write_manifest(folder)

    return damage


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def npy(values: list[int], dtype: str = "int64") -> bytes:
    output = BytesIO()
    np.save(output, np.array(values, dtype=dtype))
    return output.getvalue()


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGE = {
    "ids overwritten": change("ids.bin", lambda data: bytes(len(data))),
    "a bit of the ids": change("ids.bin", flip(30)),
    "ids cut": change("ids.bin", lambda data: data[:-6]),
    "ids cut in the middle of one": change("ids.bin", lambda data: data[:-1]),
    "ids longer": change("ids.bin", lambda data: data + data),
    "no ids": change("ids.bin", lambda _: b""),
    "a bit of the offsets' header": change("offsets.npy", flip(20)),
    "a bit of the offsets": change("offsets.npy", flip(140)),
    "offsets cut": change("offsets.npy", lambda data: data[:100]),
    "offsets are a pickle": change("offsets.npy", lambda _: pickle.dumps([0, 1])),
    "offsets of objects": change("offsets.npy", lambda data: data.replace(b"'<i8'", b"'|O' ")),
    "a huge shape": change("offsets.npy", lambda data: data.replace(b"(13,)", b"(9999999999999,)")),
    "offsets don't increase": change("offsets.npy", lambda _: npy([0, 90, 20, 293])),
    "meta is a list": change("meta.json", lambda _: b"[1]"),
    "meta is deep": change("meta.json", lambda _: b"[" * 100_000),
    "another dtype": change("meta.json", lambda data: data.replace(b"uint16", b"uint32")),
    "an unknown dtype": change("meta.json", lambda data: data.replace(b"uint16", b"object")),
    "a bit of the manifest": change("manifest.json", flip(30)),
    "the manifest is a number": change("manifest.json", lambda _: b"9" * 5000),
    "the manifest lists nothing": change("manifest.json", lambda _: b'{"files": {}}'),
    "the record of the verification is damaged too": lambda folder: (
        change("ids.bin", flip(9))(folder),
        change("verified.json", flip(9))(folder),
    ),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no offsets": lambda folder: (folder / "offsets.npy").unlink(),
    "no folder but a file": as_file,
    "consistent, but ids that the tokenizer lacks": change("ids.bin", lambda data: b"\xff\xff" + data[2:], True),
    "consistent, but another order of offsets": change(
        "offsets.npy", lambda data: data[:136] + data[144:152] + data[136:144] + data[152:], True
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_tokens_are_named_and_made_again(damage: Callable[[Path], object], path: Path) -> None:
    file, printed = tokens(path)
    assert as_lists(file) == WANTED
    assert not printed
    damage(file.folder)
    again, printed = tokens(path)
    assert as_lists(again) == WANTED
    (line,) = printed.splitlines()
    assert str(file.folder) in line
    assert "is damaged" in line
    assert "made again" in line
    assert tokens(path)[1] == ""
    assert sorted(entry.name for entry in path.parent.iterdir()) == [file.folder.name, path.name]


def test_a_change_is_noticed_although_its_time_was_set_back(path: Path) -> None:
    ids = tokens(path)[0].folder / "ids.bin"
    stat = ids.stat()
    change("ids.bin", flip(3))(ids.parent)
    os.utime(ids, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    file, printed = tokens(path)
    assert "ids.bin has changed" in printed
    assert as_lists(file) == WANTED


def test_intact_tokens_are_hashed_once_and_again_after_a_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tokens(path)[0].folder
    hashed: list[Path] = []
    monkeypatch.setattr(cached_folder, "find_damage", hashed.append)
    tokens(path)
    assert not hashed
    shutil.copytree(folder, path.parent / "copy")
    shutil.rmtree(folder)
    (path.parent / "copy").rename(folder)
    assert as_lists(tokens(path)[0]) == WANTED
    tokens(path)
    assert hashed == [folder]


def test_tokens_of_earlier_versions_without_a_record_of_their_verification_are_used(path: Path) -> None:
    folder = tokens(path)[0].folder
    (folder / "verified.json").unlink()
    inode = (folder / "ids.bin").stat().st_ino
    assert tokens(path)[1] == ""
    assert (folder / "ids.bin").stat().st_ino == inode


def refuse(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the file system refuse new names in a folder. (Permissions mean nothing to root, who may run the tests.)"""

    def refusing(function: Callable[..., None]) -> Callable[..., None]:
        def call(path: Path, *more: object, **named: object) -> None:
            if Path(path).parent == folder:
                raise OSError(number, os.strerror(number), str(path))
            function(path, *more, **named)

        return call

    monkeypatch.setattr(os, "rename", refusing(os.rename))
    monkeypatch.setattr(os, "mkdir", refusing(os.mkdir))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_in_a_folder_that_cannot_be_written_damaged_tokens_are_replaced_by_those_in_the_users_cache(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tokens(path)[0].folder
    change("ids.bin", flip(5))(damaged)
    refuse(path.parent, monkeypatch, number)
    file, printed = tokens(path)
    assert as_lists(file) == WANTED
    assert file.folder.parent == files.user_cache()
    damage, fallback = printed.splitlines()
    assert str(damaged) in damage
    assert str(file.folder) in fallback
    assert tokens(path)[0].folder == file.folder


def test_another_process_may_make_the_same_tokens_at_the_same_time(path: Path) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS * 4
        tokens(path)  # the other process is faster

    assert as_lists(tokenize_file(path, texts(), TOKENIZER)) == WANTED
    assert len(list(path.parent.iterdir())) == 2


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tiny_disk(tmp_path / "disk", 64) as disk:
        path = disk / "stories.txt"
        path.write_text("x")
        with pytest.raises(UserError, match="no space left"):
            tokenize_file(path, (TEXTS[0] for _ in range(10_000)), TOKENIZER)
        assert [entry.name for entry in disk.iterdir()] == ["stories.txt"]
        enlarge(disk, 10_000)
        assert len(tokenize_file(path, (TEXTS[0] for _ in range(10_000)), TOKENIZER)) == 10_000


def test_what_a_killed_process_left_is_removed_by_the_next_start(path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tiny import tiny_tokenizer
from mini_chat_gpt.data.token_file import tokenize_file
def texts():
    yield "a text"
    os.kill(os.getpid(), signal.SIGKILL)
tokenize_file(Path({str(path)!r}), texts(), tiny_tokenizer())
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert any(entry.name.endswith(".tmp") for entry in path.parent.iterdir())
    tokens(path)
    assert not any(entry.name.endswith(".tmp") for entry in path.parent.iterdir())


def test_tokens_that_do_not_fit_together_are_not_opened(path: Path) -> None:
    folder = tokens(path)[0].folder
    (folder / "meta.json").write_text(json.dumps({"dtype": "uint64"}))
    with pytest.raises(DamagedFolder, match=r"meta\.json.*delete it"):
        TokenFile(folder)


def test_a_worker_that_was_not_forked_opens_the_files_itself(path: Path) -> None:
    file = tokens(path)[0]
    sent = pickle.dumps(file)
    assert len(sent) < 500
    assert as_lists(pickle.loads(sent)) == WANTED


def test_a_mistake_in_a_text_names_the_file_and_the_document(path: Path) -> None:
    texts = ["fine", "a" + " " * 1_200_000 + "b"]
    with pytest.raises(UserError, match=rf"{path}, document 2: .*1,200,000 white-space characters in a row"):
        tokenize_file(path, texts, TOKENIZER)
