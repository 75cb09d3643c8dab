"""What a story states explicitly: its sentences, its quoted speech, its moral.

The patterns prefer finding nothing to finding something wrong. Nothing is inferred that the text does not say.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Patterns that are searched in a whole story begin with the set of their first characters and check what precedes by a
# lookbehind: Python's engine then skips all other characters in one fast loop.
# A quotation ends with its paragraph at the latest, because stories omit closing marks.
_QUOTATION = re.compile(
    r"[\"“'‘](?:(?<=\")[^\"\n]*(?:\"|$)|(?<=“)[^”\n]*(?:”|$)"
    r"|(?<=['‘])(?<![\w'].)(?=[A-Z])[^\n'‘’]*(?:['’][a-z]+[^\n'‘’]*)*[.,!?]['’](?!\w))",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?…\n](?:(?<=\n)|[.!?…]*[\"”’')]*(?=\s))")
_ABBREVIATIONS = ("Mr.", "Mrs.", "Ms.", "Dr.", "St.")
MASK = "\x01"
"""Replaces every character of quoted speech in the result of `mask_speech`."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, without the white space between sentences. A line break also ends a sentence."""
    return list(_sentence_spans(text))


# Consecutive tasks are often about the same story, so the results are cached.
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
    """(start, end) of each quotation, with its quotation marks."""
    return tuple(match.span() for match in _QUOTATION.finditer(story))


_SPOKEN = re.compile(r"[.,!?…—-][\"”’']?$")
_ANY_QUOTE = re.compile(r"[\"“”]|(?<!\w)[‘'](?=[A-Z])")
_REPORTED_SPEECH = re.compile(
    r"\b(?:said|says?|asks?|asked|told|tells?|repl(?:y|ies|ied)|answers?|answered|talk\w*|spoke|speaks?|shout\w*|yell\w*"
    r"|whisper\w*|exclaim\w*|chat\w*|convers\w*|explain\w*|call(?:s|ed) out|thank(?:s|ed)|apologi[sz]e\w*|agree[sd]?"
    r"|promise\w*|scold\w*|beg(?:s|ged)|suggest\w*|invite\w*)\b"
)


def first_speech(story: str) -> tuple[int, int] | None:
    """(start, end) of the first quotation that is speech, and not a title or a single word in quotation marks."""
    for start, end in quotations(story):
        if _SPOKEN.search(story, max(start, end - 3), end):
            return start, end
    return None


def is_silent(story: str) -> bool:
    """Whether no character says anything, including reported speech ("Mom said no", "they talked")."""
    return not _ANY_QUOTE.search(story) and not _REPORTED_SPEECH.search(story)


@lru_cache(maxsize=8)
def mask_speech(story: str) -> str:
    """The narrator's words: the story at its full length, with quoted speech replaced by MASK."""
    parts, end_of_last = [], 0
    for start, end in quotations(story):
        parts += [story[end_of_last:start], MASK * (end - start)]
        end_of_last = end
    return "".join(parts) + story[end_of_last:]


# A moral extends from the words that announce it to the end of the sentence.
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
"""Pattern -> a string that every match contains, for a fast check."""
_CLAUSE = re.compile(r"^[\s\"“'‘]*(?P<clause>[^.!?\"“”\n]+)(?:[.!?\"”]|$)")
_NO_START = re.compile(r"(?:he|she|they|it was|his|her|their|about|of|what|in|not|the story)\b", re.IGNORECASE)
# Signs of a clause about this story only, and of a general one.
_PARTICULAR = re.compile(
    r"\b(?:he|she|his|him|her|hers|they|their|them|I|my|me|was|were|had|did|didn't|wasn't|weren't|couldn't|wouldn't|this|today"
    r"|and lived)\b|(?<!^)\b[A-Z][a-z]"
)
_GENERAL = re.compile(
    r"\b(?:is|are|can|can't|cannot|should|must|makes?|brings?|helps?|always|never|it's|need|don't|doesn't|you|pays|to)\b"
)


def stated_moral(text: str) -> tuple[str, tuple[int, int]] | None:
    """The moral that a text states, as a complete sentence, and the (start, end) of the statement in the text.

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
    """The clause after an announcement as a sentence. None if it is incomplete, or only about this story."""
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
