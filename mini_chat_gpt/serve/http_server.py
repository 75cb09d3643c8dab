"""Uvicorn, with connections that don't wait without end for a request, and signals that let running replies finish."""

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
from uvicorn.protocols.http.h11_impl import H11Protocol

from mini_chat_gpt.common.signals import end_signals, handled

MAX_CONNECTIONS, KEEP_ALIVE_SECONDS, MAX_HEADERS = 256, 15, 64 * 1024
HEADER_SECONDS = 20.0
"""Time for the headers of a request, from its first byte or, for the first request, from the connection."""


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol, which closes connections whose headers take longer than `HEADER_SECONDS`."""

    _timer: asyncio.TimerHandle | None = None

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
        super().connection_lost(exc)

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
                app,
                log_level="critical",
                access_log=False,
                lifespan="off",
                http=PatientProtocol,
                ws="none",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADERS,
            )
        )
        self._started, self._stopping, self._canceling = started, stopping, canceling
        self._loop: asyncio.AbstractEventLoop | None = None

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
