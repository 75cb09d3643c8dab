"""One big file over HTTP, resumable: what has arrived is never lost, and the final name always holds the whole file.

While it comes a file is called NAME.part, and beside it NAME.part.json says what it is a part of: the size and the mark
(ETag) that the server gave. A later call goes on from there by an HTTP range request, unless the server has another
file by now or doesn't do ranges; then it starts again. NAME appears by renaming, after the size was checked, and the
SHA-256 too where the server names it, as the Hugging Face hub does.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors, sha256_of, write_json
from mini_chat_gpt.common.terminal import format_duration

BLOCK = 1 << 18
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that another try may better
Progress = Callable[[int, "int | None"], None]  # (bytes so far, bytes in all if known)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to try again before giving up."""

    connect: float = 10.0
    read: float = 30.0
    attempts: int = 5
    """Failed tries in a row, without a single byte gained, after which a download ends."""
    pause: float = 1.0
    """Before the second try; doubled before each further one, up to 16 times it."""


PATIENCE = Patience()


@dataclass(frozen=True)
class Remote:
    """A file as its server describes it; None is what the server doesn't say."""

    url: str
    size: int | None
    mark: str | None
    """Changes when the content does: ETag, or the date of the last change."""
    sha256: str | None = None


class NoConnection(UserError):
    """The server can't be reached at all: no network, unknown name, refused, no answer in time."""


class _Broken(Exception):
    """The network failed us; what has arrived so far stands, another try may help."""


class _Changed(Exception):
    """The server has another file than the one we were fetching."""


def part_path(target: Path) -> Path:
    """Where `target` is while it is coming."""
    return target.with_name(target.name + ".part")


def look(url: str, patience: Patience = PATIENCE) -> Remote:
    """Ask the server about a file without fetching it.

    Raises NoConnection when it can't be reached, UserError when it answers that there is no such file.
    """
    try:
        with _open(url, {"Range": "bytes=0-0"}, patience) as response:  # unlike HEAD, survives redirections and mirrors
            return _describe(url, response)
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(url, error)) from error
    except _Broken as error:
        raise NoConnection(f"Can't reach {url}: {error}; check the network, or name a mirror by --url.") from error


def usable_part(target: Path, remote: Remote) -> int:
    """How many bytes of `remote` lie in the .part already; 0 when they belong to another file."""
    part = part_path(target)
    try:
        known = json.loads(_facts_path(part).read_text(encoding="utf-8"))
        same = known["mark"] is not None and (known["mark"], known["size"]) == (remote.mark, remote.size)
        size = part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return size if same and (remote.size is None or size <= remote.size) else 0


def fetch(remote: Remote, target: Path, patience: Patience = PATIENCE, on_progress: Progress | None = None) -> None:
    """Bring `remote` to `target`, which must not exist, going on from its .part if there is one.

    Raises UserError when the network or the disk gives out; the .part then keeps what has come, as it does when the
    process is interrupted or killed.
    """
    if os.path.lexists(target):
        raise UserError(f"{target} exists already and is not overwritten; move it away to download it again.")
    part = part_path(target)
    with readable_disk_errors(target), open(part, "ab", buffering=0) as file:
        _lock(file, part)
        for _ in range(3):
            try:
                _fill(file, remote, target, patience, on_progress or (lambda *_: None))
                break
            except _Changed:
                file.truncate(0)
                remote = look(remote.url, patience)
        else:
            raise UserError(f"{remote.url} keeps changing while it is downloaded; try again later.")
        os.fsync(file.fileno())
    _check(remote, part)
    with readable_disk_errors(target):
        os.replace(part, target)
        _facts_path(part).unlink(missing_ok=True)


def _fill(file: BinaryIO, remote: Remote, target: Path, patience: Patience, on_progress: Progress) -> None:
    """Try until all of `remote` is in `file`; raises UserError after too many tries that gained nothing."""
    part = part_path(target)
    if not usable_part(target, remote):
        file.truncate(0)
    write_json(_facts_path(part), {"url": remote.url, "size": remote.size, "mark": remote.mark})
    most, failures = _size(file), 0
    while remote.size is None or _size(file) < remote.size:
        try:
            _receive(file, remote, patience, on_progress)
            return
        except _Broken as error:
            failures = failures + 1 if _size(file) <= most else 1
            most = max(most, _size(file))
            if failures >= patience.attempts:
                raise UserError(
                    f"The download of {remote.url} stopped at {_size(file):,} of {_known(remote.size)} bytes: {error}; "
                    f"they are kept in {part}, run the same command again to go on."
                ) from error
            time.sleep(patience.pause * 2 ** min(failures - 1, 4))


def _receive(file: BinaryIO, remote: Remote, patience: Patience, on_progress: Progress) -> None:
    """One request for what is missing, written to the end of `file` as it comes; raises _Broken if that ends early."""
    have = _size(file)
    try:
        response = _open(remote.url, {"Range": f"bytes={have}-"} if have else {}, patience)
    except urllib.error.HTTPError as error:
        if error.code in BUSY:
            raise _Broken(f"the server answers {error.code} {error.reason}") from error
        if error.code == 416:  # it has nothing there
            if look(remote.url, patience) != remote:
                raise _Changed from error
            raise _Broken(f"the server promises {_known(remote.size)} bytes and has fewer") from error
        raise UserError(_refusal(remote.url, error)) from error
    with response:
        now = _describe(remote.url, response)
        if _differ(now.size, remote.size) or _differ(now.mark, remote.mark):
            raise _Changed
        if response.status != 206:  # no ranges here: the whole file comes again
            file.truncate(0)
        elif _range_start(response.headers) != have:
            raise _Broken("the server sends another part than the one it was asked for")
        while block := _read(response):
            _write(file, block)
            on_progress(_size(file), remote.size)
    if remote.size is not None and _size(file) != remote.size:
        raise _Broken("the connection was closed too early")


def _check(remote: Remote, part: Path) -> None:
    """Raise UserError unless the .part is the whole file; a damaged one is disowned: the next call starts again."""
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        wrong = f"has {size:,} bytes instead of {remote.size:,}"
    elif remote.sha256 is not None and sha256_of(part) != remote.sha256:
        wrong = "doesn't have the SHA-256 that its server names"
    else:
        return
    _facts_path(part).unlink(missing_ok=True)
    raise UserError(f"{part} {wrong}: it was damaged on its way; run the same command to download it afresh.")


class DownloadProgress:
    """Shows how a download goes, with rate and time left: a bar in a terminal, else a line every few seconds.

    Use as a context manager, and the object itself as `fetch`'s on_progress.
    """

    def __init__(
        self, console: Console, name: str, total: int | None, done: int = 0, every_seconds: float = 10.0
    ) -> None:
        self.console, self.name, self.every = console, name, every_seconds
        self.first, self.done = done, done
        self.started = self.said = time.monotonic()
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
        """`done` of `total` bytes are here."""
        if done < self.done:
            self.console.print(f"{self.name}: the server sends it from the beginning again", markup=False)
            self.first = 0
        self.done = done
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif (now := time.monotonic()) - self.said >= self.every:
            self.said = now
            rate = (done - self.first) / (now - self.started)
            left = f", {format_duration((total - done) / rate)} left" if total and rate > 0 else ""
            whole = f" of {total / 1e6:,.0f}" if total else ""
            self.console.print(f"{self.name}: {done / 1e6:,.0f}{whole} MB, {rate / 1e6:.1f} MB/s{left}", markup=False)


# What goes over the wire


class _PatientConnection:
    """Mixed into http.client's connections: one time-out until connected, another for each wait after that."""

    read_timeout = 30.0

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(self.read_timeout)  # type: ignore[attr-defined]


class _Handlers(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https addresses by patient connections."""

    def __init__(self, read_timeout: float) -> None:
        super().__init__()
        facts = {"read_timeout": read_timeout}
        self._plain: Any = type("PatientHTTP", (_PatientConnection, http.client.HTTPConnection), facts)
        self._secure: Any = type("PatientHTTPS", (_PatientConnection, http.client.HTTPSConnection), facts)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._plain, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._secure, request)


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections and remembers what the Hugging Face hub says about the file when it sends us elsewhere."""

    linked: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.linked = headers.get("X-Linked-ETag") or self.linked
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str], patience: Patience) -> Any:
    """The server's answer with status 200 or 206; HTTPError for others, _Broken when there is none."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is no address to download from; it must begin with https:// or http://.")
    redirections = _Redirections()
    opener = urllib.request.build_opener(_Handlers(patience.read), redirections)
    with _network_errors():
        request = urllib.request.Request(url, headers={"User-Agent": "mini-chat-gpt", **headers})
        response = opener.open(request, timeout=patience.connect)
    response.linked = redirections.linked
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
            raise _Broken("no answer within the time-out") from error
        words = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise _Broken(words.rstrip(".") or type(reason).__name__) from error


def _describe(url: str, response: Any) -> Remote:
    headers: Message = response.headers
    partial = response.status == 206
    length = headers.get("Content-Range", "").rpartition("/")[2] if partial else headers.get("Content-Length")
    linked = (response.linked or "").strip('"')
    sha256 = linked if re.fullmatch("[0-9a-f]{64}", linked) else None
    mark = sha256 or headers.get("ETag") or headers.get("Last-Modified")
    return Remote(url, int(length) if length and length.isdigit() else None, mark, sha256)


def _range_start(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    remedy = "try again later" if error.code in BUSY else "check the address, or name another by --url"
    return f"{url} can't be downloaded: the server answers {error.code} {error.reason}; {remedy}."


# Small things


def _facts_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _differ(one: object, other: object) -> bool:
    """Whether two facts contradict each other; an unknown one contradicts nothing."""
    return one is not None and other is not None and one != other


def _write(file: BinaryIO, block: bytes) -> None:
    """All of `block`: an unbuffered file may take less at a time, above all when the disk is nearly full."""
    left = memoryview(block)
    with readable_disk_errors(Path(str(file.name))):
        while left:
            left = left[file.write(left) :]


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _known(size: int | None) -> str:
    return "an unknown number of" if size is None else f"{size:,}"


def _lock(file: BinaryIO, part: Path) -> None:
    """Two downloads writing the same .part would mix; the second one is refused. Released when the file is closed."""
    try:
        import fcntl
    except ImportError:  # Windows: no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another process is downloading {part} right now; wait for it, or stop it first.") from None
