"""Temporary files of killed processes are removed by the next process; those of living processes are not."""

import builtins
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mini_chat_gpt.common import files
from mini_chat_gpt.common.files import (
    atomic_folder,
    atomic_write_text,
    remove_leftovers,
    scratch_folder,
    temporary_name,
)

WRITE = """
import sys, time
from pathlib import Path
from mini_chat_gpt.common.files import atomic_folder, replacing
with atomic_folder(Path("tokens")) as draft, replacing(Path("a.txt")) as file:
    (draft / "ids.bin").write_bytes(bytes(100))
    file.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is writing a folder and a file in tmp_path."""
    with subprocess.Popen([sys.executable, "-c", WRITE], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def backdate(path: Path, seconds: float = 7200) -> None:
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - seconds,) * 2)


def test_what_a_killed_process_was_writing_is_removed(tmp_path, writer):
    assert len(names(tmp_path)) == 2
    writer.kill()
    writer.wait()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_an_ended_process_that_nobody_has_waited_for_is_not_alive(tmp_path, writer):
    os.kill(writer.pid, signal.SIGKILL)
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_a_living_process_is_writing_stays(tmp_path, writer, exclusive):
    before = names(tmp_path)
    remove_leftovers(tmp_path, exclusive)
    assert names(tmp_path) == before


def test_any_write_in_the_same_folder_removes_leftovers(tmp_path, writer):
    writer.kill()
    writer.wait()
    atomic_write_text(tmp_path / "new.txt", "new")
    assert names(tmp_path) == ["new.txt"]


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    mine = temporary_name(tmp_path / "x")
    machine, process, start, number = mine.name.split(".")[2].split("-")
    before = tmp_path / f".x.{machine}-{process}-{int(start) - 1}-{number}.tmp"
    for path in (mine, before):
        path.write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [mine.name]


def test_without_proc_the_process_id_decides(tmp_path, writer, monkeypatch):
    opened = builtins.open

    def hidden(path, *args, **more):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "hidden")
        return opened(path, *args, **more)

    monkeypatch.setattr(builtins, "open", hidden)
    before = names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before
    writer.kill()
    writer.wait()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_what_another_machine_is_writing_is_removed_only_at_rest_or_under_a_lock(tmp_path, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(files, "_this_machine", lambda: "0" * 8)
        first, second = temporary_name(tmp_path / "x"), temporary_name(tmp_path / "y")
    first.mkdir()
    (first / "a.bin").write_bytes(b"1")
    second.write_text("")
    remove_leftovers(tmp_path)
    assert first.exists()
    assert second.exists()
    backdate(first)
    (first / "b.bin").write_bytes(b"1")  # still being filled, although its first file is old
    remove_leftovers(tmp_path)
    assert first.exists()
    backdate(first)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [second.name]
    remove_leftovers(tmp_path, exclusive=True)
    assert names(tmp_path) == []


EARLIER = ["..tokens-0123456789abcdef.01234567.tmp", ".step-0000004.01234567.tmp", ".step-0000004.old", ".loss.png.tmp",
           ".config.yaml.01234567.tmp", ".draft-01234567", ".stories.txt.index.npz.01234567.tmp"]  # fmt: skip


def test_leftovers_of_earlier_versions_are_removed(tmp_path):
    for name in EARLIER:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(EARLIER)  # they may be in use
    for name in EARLIER:
        backdate(tmp_path / name)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


USERS = ["a.tmp", ".a.tmp", ".notes.txt.swp", ".x.0123-1-2-01234567.tmp", ".old", "step-0000004.old", ".tokens-0123456789abcdef",
         "draft.01234567-12-0-01234567.tmp", ".git", ".step-0000004"]  # fmt: skip


def test_files_of_the_user_stay(tmp_path):
    for name in USERS:
        (tmp_path / name).write_text("")
        backdate(tmp_path / name)
    remove_leftovers(tmp_path, exclusive=True)
    assert names(tmp_path) == sorted(USERS)


def test_a_link_is_removed_without_its_target(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("mine")
    link = tmp_path / ".step-0000004.old"
    link.symlink_to(tmp_path / "data")
    remove_leftovers(tmp_path, exclusive=True)
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == ["a.txt"]


@pytest.mark.parametrize("function", ["rmtree", "scandir", "unlink"])
def test_a_disk_that_refuses_is_not_an_error(tmp_path, monkeypatch, function):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    (tmp_path / ".step-0000004.old").mkdir()
    (tmp_path / ".loss.png.tmp").write_text("")
    monkeypatch.setattr(
        *{"rmtree": (files.shutil, "rmtree"), "scandir": (os, "scandir"), "unlink": (Path, "unlink")}[function], refuse
    )
    remove_leftovers(tmp_path, exclusive=True)
    remove_leftovers(tmp_path / "missing")


def test_a_name_of_255_bytes_has_a_temporary_name(tmp_path):
    for name in ("x" * 255, "😀" * 63):
        atomic_write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_a_scratch_folder_is_removed_also_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as folder:
        (folder / "a.txt").write_text("")
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []
    with monkeypatch.context() as killed:
        killed.setattr(files, "_start_time", lambda _: 1)
        killed.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        with scratch_folder():
            pass
    assert len(names(tmp_path)) == 1
    with scratch_folder() as folder:
        assert names(tmp_path) == [folder.name]


def test_folders_that_are_written_at_the_same_time_do_not_disturb_each_other(tmp_path):
    with atomic_folder(tmp_path / "a") as first, atomic_folder(tmp_path / "b") as second:
        (first / "x").write_text("1")
        (second / "x").write_text("2")
    assert names(tmp_path) == ["a", "b"]


def test_a_process_that_runs_is_known_by_its_start_and_one_of_unknown_start_by_its_number():
    start = files._start_time(os.getpid())
    assert files._is_running(os.getpid(), start)
    assert files._is_running(os.getpid(), 0)
    assert not files._is_running(os.getpid(), start + 1)
