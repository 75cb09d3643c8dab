"""Files and folders are complete or absent, and later damage is detected."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import (
    append_text,
    atomic_folder,
    atomic_write_text,
    exchange,
    read_file,
    readable_disk_errors,
    user_cache,
)
from mini_chat_gpt.common.manifest import find_damage, read_manifest


def fill(folder: Path) -> Path:
    with atomic_folder(folder) as draft:
        (draft / "a.txt").write_text("hello")
        (draft / "b.bin").write_bytes(bytes(1000))
    return folder


def test_a_folder_gets_all_its_files_and_a_manifest(tmp_path):
    folder = fill(tmp_path / "x")
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "b.bin", "manifest.json"]
    assert find_damage(folder) is None


def test_a_failure_inside_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "x") as draft:
        (draft / "a.txt").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(tmp_path):
    folder = fill(tmp_path / "x")
    with pytest.raises(UserError, match="exists already"), atomic_folder(folder):
        pass
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "b.bin").unlink(), "b.bin is missing"),
        (lambda f: (f / "b.bin").write_bytes(bytes(999)), "b.bin has 999 bytes instead of 1000"),
        (lambda f: (f / "b.bin").write_bytes(bytes(999) + b"\1"), "content of b.bin has changed"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json can't be read"),
    ],
)
def test_damage_is_described(tmp_path, harm, words):
    folder = fill(tmp_path / "x")
    harm(folder)
    assert words in find_damage(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]", "null", "1", '"files"', "{}", '{"files": null}', '{"files": []}', '{"files": {"a.txt": null}}',
        '{"files": {"a.txt": {"size": 5, "sha25v": "x"}}}', '{"files": {"a.txt": {"size": "5", "sha256": "x"}}}',
        '{"files": {"a.txt": {"size": 1e999, "sha256": "x"}}}', "[" * 100_000, "1" * 100_000, "", "\0", "{" * 50,
    ],
)  # fmt: skip
def test_a_manifest_of_another_structure_is_damage(tmp_path, manifest):
    folder = fill(tmp_path / "x")
    (folder / "manifest.json").write_text(manifest)
    assert find_damage(folder).startswith("its manifest.json can't be read: it ")


@pytest.mark.parametrize("name", ["../x/a.txt", "/etc/passwd", "", ".", "part/../a.txt", "a\\b", "C:a", "a\0", "a//b"])
def test_a_name_that_leads_out_of_the_folder_is_damage(tmp_path, name):
    folder = fill(tmp_path / "x")
    entry = {"size": 5, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
    assert "is not a relative path within the folder" in find_damage(folder)


def test_a_flipped_bit_of_a_manifest_is_damage(tmp_path):
    folder = fill(tmp_path / "x")
    original = (folder / "manifest.json").read_bytes()
    manifest = read_manifest(folder)
    for bit in range(0, 8 * len(original), 11):  # sampled
        changed = bytearray(original)
        changed[bit // 8] ^= 1 << bit % 8
        (folder / "manifest.json").write_bytes(changed)
        assert find_damage(folder) or read_manifest(folder) == manifest  # such as another kind of whitespace


def test_a_manifest_of_november_2026_has_no_hash_of_its_own(tmp_path):
    folder = fill(tmp_path / "x")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"files": content["files"]}))
    assert find_damage(folder) is None
    assert read_manifest(folder).written is None


def test_without_a_home_folder_the_cache_is_a_temporary_one(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert user_cache().parent == tmp_path


def test_the_manifest_covers_subfolders(tmp_path):
    with atomic_folder(tmp_path / "x") as draft:
        (draft / "part").mkdir()
        (draft / "part" / "a.txt").write_text("hello")
    assert find_damage(tmp_path / "x") is None
    (tmp_path / "x" / "part" / "a.txt").unlink()
    assert find_damage(tmp_path / "x") == "part/a.txt is missing"


def test_a_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")

    def refuse(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"Can't write .*a\.txt: no space left on device"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_disk_errors_become_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is a directory"), readable_disk_errors(tmp_path):
        open(tmp_path, "w")


@pytest.mark.parametrize("cache", ["file", "file/below", "/dev/null", "/dev/null/below"])
def test_a_cache_folder_that_cannot_be_written_is_replaced_by_one_that_can(tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    assert user_cache() == tmp_path / ".cache" / "mini_chat_gpt"
    (tmp_path / ".cache").write_text("")
    assert user_cache().parent == Path(tempfile.gettempdir())


def test_a_cache_folder_that_does_not_exist_yet_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    assert user_cache() == tmp_path / "a" / "b" / "mini_chat_gpt"


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_two_folders_exchange_their_names(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "was").write_text(name)
    exchange(Path("a"), Path("b"))
    assert Path("a", "was").read_text() == "b"
    assert Path("b", "was").read_text() == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_pipe_is_not_read_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="Can't read"):
        read_file(tmp_path / "pipe")


def test_every_file_and_folder_is_flushed_to_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    with atomic_folder(tmp_path / "x") as draft:
        (draft / "part").mkdir()
        (draft / "part" / "a.txt").write_text("hello")
        assert not flushed
    below = {str(Path(path).relative_to(draft)) for path in flushed if Path(path).is_relative_to(draft)}
    assert below == {".", "part", "part/a.txt", "manifest.json"}
    assert flushed[-1] == str(tmp_path)


def test_text_is_appended_to_a_file_that_exists_or_not(tmp_path):
    for text in ("a\n", "b\n"):
        append_text(tmp_path / "new" / "log.txt", text)
    assert (tmp_path / "new" / "log.txt").read_text() == "a\nb\n"
