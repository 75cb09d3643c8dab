"""Paths that a user typed: `~` stands for a home folder, also where no shell has expanded it."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from mini_chat_gpt.common.errors import UserError, short

MAX_NAME, MAX_PATH = 255, 4000
_MAX_LISTED = 10_000
_SIMILAR = 0.7


def path_text(text: str) -> str:
    """A path as typed, with `~` and `~user` at its beginning replaced by the home folder. Environment variables stay.

    Raises UserError for a home folder that is not known, and for what no file system takes as a path.
    """
    if not text.strip():  # often a variable of the shell that is not set; `Path` would take it as the working directory
        raise UserError("A path is empty; write one, or leave the option or setting out.")
    if "\n" in text or "\r" in text:
        raise UserError(f"{short(text)} is not a path: it has a line break; several paths have commas between them.")
    if "\0" in text:
        raise UserError(f"{short(text)} is not a path: it contains a NUL character.")
    size = max(len(part.encode("utf-8", "surrogatepass")) for part in text.split("/"))
    if size > MAX_NAME or len(text) > MAX_PATH:
        raise UserError(f"{short(text)}: file name too long; a name has at most {MAX_NAME} bytes, a path {MAX_PATH:,}.")
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if not expanded.startswith("~"):
        return expanded
    user = text[1:].partition("/")[0]
    if user and os.path.lexists(text):  # an editor's backup, such as ~notes.txt
        return text
    whose = f"of a user {short(user)}" if user else "(set HOME)"
    raise UserError(
        f"{short(text)}: the home folder {whose} is not known; write the path without ~, or ./~ for the name itself."
    )


def nearest_path(path: Path | str) -> str:
    """A hint "; did you mean 'chats.jsonl'?" for a path that does not exist, or "" if its folder has nothing with a similar name."""
    missing = Path(path)
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    with suppress(OSError):
        stem = difflib.SequenceMatcher(
            b=missing.name.partition(".")[0]
        )  # files with the same ending are not similar for that
        names = [name for name in os.listdir(missing.parent)[:_MAX_LISTED] if name.isprintable()]
        names = [name for name in names if _ratio(stem, name.partition(".")[0]) >= _SIMILAR]
        if similar := difflib.get_close_matches(missing.name, names, n=1, cutoff=_SIMILAR):
            return f"; did you mean {str(missing.parent / similar[0])!r}?"
    return ""


def _ratio(matcher: difflib.SequenceMatcher[str], word: str) -> float:
    matcher.set_seq1(word)
    return matcher.ratio()


def split_paths(text: str) -> list[str]:
    """The paths of a text with commas between them; one path, if something has the whole text as its name."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 or not any(parts) or os.path.lexists(os.path.expanduser(text)):
        return [text]
    return [part for part in parts if part]


def user_path(text: str) -> Path:
    """`path_text` as a Path, for argparse."""
    return Path(path_text(text))
