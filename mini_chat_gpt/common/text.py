"""Make text safe to encode and to print."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """Replace each lone surrogate with U+FFFD, so that the text can be encoded as UTF-8. Surrogate pairs become one character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean(text: str) -> str:
    """The text on one line, with every non-printable character (such as a terminal escape) replaced by U+FFFD."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
