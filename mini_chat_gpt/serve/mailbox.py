"""Pieces of replies, from the model's thread to the event loop that writes them to a client."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from mini_chat_gpt.serve.reply import Piece


class Mailbox:
    """`put` may be called from any thread. All that has arrived is taken at once, so a slow client needs fewer messages."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[int, Piece]] = deque()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._is_scheduled = False
        self.is_closed = False

    def put(self, choice: int, piece: Piece) -> None:
        """Add a piece of one choice."""
        with self._lock:
            self._items.append((choice, piece))
            if self._is_scheduled:
                return
            self._is_scheduled = True
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._arrived.set)

    def close(self) -> None:
        """The client has gone. Called in the event loop."""
        self.is_closed = True
        self._arrived.set()

    async def take(self, seconds: float) -> list[tuple[int, Piece]]:
        """What has arrived, after waiting for it at most this long; [] if nothing has."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)
        with self._lock:
            self._is_scheduled = False
            if not self.is_closed:
                self._arrived.clear()
            items = list(self._items)
            self._items.clear()
        return items


async def watch(receive: Callable[[], Awaitable[Any]], mailbox: Mailbox) -> None:
    """Close the mailbox when the client disconnects. The body must have been received."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.close()
