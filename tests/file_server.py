"""A real HTTP server on this machine, which can be configured to misbehave as real servers do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server import serving

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes, several blocks


class FileServer(ThreadingHTTPServer):
    """Serves one content at every address, or that of `files` by name; its other attributes say how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.files: dict[str, bytes] = {}
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.status: int | None = None  # answer everything with this
        self.drop_after: list[int] = []  # bytes sent before the connection is closed, one entry used up per request
        self.hang_after: list[int] = []  # likewise before it falls silent; the last entry is for all further requests
        self.announced_extra = 0  # bytes promised beyond those sent
        self.shift = 0  # number of bytes by which ranges start too late
        self.hung = threading.Event()
        self.requests: list[str | None] = []  # the Range header of each request for content
        self.names: list[str] = []  # the names of the requested files

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        self.close_connection = True
        asked = self.headers.get("Range")
        if asked != "bytes=0-0":  # the question of `look`
            server.requests.append(asked)
        name = self.path.rpartition("/")[2]
        server.names.append(name)
        if server.status is not None or (server.files and name not in server.files):
            self.send_error(server.status or 404)
            return
        self.send_content(asked)

    def send_content(self, asked: str | None) -> None:
        server = self.server
        body = server.files.get(self.path.rpartition("/")[2], server.content)
        total = len(body)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "") if server.ranges else None
        if match:
            first, last = int(match[1]) + server.shift * (asked != "bytes=0-0"), int(match[2] or total - 1)
            if first >= total:
                self.send_error(416)
                return
            body = body[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{total + server.announced_extra}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body) + server.announced_extra))
        self.end_headers()
        if asked != "bytes=0-0":
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        server = self.server
        if server.drop_after:
            body = body[: server.drop_after.pop(0)]
        if not server.hang_after:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: server.hang_after[0]])
            del server.hang_after[: len(server.hang_after) > 1]
            server.hung.wait(10)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[FileServer]:
    """A server that answers while the block lasts."""
    with serving(FileServer()) as server:
        yield server
        server.hung.set()
