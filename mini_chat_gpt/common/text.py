"""Make text safe to encode and to print."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but tab and newline


def well_formed(text: str) -> str:
    """Replace each lone surrogate with U+FFFD, so that the text can be encoded as UTF-8. Surrogate pairs become one character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def visible(text: str) -> str:
    """Replace control characters with an escape such as \\x1b, so that the text can't change the state of a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def clean(text: str) -> str:
    """The text on one line, with every non-printable character (such as a terminal escape) replaced by U+FFFD."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def word_set(text: str) -> frozenset[str]:
    """The different words of a text, ignoring case."""
    return frozenset(re.findall(r"\w+", text.casefold()))


def with_places(what: str, places: Sequence[str], n: int) -> str:
    """A note about n records: a line about them, and below it the places of the first."""
    more = [f"and {n - len(places):,} more"] if n > len(places) else []
    return "\n  ".join([what, *places, *more])
