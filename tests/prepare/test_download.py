"""Downloads, resumed and interrupted in many ways, against a real local HTTP server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import CONTENT, FileServer, running
from tiny_disk import enlarge, tiny_disk

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.prepare.download import NoConnection, RetryPolicy, fetch, fetch_metadata, part_path, usable_part

QUICK = RetryPolicy(connect=2.0, read=0.3, attempts=3, pause=0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running() as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "stories.txt"


def leave_part(server: FileServer, target: Path, size: int) -> None:
    """Write what a download leaves behind if it is stopped after `size` bytes."""
    remote = fetch_metadata(server.url, QUICK)
    part_path(target).write_bytes(server.content[:size])
    metadata = {"url": remote.url, "size": remote.size, "mark": remote.version}
    Path(f"{part_path(target)}.json").write_text(json.dumps(metadata), encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_metadata_has_size_and_version_without_downloading_the_content(server: FileServer) -> None:
    remote = fetch_metadata(server.url, QUICK)
    assert (remote.size, remote.version, server.requests) == (len(CONTENT), '"v1"', [])


def test_a_download_leaves_the_complete_file_and_nothing_else(server: FileServer, target: Path) -> None:
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == [target.name]


def test_progress_ends_at_the_size_of_the_file(server: FileServer, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(fetch_metadata(server.url, QUICK), target, QUICK, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_a_part_is_continued_by_a_range_request(server: FileServer, target: Path) -> None:
    leave_part(server, target, 300_000)
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert server.requests == ["bytes=300000-"]
    assert target.read_bytes() == CONTENT


def test_a_complete_part_needs_no_further_request(server: FileServer, target: Path) -> None:
    leave_part(server, target, len(CONTENT))
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert server.requests == []
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_again(server: FileServer, target: Path) -> None:
    leave_part(server, target, 300_000)
    server.ranges = False
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["etag", "size", "no mark"])
def test_a_part_of_another_file_is_not_continued(server: FileServer, target: Path, change: str) -> None:
    leave_part(server, target, 300_000)
    server.content = CONTENT[::-1] if change != "size" else CONTENT[::-1] + b"more"
    server.etag = {"etag": '"v2"', "size": '"v1"', "no mark": None}[change]
    remote = fetch_metadata(server.url, QUICK)
    assert usable_part(target, remote) == 0
    fetch(remote, target, QUICK)
    assert target.read_bytes() == server.content


@pytest.mark.parametrize(
    "stored", ["", "[]", "3", '{"size": "x", "mark": []}', "[" * 10_000, '{"size": ' + "9" * 5000 + "}"]
)
def test_damaged_metadata_of_a_part_are_reported_and_the_download_starts_over(
    server: FileServer, target: Path, stored: str
) -> None:
    part_path(target).write_bytes(b"something else")
    part_path(target).with_name(f"{target.name}.part.json").write_text(stored)
    with pytest.warns(UserWarning, match=r"part.json is damaged.*the download starts over"):
        assert usable_part(target, fetch_metadata(server.url, QUICK)) == 0


def test_a_part_of_unknown_origin_is_not_continued(server: FileServer, target: Path) -> None:
    part_path(target).write_bytes(b"something else")
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changes_after_its_metadata_is_downloaded_in_its_new_version(
    server: FileServer, target: Path
) -> None:
    leave_part(server, target, 300_000)
    remote = fetch_metadata(server.url, QUICK)
    server.content, server.etag = CONTENT[::-1][:500_000], '"v2"'
    fetch(remote, target, QUICK)
    assert target.read_bytes() == server.content


def test_a_file_that_became_shorter_than_its_part_is_downloaded_again(server: FileServer, target: Path) -> None:
    leave_part(server, target, 300_000)
    remote = fetch_metadata(server.url, QUICK)
    server.content, server.etag = CONTENT[:1000], '"v2"'
    fetch(remote, target, QUICK)
    assert target.read_bytes() == server.content


def test_a_dropped_connection_is_resumed(server: FileServer, target: Path) -> None:
    server.drop_after = [400_000, 200_000]
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert server.requests == [None, "bytes=400000-", "bytes=600000-"]
    assert target.read_bytes() == CONTENT


def test_attempts_with_progress_are_not_limited(server: FileServer, target: Path) -> None:
    server.drop_after = [100_000] * 9
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert target.read_bytes() == CONTENT


def test_without_ranges_the_attempts_are_limited_and_the_part_is_kept(server: FileServer, target: Path) -> None:
    server.ranges, server.drop_after = False, [100_000] * 50
    with pytest.raises(UserError, match=r"stopped at 100,000 of 1,024,000 bytes.*kept in .*part.*run the same command"):
        fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert len(server.requests) == QUICK.attempts
    assert part_path(target).read_bytes() == CONTENT[:100_000]
    assert not target.exists()


def test_a_server_that_sends_less_than_stated_gives_no_final_file(server: FileServer, target: Path) -> None:
    server.announced_extra = 10
    with pytest.raises(UserError, match=r"stopped at 1,024,000 of 1,024,010 bytes"):
        fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert not target.exists()


def test_a_range_with_another_start_is_rejected(server: FileServer, target: Path) -> None:
    leave_part(server, target, 300_000)
    server.shift = 7
    with pytest.raises(UserError, match="another part than the requested one"):
        fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert part_path(target).read_bytes() == CONTENT[:300_000]


def test_a_server_that_stops_sending_is_abandoned_after_the_timeout(server: FileServer, target: Path) -> None:
    server.hang_after = [1000, 0]
    with pytest.raises(UserError, match="no response within the timeout"):
        fetch(fetch_metadata(server.url, QUICK), target, RetryPolicy(connect=2.0, read=0.1, attempts=2, pause=0.0))
    assert part_path(target).read_bytes() == CONTENT[:1000]


def test_a_server_that_never_responds_counts_as_no_connection() -> None:
    with FileServer() as deaf, pytest.raises(NoConnection, match="no response within the timeout"):
        fetch_metadata(deaf.url, RetryPolicy(connect=2.0, read=0.1))  # no thread serves: connections wait in the queue


def test_a_refused_connection_counts_as_no_connection() -> None:
    with FileServer() as gone:
        url = gone.url
    with pytest.raises(NoConnection, match="refused"):
        fetch_metadata(url, QUICK)


def test_a_missing_file_is_reported_with_its_status(server: FileServer) -> None:
    server.status = 404
    with pytest.raises(UserError, match="responds with 404 Not Found; check the address") as caught:
        fetch_metadata(server.url, QUICK)
    assert not isinstance(caught.value, NoConnection)


def test_a_busy_server_is_tried_again(server: FileServer, target: Path) -> None:
    remote = fetch_metadata(server.url, QUICK)
    server.status = 503
    with pytest.raises(UserError, match="responds with 503"):
        fetch(remote, target, QUICK)
    assert len(server.requests) == QUICK.attempts


@pytest.mark.parametrize("url", ["ftp://host/file", "TinyStories", "http://[", "http://host:port/x"])
def test_an_invalid_web_address_is_rejected(url: str) -> None:
    with pytest.raises(UserError, match=r"not a web address|can't be opened"):
        fetch_metadata(url, QUICK)


def test_the_hash_that_the_hub_states_is_checked(server: FileServer, target: Path) -> None:
    server.link = hashlib.sha256(b"other content").hexdigest()
    hub = server.url.replace("/file", "/hub")
    with pytest.raises(UserError, match="SHA-256"):
        fetch(fetch_metadata(hub, QUICK), target, QUICK)
    assert not target.exists()
    server.link = hashlib.sha256(CONTENT).hexdigest()
    fetch(fetch_metadata(hub, QUICK), target, QUICK)
    assert target.read_bytes() == CONTENT


def test_an_interrupt_keeps_the_part_for_the_next_call(server: FileServer, target: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(fetch_metadata(server.url, QUICK), target, QUICK, interrupt)
    assert usable_part(target, fetch_metadata(server.url, QUICK)) > 0
    fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert server.requests[1] is not None
    assert target.read_bytes() == CONTENT


def test_an_existing_file_is_not_replaced(server: FileServer, target: Path) -> None:
    target.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        fetch(fetch_metadata(server.url, QUICK), target, QUICK)
    assert target.read_text() == "mine"


def test_a_second_download_of_the_same_part_is_rejected(server: FileServer, target: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    messages = []

    def start_another(done: int, total: int | None) -> None:
        if not messages:
            with pytest.raises(UserError, match="Another process is downloading") as caught:
                fetch(fetch_metadata(server.url, QUICK), target, QUICK)
            messages.append(str(caught.value))

    fetch(fetch_metadata(server.url, QUICK), target, QUICK, start_another)
    assert len(messages) == 1
    assert target.read_bytes() == CONTENT


def test_a_full_disk_keeps_the_part_and_the_download_resumes_when_there_is_space(
    server: FileServer, tmp_path: Path
) -> None:
    with tiny_disk(tmp_path / "disk", kilobytes=512) as disk:
        target = disk / "stories.txt"
        with pytest.raises(UserError, match="no space left"):
            fetch(fetch_metadata(server.url, QUICK), target, QUICK)
        assert not target.exists()
        kept = part_path(target).stat().st_size
        assert 0 < kept < len(CONTENT)
        enlarge(disk, kilobytes=4096)
        fetch(fetch_metadata(server.url, QUICK), target, QUICK)
        assert server.requests[-1] == f"bytes={kept}-"
        assert target.read_bytes() == CONTENT
