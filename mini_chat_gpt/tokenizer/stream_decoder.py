"""Decode ids as they arrive, into whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """The results of `push` and `finish()`, concatenated, equal `ChatTokenizer.decode` of all ids.

    `bytes_of(token_id, start)` gives the bytes of an id, and whether the next one begins a text. `start` is that of the first id.
    """

    def __init__(self, bytes_of: Callable[[int, bool], tuple[bytes, bool]], start: bool) -> None:
        self._bytes_of = bytes_of
        self._start = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes; "" if it completes none."""
        part, self._start = self._bytes_of(token_id, self._start)
        return self._utf8.decode(part)

    def finish(self) -> str:
        """U+FFFD if the last character is incomplete, otherwise ""."""
        return self._utf8.decode(b"", final=True)
