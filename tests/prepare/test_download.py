"""Downloads from a plain web address, resumed and interrupted in many ways, against a real local HTTP server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import CONTENT, FileServer, running
from rich.console import Console
from tiny_disk import enlarge, tiny_disk

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.hub_errors import NoConnection
from mini_chat_gpt.prepare import download
from mini_chat_gpt.prepare.download import describe

OUT = Console(quiet=True)
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(download, "PAUSE", 0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running() as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "stories.txt"


def fetch(server: FileServer, target: Path) -> None:
    download.download(describe(server.url), target, OUT)


def leave_part(server: FileServer, target: Path, size: int) -> None:
    """Write what a download leaves behind if it is stopped after `size` bytes."""
    describe(server.url).part(target).write_bytes(server.content[:size])


def test_the_server_is_asked_for_size_and_version(server: FileServer) -> None:
    remote = describe(server.url)
    assert (remote.size, remote.version) == (len(CONTENT), '"v1"')


def test_a_download_leaves_the_complete_file_and_nothing_else(server: FileServer, target: Path) -> None:
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_part_is_continued_by_a_range_request(server: FileServer, target: Path) -> None:
    leave_part(server, target, 5000)
    fetch(server, target)
    assert server.requests[-1] == "bytes=5000-"
    assert target.read_bytes() == CONTENT


def test_a_complete_part_needs_no_further_request(server: FileServer, target: Path) -> None:
    leave_part(server, target, len(CONTENT))
    fetch(server, target)
    assert server.requests == []
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_again(server: FileServer, target: Path) -> None:
    leave_part(server, target, 5000)
    server.ranges = False
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["version", "size"])
def test_a_part_of_another_version_is_not_continued(server: FileServer, target: Path, change: str) -> None:
    leave_part(server, target, 5000)
    if change == "version":
        server.etag = '"v2"'
    server.content = CONTENT[::-1] if change == "version" else CONTENT[7:]
    fetch(server, target)
    assert target.read_bytes() == server.content


def test_without_a_version_a_part_is_not_continued(server: FileServer, target: Path) -> None:
    server.etag = None
    leave_part(server, target, 5000)
    server.content = CONTENT[::-1]
    fetch(server, target)
    assert target.read_bytes() == server.content


def test_a_file_that_changes_during_the_download_is_one_sentence(server: FileServer, target: Path) -> None:
    remote = describe(server.url)
    server.etag = '"v2"'
    with pytest.raises(UserError, match="has changed during the download; run the same command again"):
        download.download(remote, target, OUT)
    assert not target.exists()


def test_a_dropped_connection_is_resumed(server: FileServer, target: Path) -> None:
    server.drop_after = [300_000, 5]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=300005-"


def test_attempts_with_progress_are_not_limited(server: FileServer, target: Path) -> None:
    server.drop_after = [10] * 20
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["drops", "too short", "another range", "hangs", "busy"])
def test_attempts_without_progress_are_limited_and_the_part_is_kept(server: FileServer, target: Path, way: str) -> None:
    leave_part(server, target, 5000)
    remote = describe(server.url)
    match way:
        case "drops":
            server.drop_after = [0] * 20
        case "too short":
            server.content = CONTENT[:5000]
            server.announced_extra = len(CONTENT) - 5000
            server.ranges = False
        case "another range":
            server.shift = 100
        case "hangs":
            server.hang_after = [0]
        case "busy":
            server.status = 503
    with pytest.raises(UserError, match="the same command resumes it from"):
        download.download(remote, target, OUT)
    assert remote.part(target).stat().st_size == 5000
    assert not target.exists()


def test_no_connection_is_told_from_a_refusal(server: FileServer) -> None:
    with pytest.raises(NoConnection, match=r"Can't reach .*; check the network, or the address after --url"):
        describe("http://127.0.0.1:9/x")
    server.status = 404
    with pytest.raises(UserError, match="404") as refused:
        describe(server.url)
    assert not isinstance(refused.value, NoConnection)


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "file:///etc/passwd", "stories", "http://", "http://[::1", "http://a b/"]
)
def test_an_invalid_web_address_is_rejected(url: str) -> None:
    with pytest.raises(UserError):
        describe(url)


def test_a_full_disk_keeps_the_part_and_the_download_resumes_when_there_is_space(
    server: FileServer, tmp_path: Path
) -> None:
    with tiny_disk(tmp_path / "disk", kilobytes=512) as disk:
        target = disk / "stories.txt"
        with pytest.raises(UserError, match="no space left"):
            fetch(server, target)
        enlarge(disk, kilobytes=4096)
        fetch(server, target)
        assert target.read_bytes() == CONTENT


def test_an_existing_file_is_not_replaced(server: FileServer, target: Path) -> None:
    target.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        fetch(server, target)
    assert target.read_text() == "mine"


def test_a_second_download_of_the_same_part_is_rejected(server: FileServer, target: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    part = describe(server.url).part(target)
    # A lock belongs to a process, so another one must hold it.
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, part],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    holder.stdout.readline()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="Another process is downloading"):
        fetch(server, target)
    holder.communicate("\n")
    fetch(server, target)
    assert target.read_bytes() == CONTENT
