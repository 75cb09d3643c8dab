"""Standard output and error that may be lost: a closed pipe or terminal, a full disk, a stream that was never open."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

_TEMPORARY = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


class OptionalOutput:
    """Standard output or standard error of a program that continues without it. No method raises.

    A pipe without a reader and a terminal that is gone are given up. A full disk may have room again later.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    @property
    def _stream(self) -> Any:
        """The stream as it is now: tests and notebooks replace it. Not rich's proxy for it, which would print to this object."""
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def write(self, text: str) -> int:
        """Write `text` if that is possible."""
        try:
            self._attempt(lambda: self._stream.write(text))
        except UnicodeError:  # the encoding of the terminal lacks a character
            self._attempt(lambda: self._stream.write(text.encode("ascii", "replace").decode("ascii")))
        return len(text)

    def flush(self) -> None:
        """Flush what has been written, if that is possible."""
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        """Whether the stream is an open terminal."""
        return bool(self._attempt(lambda: self._stream.isatty()))

    def _attempt(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UnicodeError:
            raise
        except OSError as error:
            if error.errno not in _TEMPORARY:
                discard(self._stream)
        except (AttributeError, ValueError, RuntimeError):
            pass  # there is no stream, it is closed, or a signal handler prints while the program is printing
        return None

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":
            raise AttributeError(name)
        return getattr(self._stream, name)


def discard(stream: Any) -> None:
    """Send what a stream still holds, and all that follows, to the null device."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush_or_discard(stream: Any, text: str = "") -> OSError | None:
    """Write `text` and flush. What can't be written is discarded, so that the end of the process does not fail.

    Returns the error, if any.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        discard(stream)
        return error
    except (AttributeError, ValueError):
        pass  # no stream, or a closed one
    return None


def open_standard_streams() -> None:
    """Open the null device in place of the standard streams that are closed.

    Otherwise the next file that the program opens gets the number of the closed stream, and messages are written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
