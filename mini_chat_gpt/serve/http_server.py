"""Uvicorn, with connections that don't wait without end for a client, and signals that let running replies finish."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mini_chat_gpt.common.signals import end_signals, handled
from mini_chat_gpt.serve.errors import RATE, APIError
from mini_chat_gpt.serve.guard import error_response

MAX_CONNECTIONS, KEEP_ALIVE_SECONDS, MAX_HEADERS = 256, 15, 64 * 1024
HEADER_SECONDS = 20.0
"""Time for the headers of a request, from its first byte or, for the first request, from the connection."""
WRITE_SECONDS = 60.0
"""Time for a client to receive what has been written, once the buffers are full."""


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol, which closes connections whose client sends its headers or reads the response too slowly."""

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the time of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the time when the headers are complete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._start_timer()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The buffers are full. A transport that is closed would wait until they are empty, so it is aborted."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has received something."""
        super().resume_writing()
        self._stop_write_timer()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class HTTPServer(uvicorn.Server):
    """Serves an ASGI application until a signal.

    `started` is called when it listens, `stopping` at the first signal, after which no connection is accepted, and `canceling` at a
    second one, which also closes the connections.
    """

    def __init__(
        self,
        app: Any,
        started: Callable[[], object],
        stopping: Callable[[], object],
        canceling: Callable[[], object],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                self._serve_request,
                interface="asgi3",
                log_level="critical",
                access_log=False,
                lifespan="off",
                http=PatientProtocol,
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADERS,
            )
        )
        self._app, self._started, self._stopping, self._canceling = app, started, stopping, canceling
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if len(self.server_state.connections) <= MAX_CONNECTIONS else _too_many_connections()
        await app(scope, receive, send)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Context in which signals stop the server. Uvicorn's own would be raised again afterwards."""
        with handled([signal.SIGINT, *end_signals()], self._on_signal):
            yield

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Not here: the signal may have interrupted code that holds a lock.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """What a signal does. Called in the event loop."""
        if self.should_exit:
            self.force_exit = True
            self._canceling()
        else:
            self.should_exit = True
            self._stopping()


def _too_many_connections() -> Response:
    error = APIError(
        503, "Too many connections are open; try again later.", RATE, code="too_many_connections", retry=True
    )
    response = error_response(error)
    response.headers["Connection"] = "close"
    return response
