"""Download a file from a plain web address, resumed after an interruption; files of the hub are `common/hub.py`'s.

Until it is complete, the file is called NAME.VERSION.part, where VERSION identifies the server's version of it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import lock_file, readable_disk_errors
from mini_chat_gpt.common.hub_errors import NoConnection
from mini_chat_gpt.common.terminal import StepProgress

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
ATTEMPTS = 5  # without a new byte
TIMEOUT, PAUSE = 30.0, 1.0  # seconds


@dataclass(frozen=True)
class Remote:
    """A file as its server describes it; None if the server doesn't say."""

    url: str
    size: int | None
    version: str | None

    def part(self, target: Path) -> Path:
        """The path of `target` while this version of it is incomplete."""
        digest = hashlib.sha256(f"{self.url} {self.size} {self.version}".encode()).hexdigest()
        return target.with_name(f"{target.name}.{digest[:8]}.part")


def describe(url: str) -> Remote:
    """Ask the server about a file. Raises NoConnection if it can't be reached, UserError if it doesn't have the file."""
    try:
        with _open(url, "0-0") as response:  # unlike HEAD, works with redirects and mirrors
            return Remote(url, _size(response), _version(response))
    except ConnectionError as error:
        raise NoConnection(f"Can't reach {url}: {error}; check the network, or the address after --url.") from None


def download(remote: Remote, target: Path, out: Console) -> None:
    """Download a file to `target`, and resume what an earlier call has received. Raises UserError; what was received is kept."""
    part = remote.part(target)
    if os.path.lexists(target):
        raise UserError(f"{target} exists already and is not replaced; move it away to download it again.")
    with readable_disk_errors(part), open(part, "ab") as file:
        if not lock_file(file):
            raise UserError(f"Another process is downloading {part} right now; wait for it, or stop it first.")
        if remote.version is None:  # what is there may be of another version
            _empty(file)
        failures, begin = 0, file.tell()
        with StepProgress(out, f"{target.name}, MB", begin // 10**6, (remote.size or 0) // 10**6) as bar:
            while not (finished := file.tell() == remote.size):
                before = file.tell()
                try:
                    _receive(remote, file, bar)
                    finished = remote.size in (None, file.tell())
                    problem = "the connection was closed too early"
                except ConnectionError as error:
                    problem = str(error)
                if finished:
                    break
                failures = failures + 1 if file.tell() <= before else 1
                if failures == ATTEMPTS:
                    raise UserError(
                        f"The download of {remote.url} stopped ({problem}); the same command resumes it from {part}."
                    )
                time.sleep(PAUSE * failures)
        os.fsync(file.fileno())
    os.replace(part, target)


def _receive(remote: Remote, file: IO[bytes], bar: StepProgress) -> None:
    """Append what is missing. Raises ConnectionError for an error of the network."""
    begin, started = file.tell(), time.monotonic()
    with _open(remote.url, f"{begin}-" if begin else None) as response:
        if _version(response) != remote.version:
            raise UserError(f"{remote.url} has changed during the download; run the same command again.")
        if response.status != 206:  # the server doesn't send parts
            begin = _empty(file)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            raise ConnectionError("the server sends another part than the requested one")
        while block := _read(response):
            file.write(block)
            rate = (file.tell() - begin) / 1e6 / max(time.monotonic() - started, 1e-3)
            bar.update(file.tell() // 10**6, f"{rate:.1f} MB/s")


def _open(url: str, part: str | None = None) -> Any:
    """The response of the server. Raises ConnectionError, or UserError if the server refuses."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is not a web address; it must begin with https:// or http://.")
    try:
        headers = {"User-Agent": "mini-chat-gpt", **({"Range": f"bytes={part}"} if part else {})}
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code in BUSY:
            raise ConnectionError(f"the server answers with {error.code} {error.reason}") from None
        raise UserError(f"{url} can't be downloaded: {error.code} {error.reason}; check the address.") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"{url!r} can't be opened: {error}.") from None
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(str(getattr(error, "reason", error)).rstrip(".") or type(error).__name__) from None


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(1 << 18))
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(str(error) or type(error).__name__) from None


def _empty(file: IO[bytes]) -> int:
    file.seek(0)
    file.truncate()
    return 0


def _size(response: Any) -> int | None:
    partial = response.status == 206
    length = (
        response.headers.get("Content-Range", "").rpartition("/")[2]
        if partial
        else response.headers.get("Content-Length", "")
    )
    return int(length) if length.isdigit() else None


def _version(response: Any) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")
