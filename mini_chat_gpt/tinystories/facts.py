"""What a story says outright: its sentences, its quoted speech, the moral it states, the reasons it gives.

All of it by careful patterns that rather find nothing than something wrong. Nothing is inferred; what isn't written in
the text isn't found.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Patterns that are tried at every place of a story begin with the characters they can begin with, and look back afterwards:
# Python's engine then skips all others in one quick loop.
# A quotation ends with its paragraph at the latest: stories forget closing marks.
_QUOTATION = re.compile(
    r"[\"“'‘](?:(?<=\")[^\"\n]*(?:\"|$)|(?<=“)[^”\n]*(?:”|$)"
    r"|(?<=['‘])(?<![\w'].)(?=[A-Z])[^\n'‘’]*(?:['’][a-z]+[^\n'‘’]*)*[.,!?]['’](?!\w))",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?…\n](?:(?<=\n)|[.!?…]*[\"”’')]*(?=\s))")
_ABBREVIATIONS = ("Mr.", "Mrs.", "Ms.", "Dr.", "St.")
MASK = "\x01"
"""Stands for every character of quoted speech in `mask_speech`'s result."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence; a line break ends one too, and the blanks between them belong to none."""
    return list(_sentence_spans(text))


# Several questions about one story follow each other: what they all need is found once.
@lru_cache(maxsize=8)
def _sentence_spans(text: str) -> tuple[tuple[int, int], ...]:
    spans, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        end = match.end()
        if end - match.start() == 1 and text.endswith(_ABBREVIATIONS, 0, end):
            continue
        spans.append(_stripped(text, start, end))
        start = end
    spans.append(_stripped(text, start, len(text)))
    return tuple(span for span in spans if span[0] < span[1])


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


@lru_cache(maxsize=8)
def quotations(story: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of quoted speech, with its quotation marks."""
    return tuple(match.span() for match in _QUOTATION.finditer(story))


_SPOKEN = re.compile(r"[.,!?…—-][\"”’']?$")
_ANY_QUOTE = re.compile(r"[\"“”]|(?<!\w)[‘'](?=[A-Z])")
_REPORTED_SPEECH = re.compile(
    r"\b(?:said|says?|asks?|asked|told|tells?|repl(?:y|ies|ied)|answers?|answered|talk\w*|spoke|speaks?|shout\w*|yell\w*"
    r"|whisper\w*|exclaim\w*|chat\w*|convers\w*|explain\w*|call(?:s|ed) out|thank(?:s|ed)|apologi[sz]e\w*|agree[sd]?"
    r"|promise\w*|scold\w*|beg(?:s|ged)|suggest\w*|invite\w*)\b"
)


def first_speech(story: str) -> tuple[int, int] | None:
    """(start, end) of the first quotation that is spoken, which titles and words in quotation marks are not."""
    for start, end in quotations(story):
        if _SPOKEN.search(story, max(start, end - 3), end):
            return start, end
    return None


def is_silent(story: str) -> bool:
    """Whether nobody says anything at all, not even in the narrator's words ("Mom said no", "they talked")."""
    return not _ANY_QUOTE.search(story) and not _REPORTED_SPEECH.search(story)


@lru_cache(maxsize=8)
def mask_speech(story: str) -> str:
    """The story at its full length, with quoted speech blotted out: what the narrator says."""
    parts, told_to = [], 0
    for start, end in quotations(story):
        parts += [story[told_to:start], MASK * (end - start)]
        told_to = end
    return "".join(parts) + story[told_to:]


# A moral goes from the words that announce it to the end of its sentence.
_LESSON = (
    r"(?:learn(?:s|ed|t)?|taught (?:us|them|him|her|everyone|me)|teaches (?:us|them)?) ?"
    r"(?:a|an|the|his|her|their) (?:[a-z]+,? ){0,3}?lesson"
)
_MORALS = re.compile(
    r"\b[Mm]oral(?: value| lesson)?(?: of (?:the|this|our) story)?(?:,? (?:is|was)\b|(?=:))[\s:,–—-]*(?P<moral>[^\n]+)"
)
_LESSONS = [
    re.compile(pattern)
    for pattern in (
        r"\b[Tt]he lesson(?: of (?:the|this) story)?(?: (?:is|was)\b|(?=:))[\s:,–—-]*(?P<moral>(?:that|to|not|always|never)\b[^\n]+)",
        rf"\b{_LESSON}(?: (?:that|this) day| today)?(?:[:;–—]| -+|--|,(?= that\b))\s*(?P<moral>[^\n]+)",
        r"\blearn(?:ed|t|s) (?P<moral>(?:to (?:always|never)|(?:never|not|always) to) [^\n]+)",
    )
]
_LEARNED = re.compile(r"\blearn(?:ed|t|s) that (?:day that )?(?P<moral>[^\n]+)")
_STATEMENTS = {_MORALS: "oral", _LESSONS[0]: "lesson", _LESSONS[1]: "lesson", _LESSONS[2]: "learn", _LEARNED: "learn"}
"""Each with what every text that it can match has: looking for that is quicker."""
_CLAUSE = re.compile(r"^[\s\"“'‘]*(?P<clause>[^.!?\"“”\n]+)(?:[.!?\"”]|$)")
_NO_START = re.compile(r"(?:he|she|they|it was|his|her|their|about|of|what|in|not|the story)\b", re.IGNORECASE)
# A clause that tells of this story only, and one that holds in general.
_PARTICULAR = re.compile(
    r"\b(?:he|she|his|him|her|hers|they|their|them|I|my|me|was|were|had|did|didn't|wasn't|weren't|couldn't|wouldn't|this|today"
    r"|and lived)\b|(?<!^)\b[A-Z][a-z]"
)
_GENERAL = re.compile(
    r"\b(?:is|are|can|can't|cannot|should|must|makes?|brings?|helps?|always|never|it's|need|don't|doesn't|you|pays|to)\b"
)


def stated_moral(text: str) -> tuple[str, tuple[int, int]] | None:
    """The moral that a text states, as a sentence of its own, and the (start, end) of the statement in the text.

    "The moral of the story is to share."  ->  "Share."; "She learned a lesson: never lie." -> "Never lie.";
    "They learned that sharing is fun." -> "Sharing is fun.", but nothing from "They learned that the cat was lost."
    """
    if not ("oral" in text or "esson" in text or "learn" in text):
        return None
    for pattern, word in _STATEMENTS.items():
        if word not in text:
            continue
        for match in reversed(list(pattern.finditer(text))):
            clause = _CLAUSE.match(match["moral"])
            if clause and (moral := _as_moral(clause["clause"], pattern)):
                return moral, (match.start(), match.start("moral") + clause.end())
    return None


def _as_moral(clause: str, pattern: re.Pattern[str]) -> str | None:
    """A clean sentence from what follows an announcement, None unless it is complete and says more than what happened."""
    clause = " ".join(clause.split()).strip(" ,;:-–—'’‘")
    clause = re.sub(r"^(?:that|is|was)\b[\s,:]*", "", clause)
    clause = re.split(r",? and that (?:they|he|she)\b", clause)[0].replace(" and that ", " and ")
    if pattern is not _MORALS and _PARTICULAR.search(clause):
        return None
    if pattern is _LEARNED and (
        not _GENERAL.search(clause) or re.match(r"(?:there|it|[A-Z][a-z]+)\b(?! is| are|'s)", clause)
    ):
        return None
    least = 1 if clause.startswith("to ") else 2
    clause = _imperative(clause)
    if not least <= len(clause.split()) <= 40 or _NO_START.match(clause) or "â€" in clause:
        return None
    return clause[0].upper() + clause[1:] + "."


def _imperative(clause: str) -> str:
    """ "to always be kind and to share" -> "always be kind and share"; "not to steal" -> "do not steal"."""
    if re.match(r"(?:to not|not to) ", clause):
        clause = "do not " + clause[7:]
    elif match := re.match(r"(?:to (always|never)|(always|never) to|to) ", clause):
        adverb = match[1] or match[2]
        clause = (f"{adverb} " if adverb else "") + clause[match.end() :]
    else:
        return clause
    return re.sub(r"\b(and|or) not to ", r"\1 do not ", re.sub(r"\b(and|or) to ", r"\1 ", clause))
