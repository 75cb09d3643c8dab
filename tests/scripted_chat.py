"""A server for tests of the page of `serve`: it has the page's files and the API, and replies and fails as scripted."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server import serving

from mini_chat_gpt import assets
from mini_chat_gpt.serve.app import PAGE
from mini_chat_gpt.serve.guard import CONTENT_POLICY

DESCRIPTION = "Answers questions about short stories and writes stories with three given words."
EXAMPLES = ["Hi!", "Who are you?", "Tom had a red ball. He lost it, and he was sad.\nWho is the main character?"]


@dataclass
class Scripted:
    """One reply, or one failure."""

    text: str = "Hello there."
    thoughts: str = ""
    finish: str = "stop"
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)  # the error object of a status, or of a stream that fails
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # pieces that are sent before the connection is closed
    hold_after: int | None = None  # likewise before the stream waits for `released`
    released: threading.Event = field(default_factory=threading.Event)


class ChatServer(ThreadingHTTPServer):
    """Requests use up `script`; when it is empty, the reply repeats the last message."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.names = ["tales", "poems"]
        self.context_length = 1024
        self.base_models: set[str] = set()  # those that can't chat
        self.key: str | None = None
        self.keep_alive = True  # send comments while a stream is held
        self.lost = False  # close every connection without an answer
        self.script: list[Scripted] = []
        self.requests: list[dict[str, Any]] = []  # the bodies of the requests for replies
        self.left = threading.Event()  # a client has gone away during a reply
        self.missing: list[str] = []  # addresses that do not exist

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def models(self) -> list[dict[str, Any]]:
        facts = {"object": "model", "created": 0, "owned_by": "you", "context_length": self.context_length}
        facts |= {"description": DESCRIPTION, "examples": EXAMPLES, "system_message": None}
        return [{"id": name, **facts} for name in self.names]

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are part of the tests


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.lost:
            return
        name = "serve.html" if path == "/" else path.removeprefix("/assets/")
        if name in PAGE:
            policy = {"Content-Security-Policy": CONTENT_POLICY}
            self.answer(200, assets.text(name).encode(), PAGE[name], policy)
        elif path == "/health":
            self.answer_json(200, {"status": "ok"})
        elif path != "/v1/models":
            self.server.missing.append(path)
            self.answer_json(404, {"error": {"message": "There is nothing at this address.", "code": None}})
        elif self.has_key():
            self.answer_json(200, {"object": "list", "data": self.server.models()})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.lost or not self.has_key():
            return
        is_chat = self.path == "/v1/chat/completions"
        if is_chat and body["model"] in self.server.base_models:
            self.answer_json(400, {"error": {"message": "A base model.", "code": "no_chat_format"}})
            return
        self.server.requests.append(body)
        if not is_chat:
            self.complete(body)
            return
        reply = (
            self.server.script.pop(0)
            if self.server.script
            else Scripted(f"You said: {body['messages'][-1]['content']}")
        )
        if reply.status != 200:
            self.answer_json(reply.status, {"error": reply.error}, reply.headers)
            return
        self.answer_stream()
        try:
            self.stream(body, reply)
        except OSError:
            self.server.left.set()

    def has_key(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.answer_json(401, {"error": {"message": "A key is needed.", "code": "invalid_api_key"}})
        return False

    def answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self.answer(status, json.dumps(value).encode(), "application/json", headers)

    def stream(self, body: dict[str, Any], reply: Scripted) -> None:
        self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        if reply.thoughts:
            self.event(
                {"choices": [{"index": 0, "delta": {"reasoning_content": reply.thoughts}, "finish_reason": None}]}
            )
        pieces = re.findall(r"\s*\S+|\s+$", reply.text)
        for number, piece in enumerate(pieces):
            if number == reply.hold_after:
                while not reply.released.wait(0.05):
                    if self.server.keep_alive:
                        self.wfile.write(b": waiting\n\n")
            if number == reply.drop_after:
                return
            self.event(
                {
                    "choices": [
                        {"index": 0, "delta": {"content": piece}, "logprobs": logprobs(piece), "finish_reason": None}
                    ]
                }
            )
        if reply.error:
            self.event({"error": reply.error})
            return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        self.event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": len(pieces)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def complete(self, body: dict[str, Any]) -> None:
        """The continuation of a text, in the form of /v1/completions."""
        self.answer_stream()
        probs = {
            "tokens": [" and", " on"],
            "token_logprobs": [-0.1, -2.0],
            "top_logprobs": [{" and": -0.1}, {" so": -0.2}],
        }
        self.event({"choices": [{"index": 0, "text": " and on", "logprobs": probs, "finish_reason": "length"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def answer_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, value: object) -> None:
        # In two parts, and in the middle of a character where there is one.
        data = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
        middle = next((place + 1 for place, byte in enumerate(data) if byte > 0xBF), len(data) // 2)
        for part in (data[:middle], data[middle:]):
            self.wfile.write(part)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def logprobs(piece: str) -> dict[str, Any]:
    """Long words are improbable, and then "the" would have been more probable."""
    chosen = {"token": piece, "bytes": list(piece.encode()), "logprob": -0.02 * len(piece) ** 2}
    others = [(" the", -0.9), (" a", -1.7), (" Tom", -2.5), ("\n", -4.0), (" ball", -6.0)]
    top = [{"token": token, "bytes": list(token.encode()), "logprob": logprob} for token, logprob in others]
    return {"content": [{**chosen, "top_logprobs": sorted([chosen, *top], key=lambda each: -each["logprob"])[:5]}]}


@contextmanager
def running() -> Iterator[ChatServer]:
    """A server that answers while the block lasts."""
    with serving(ChatServer()) as server:
        yield server
