"""Checks of a single reply that need no code: a regular expression, a maximum length, valid JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from mini_chat_gpt.common.errors import short
from mini_chat_gpt.common.setting_types import Count, one_as_list
from mini_chat_gpt.config import Section

MAX_PATTERN = 1000  # characters of a regular expression
MAX_REPEATS = 1000
MAX_SECONDS = 3.0  # for matching a regular expression with a reply
SECONDS_IF_SLOW = (
    0.5  # the same, after the expression has taken too long for one reply; a file can have hundreds of prompts
)
_slow: set[str] = set()
_SEARCH = (
    "import json, re, sys; pattern, text = json.load(sys.stdin.buffer); print(re.search(pattern, text) is not None)"
)


def _is_regex(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"must be a regular expression of at most {MAX_PATTERN:,} characters, not {len(pattern):,}")
    if any(int(number) > MAX_REPEATS for number in re.findall(r"[{,](\d+)", pattern)):
        raise ValueError(f"must not repeat anything more than {MAX_REPEATS:,} times: {short(pattern)}")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{short(pattern)} is not a regular expression ({error})") from None
    return pattern


def _has_text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be an empty text")
    return text


Texts = Annotated[list[Annotated[str, AfterValidator(_has_text)]], BeforeValidator(one_as_list)]


class ReplyChecks(Section):
    """What a correct reply fulfills, whatever its prompt is."""

    regex: Annotated[str, AfterValidator(_is_regex)] | None = None
    """A regular expression that matches somewhere in a correct reply."""
    max_words: Count | None = None
    """The maximum length of a correct reply."""
    is_json: bool = False
    """Whether a correct reply is valid JSON."""


def form_checks(expected: ReplyChecks, reply: str) -> dict[str, bool]:
    """Check -> whether the reply meets it."""
    met = {}
    if expected.regex is not None:
        met[f"matches /{expected.regex}/"] = matches(expected.regex, reply)
    if expected.max_words is not None:
        met[f"at most {expected.max_words} words"] = len(reply.split()) <= expected.max_words
    if expected.is_json:
        met["is JSON"] = _is_json(reply)
    return met


@lru_cache
def matches(pattern: str, text: str) -> bool:
    """Whether the pattern matches somewhere in the text.

    Some patterns need years for some texts, and nothing can interrupt `re` on every system. So a process of its own searches.
    """
    seconds = SECONDS_IF_SLOW if pattern in _slow else MAX_SECONDS
    try:
        command = [sys.executable, "-I", "-S", "-c", _SEARCH]
        request = json.dumps([pattern, text]).encode()
        return subprocess.run(command, input=request, timeout=seconds, capture_output=True).stdout.strip() == b"True"
    except subprocess.TimeoutExpired:
        _slow.add(pattern)
        warnings.warn(
            f"The regex {short(pattern)} takes more than {seconds:g} s for the reply {short(text)}, which counts as no match; "
            "simplify the regex.",
            stacklevel=2,
        )
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
