"""What a story says outright: its sentences, its quoted speech, the moral it states, the reasons it gives.

All of it by careful patterns that rather find nothing than something wrong. Nothing is inferred; what isn't written in
the text isn't found.
"""

from __future__ import annotations

import re

# A quotation ends with its paragraph at the latest: stories forget closing marks.
_QUOTATION = re.compile(r'"[^"\n]*(?:"|$)|“[^”\n]*(?:”|$)|(?<![\w\'])[\'‘](?=[A-Z])[^\n\'‘’]*(?:[\'’][a-z]+[^\n\'‘’]*)*[.,!?][\'’](?!\w)', re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?…]+[\"”’']*(?=\s|$)|(?=\n)")
MASK = "\x01"
"""Stands for every character of quoted speech in `mask_speech`'s result."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence; a line break ends one too, and the blanks between them belong to none."""
    spans, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        start = _skip_blanks(text, start)
        if match.end() > start:
            spans.append((start, match.end()))
            start = match.end()
    start = _skip_blanks(text, start)
    if start < len(text.rstrip()):
        spans.append((start, len(text.rstrip())))
    return spans


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def quotations(story: str) -> list[tuple[int, int]]:
    """(start, end) of quoted speech, with its quotation marks."""
    return [match.span() for match in _QUOTATION.finditer(story)]


def mask_speech(story: str) -> str:
    """The story at its full length, with quoted speech blotted out: what the narrator says."""
    return _QUOTATION.sub(lambda match: MASK * len(match[0]), story)
