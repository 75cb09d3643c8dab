"""The exception for a user's mistake.

Its message is one sentence: what is wrong, where (file and line, or config key), and what to do. The command line prints it
without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct; the message says how."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint "; did you mean 'x'?", or "" if no allowed word is similar."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
