"""Download one large file over HTTP with resume. Received data are kept, and the final name always has the complete file.

During the download the file is called NAME.part, and NAME.part.json has the size and the version (ETag) that the server
stated. A later call resumes with an HTTP range request, or starts over if the server has another version or does not support
ranges. The file is renamed to NAME after its size was checked, and its SHA-256 if the server states it, as the Hugging Face
hub does.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors, write_json
from mini_chat_gpt.common.json_files import DamagedJSON, JSONRecord, read_json
from mini_chat_gpt.common.manifest import sha256_of
from mini_chat_gpt.common.terminal import format_duration

BLOCK = 1 << 18
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # temporary errors
Progress = Callable[[int, "int | None"], None]  # (bytes so far, total bytes if known)


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts in seconds, and how often to try again before giving up."""

    connect: float = 10.0
    read: float = 30.0
    attempts: int = 5
    """Consecutive failed attempts without any new byte after which a download ends."""
    pause: float = 1.0
    """Before the second attempt; doubled before each further one, up to 16 times this value."""


RETRY_POLICY = RetryPolicy()


@dataclass(frozen=True)
class Remote:
    """A file as its server describes it; None if the server does not say."""

    url: str
    size: int | None
    version: str | None
    """Changes with the content: ETag, or the date of the last modification."""
    sha256: str | None = None


class NoConnection(UserError):
    """The server can't be reached: no network, unknown host name, connection refused, or timeout."""


class _Interrupted(Exception):
    """A network error. The received data are kept, and another attempt may succeed."""


class _Changed(Exception):
    """The server has a different version than the one being downloaded."""


def part_path(target: Path) -> Path:
    """The path of `target` during the download."""
    return target.with_name(target.name + ".part")


def fetch_metadata(url: str, policy: RetryPolicy = RETRY_POLICY) -> Remote:
    """Ask the server about a file without downloading it.

    Raises NoConnection if it can't be reached, UserError if it does not have the file.
    """
    try:
        with _open(url, {"Range": "bytes=0-0"}, policy) as response:  # unlike HEAD, works with redirects and mirrors
            return _describe(url, response)
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(url, error)) from error
    except _Interrupted as error:
        raise NoConnection(f"Can't reach {url}: {error}; check the network, or choose a mirror with --url.") from error


def remove_finished_metadata(folder: Path) -> None:
    """Delete each NAME.part.json without its NAME.part: a process was killed just after it had renamed the complete file."""
    for path in folder.glob("*.part.json"):
        if not path.with_suffix("").exists():
            with suppress(OSError):
                path.unlink()


class _Stored(JSONRecord):
    """The structure of NAME.part.json."""

    size: int | None
    mark: str | None


def usable_part(target: Path, remote: Remote) -> int:
    """The number of bytes of `remote` that the .part has already; 0 if they are of another version."""
    part = part_path(target)
    try:
        stored = read_json(_metadata_path(part), _Stored, "the download starts over")
        same = stored.mark is not None and (stored.mark, stored.size) == (remote.version, remote.size)
        size = part.stat().st_size
    except OSError:
        return 0
    except DamagedJSON as error:
        warnings.warn(str(error), stacklevel=2)
        return 0
    return size if same and (remote.size is None or size <= remote.size) else 0


def fetch(
    remote: Remote, target: Path, policy: RetryPolicy = RETRY_POLICY, on_progress: Progress | None = None
) -> None:
    """Download `remote` to `target`, which must not exist, resuming its .part if there is one.

    Raises UserError if the network or the disk fails. The .part then keeps the received data, also if the process is
    interrupted or killed.
    """
    if os.path.lexists(target):
        raise UserError(f"{target} exists already and is not overwritten; move it away to download it again.")
    part = part_path(target)
    with readable_disk_errors(target), open(part, "ab", buffering=0) as file:
        _lock(file, part)
        for _ in range(3):
            try:
                _fill(file, remote, target, policy, on_progress or (lambda *_: None))
                break
            except _Changed:
                file.truncate(0)
                remote = fetch_metadata(remote.url, policy)
        else:
            raise UserError(f"{remote.url} keeps changing during the download; try again later.")
        os.fsync(file.fileno())
    _check(remote, part)
    with readable_disk_errors(target):
        os.replace(part, target)
        _metadata_path(part).unlink(missing_ok=True)


def _fill(file: BinaryIO, remote: Remote, target: Path, policy: RetryPolicy, on_progress: Progress) -> None:
    """Retry until `file` has all of `remote`. Raises UserError after too many attempts without progress."""
    part = part_path(target)
    if not usable_part(target, remote):
        file.truncate(0)
    write_json(_metadata_path(part), {"url": remote.url, "size": remote.size, "mark": remote.version})
    largest, failures = _size(file), 0
    while remote.size is None or _size(file) < remote.size:
        try:
            _receive(file, remote, policy, on_progress)
            return
        except _Interrupted as error:
            failures = failures + 1 if _size(file) <= largest else 1
            largest = max(largest, _size(file))
            if failures >= policy.attempts:
                raise UserError(
                    f"The download of {remote.url} stopped at {_size(file):,} of {_known(remote.size)} bytes: {error}; "
                    f"they are kept in {part}, run the same command again to resume."
                ) from error
            time.sleep(policy.pause * 2 ** min(failures - 1, 4))


def _receive(file: BinaryIO, remote: Remote, policy: RetryPolicy, on_progress: Progress) -> None:
    """Request the missing bytes and append them to `file`. Raises _Interrupted if the connection ends early."""
    n_present = _size(file)
    try:
        response = _open(remote.url, {"Range": f"bytes={n_present}-"} if n_present else {}, policy)
    except urllib.error.HTTPError as error:
        if error.code in BUSY:
            raise _Interrupted(f"the server responds with {error.code} {error.reason}") from error
        if error.code == 416:  # nothing left at this offset
            if fetch_metadata(remote.url, policy) != remote:
                raise _Changed from error
            raise _Interrupted(f"the server states {_known(remote.size)} bytes, but has fewer") from error
        raise UserError(_refusal(remote.url, error)) from error
    with response:
        now = _describe(remote.url, response)
        if _differ(now.size, remote.size) or _differ(now.version, remote.version):
            raise _Changed
        if response.status != 206:  # no support for ranges: the server sends the whole file
            file.truncate(0)
        elif _range_start(response.headers) != n_present:
            raise _Interrupted("the server sends another part than the requested one")
        while block := _read(response):
            _write(file, block)
            on_progress(_size(file), remote.size)
    if remote.size is not None and _size(file) != remote.size:
        raise _Interrupted("the connection was closed too early")


def _check(remote: Remote, part: Path) -> None:
    """Raise UserError unless the .part is the complete file. If it is damaged, the next call starts over."""
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        problem = f"has {size:,} bytes instead of {remote.size:,}"
    elif remote.sha256 is not None and sha256_of(part) != remote.sha256:
        problem = "does not have the SHA-256 that the server states"
    else:
        return
    _metadata_path(part).unlink(missing_ok=True)
    raise UserError(f"{part} {problem}: it was damaged in transfer; run the same command to download it again.")


class DownloadProgress:
    """Displays the progress of a download with rate and time left: a bar in a terminal, otherwise a line every few seconds.

    Use it as a context manager, and pass the object itself to `fetch` as on_progress.
    """

    def __init__(
        self, console: Console, name: str, total: int | None, done: int = 0, every_seconds: float = 10.0
    ) -> None:
        self.console, self.name, self.every = console, name, every_seconds
        self.first, self.done = done, done
        self.started = self.printed = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = RichProgress(*columns, console=console, transient=True) if console.is_terminal else None
        self.task = self.bar.add_task(name, total=total, completed=done) if self.bar else TaskID(0)

    def __enter__(self) -> DownloadProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        """Update the display: `done` of `total` bytes are received."""
        if done < self.done:
            self.console.print(f"{self.name}: the server starts over from the beginning", markup=False)
            self.first = 0
        self.done = done
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif (now := time.monotonic()) - self.printed >= self.every:
            self.printed = now
            rate = (done - self.first) / (now - self.started)
            time_left = f", {format_duration((total - done) / rate)} left" if total and rate > 0 else ""
            of_total = f" of {total / 1e6:,.0f}" if total else ""
            self.console.print(
                f"{self.name}: {done / 1e6:,.0f}{of_total} MB, {rate / 1e6:.1f} MB/s{time_left}", markup=False
            )


# HTTP


class _TimeoutConnection:
    """Mixin for http.client's connections: one timeout for connecting, another for each read after that."""

    read_timeout = 30.0

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(self.read_timeout)  # type: ignore[attr-defined]


class _Handlers(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https URLs with separate timeouts for connecting and reading."""

    def __init__(self, read_timeout: float) -> None:
        super().__init__()
        attributes = {"read_timeout": read_timeout}
        self._plain: Any = type("TimeoutHTTP", (_TimeoutConnection, http.client.HTTPConnection), attributes)
        self._secure: Any = type("TimeoutHTTPS", (_TimeoutConnection, http.client.HTTPSConnection), attributes)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._plain, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._secure, request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and stores the SHA-256 that the Hugging Face hub states when it redirects."""

    linked: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.linked = headers.get("X-Linked-ETag") or self.linked
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str], policy: RetryPolicy) -> Any:
    """Return the response with status 200 or 206. Raises HTTPError for others, _Interrupted if there is none."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is not a web address; it must begin with https:// or http://.")
    redirects = _Redirects()
    opener = urllib.request.build_opener(_Handlers(policy.read), redirects)
    with _network_errors():
        request = urllib.request.Request(url, headers={"User-Agent": "mini-chat-gpt", **headers})
        response = opener.open(request, timeout=policy.connect)
    response.linked = redirects.linked
    return response


def _read(response: Any) -> bytes:
    with _network_errors():
        return bytes(response.read1(BLOCK))


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"The address can't be opened: {error}.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise _Interrupted("no response within the timeout") from error
        message = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise _Interrupted(message.rstrip(".") or type(reason).__name__) from error


def _describe(url: str, response: Any) -> Remote:
    headers: Message = response.headers
    partial = response.status == 206
    length = headers.get("Content-Range", "").rpartition("/")[2] if partial else headers.get("Content-Length")
    linked = (response.linked or "").strip('"')
    sha256 = linked if re.fullmatch("[0-9a-f]{64}", linked) else None
    version = sha256 or headers.get("ETag") or headers.get("Last-Modified")
    return Remote(url, int(length) if length and length.isdigit() else None, version, sha256)


def _range_start(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    remedy = "try again later" if error.code in BUSY else "check the address, or choose another with --url"
    return f"{url} can't be downloaded: the server responds with {error.code} {error.reason}; {remedy}."


# Helpers


def _metadata_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _differ(a: object, b: object) -> bool:
    """Whether two values are known and different."""
    return a is not None and b is not None and a != b


def _write(file: BinaryIO, block: bytes) -> None:
    """Write all of `block`. A single write to an unbuffered file may be partial, above all if the disk is nearly full."""
    remaining = memoryview(block)
    with readable_disk_errors(Path(str(file.name))):
        while remaining:
            remaining = remaining[file.write(remaining) :]


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _known(size: int | None) -> str:
    return "an unknown number of" if size is None else f"{size:,}"


def _lock(file: BinaryIO, part: Path) -> None:
    """Lock the .part until the file is closed. Raises UserError if another process is downloading it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another process is downloading {part} right now; wait for it, or stop it first.") from None
