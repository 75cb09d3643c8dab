"""A server on this machine with the part of the Hugging Face hub's API that is used here. It can misbehave."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from local_server import serving

from mini_chat_gpt.common import hub

LARGE = 20_000  # bytes; larger files are stored elsewhere, as with Git LFS


@dataclass
class Repository:
    """One model or data set: the files of each commit, and which commit each branch is."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files and return its hash."""
        content = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(content).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit


class HubServer(ThreadingHTTPServer):
    """`repositories` by "models/org/name" or "datasets/org/name"; the other attributes say how it misbehaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.token: str | None = None  # the only valid one; with others the answer is 401
        self.status: int | None = None  # the answer to everything
        self.drop_after: list[int] = []  # bytes of a large file before the connection is closed, one entry per request
        self.cut = 0  # bytes that large files lack
        self.flipped = False  # one byte of large files is another one
        self.html = False  # answer as a hotel's network does
        self.requests: list[str] = []  # "METHOD path"
        self.ranges: list[str | None] = []  # of the requests for large files
        self.agents: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "models") -> Repository:
        """A repository with one commit on the branch main."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository())
        repository.push(files)
        return repository

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        server = self.server
        self.close_connection = True
        server.requests.append(f"{self.command} {self.path}")
        server.agents.add(self.headers.get("User-Agent", ""))
        if server.html:
            self.send(200, b"<html>Please log in.</html>", {"Content-Type": "text/html"})
        elif server.status is not None:
            self.send(server.status, b"{}")
        elif found := re.fullmatch(r"/cdn/([0-9a-f]{64})", self.path):
            self.send_large(found[1])
        elif (given := self.headers.get("Authorization")) and given != f"Bearer {server.token}":
            self.send(401, b'{"error": "Invalid credentials in Authorization header"}')
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/?]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?", self.path):
            self.send_info(*found.groups())
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            kind, name, revision, file = found.groups()
            self.send_file("datasets" if kind else "models", name, revision, file)
        else:
            self.send(404, b"{}")

    def find(self, kind: str, name: str, revision: str | None) -> tuple[Repository, str] | None:
        """The repository and the commit; None if there is none, and an error has been sent."""
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None:
            self.send(404 if self.headers.get("Authorization") else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.branches.get(revision or "main", revision or "")
        if commit not in repository.commits:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, commit

    def send_info(self, kind: str, name: str, revision: str | None) -> None:
        if (found := self.find(kind, name, revision)) is not None:
            repository, commit = found
            siblings = [
                {"rfilename": file, "size": len(data), "blobId": "0" * 40, **large(data)}
                for file, data in repository.commits[commit].items()
            ]
            info = {"id": name, "sha": commit, "private": False, "gated": repository.gated, "siblings": siblings}
            self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send_file(self, kind: str, name: str, revision: str, file: str) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        repository, commit = found
        data = repository.commits[commit].get(file)
        if repository.gated and self.server.token is None:
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif data is None:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif large(data):
            digest = hashlib.sha256(data).hexdigest()
            headers = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
            other_host = self.server.url.replace("127.0.0.1", "localhost")
            self.send(302, b"", headers | {"Location": f"{other_host}/cdn/{digest}"})
        else:
            self.send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def send_large(self, digest: str) -> None:
        server = self.server
        files = (
            data for one in server.repositories.values() for commit in one.commits.values() for data in commit.values()
        )
        data = next(data for data in files if hashlib.sha256(data).hexdigest() == digest)
        if server.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        data, total = data[: len(data) - server.cut], len(data) - server.cut
        if self.command == "HEAD":
            self.send(200, data, {"ETag": f'"{digest}"'})
            return
        server.ranges.append(self.headers.get("Range"))
        begin = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers.get("Range") else 0  # type: ignore[index]
        headers = {"ETag": f'"{digest}"', "Content-Length": str(total - begin)}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        sent = data[begin:][: server.drop_after.pop(0)] if server.drop_after else data[begin:]
        self.send(206 if begin else 200, sent, headers)

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | {**(headers or {})}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def large(data: bytes) -> dict[str, Any]:
    """The entry of a file that is stored elsewhere; {} for a small one."""
    if len(data) < LARGE:
        return {}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """A hub that answers while the block lasts."""
    with serving(HubServer()) as server:
        yield server


@contextmanager
def hub_for(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    """A hub that this process uses while the block lasts, with an empty cache in `folder`, and without a token."""
    from huggingface_hub import constants, file_download

    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as running:
        paths = "/{repo_id}/resolve/{revision}/{filename}"
        settings = {"ENDPOINT": running.url, "HUGGINGFACE_CO_URL_TEMPLATE": running.url + paths}
        settings |= {"HF_HUB_CACHE": str(folder / "cache"), "HF_TOKEN_PATH": str(folder / "token")}
        settings |= {"HF_HUB_DISABLE_XET": True, "DOWNLOAD_CHUNK_SIZE": 1000, "HF_HUB_OFFLINE": False}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between its attempts
        forget()
        yield running
        forget()


def forget() -> None:
    """As a new process: nothing is known of the hub."""
    for function in (hub.fetch, hub._listing, hub._say):
        function.cache_clear()
