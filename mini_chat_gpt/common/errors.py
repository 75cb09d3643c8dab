"""The exception for a user's mistake.

Its message is one sentence: what is wrong, where (file and line, or config key), and what to do. The command line prints it
without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct; the message says how."""


def nearest(word: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """A hint "; did you mean 'x'?", or "" if no allowed word is similar."""
    match = difflib.get_close_matches(word[:100], list(allowed), n=1, cutoff=cutoff)
    return f"; did you mean {match[0]!r}?" if match else ""


def short(value: Any, length: int = 60) -> str:
    """`repr(value)` cut to about `length` characters. Nested or shared values are never expanded completely."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother, shortened.maxlong = 3, length, length, length
    try:
        text = shortened.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a very large number"
    return text if len(text) <= length else text[: length - 1] + "…"
