"""Find reasons that a sentence of the story states in a form that can be converted safely into a question and an answer.

    Tom was sad because he lost his ball.   ->  "Why was Tom sad?"  "Because he lost his ball."
    The cat ran home because it was cold.   ->  "Why did the cat run home?"  "Because it was cold."

Only sentences of the narrator are used, with one "because" or "so that" and a subject that is not a pronoun, and nothing that could
belong to another clause. So most reasons are skipped, and few are wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from mini_chat_gpt.assets import load
from mini_chat_gpt.tinystories.facts import MASK, mask_speech, sentence_spans
from mini_chat_gpt.tinystories.main_character import is_opener

_REASON = re.compile(r"^(?P<effect>[^,;:—]+),? (?P<link>because|so that) (?P<cause>[^;:—]+)[.!]$")
_START = re.compile(r"^(?:(?:But|And|So|Then|Now|Soon|Today|Suddenly|However|One day|At first|That day),? )?")
# Tom; Tom and Sue; Tom's mom; the cat; the big red bus
_SUBJECTS = [
    re.compile(rf"^(?P<subject>{subject}) (?P<rest>.+)$")
    for subject in (
        r"[A-Z][a-z]+(?: and [A-Z][a-z]+)?(?:'s [a-z]+)?",
        *(rf"[Tt]he(?: [a-z]+){{{n}}}" for n in (1, 2, 3)),
    )
]
_TO_BE = re.compile(r"^(?P<verb>was|were|wasn't|weren't|is|are) (?P<what>.+)$")
_MODAL = re.compile(r"^(?P<verb>could|couldn't|did|didn't)(?P<negation> not)? (?P<what>.+)$")
_PAST = re.compile(r"^(?P<verb>[a-z]+)(?P<what>(?: .+)?)$")
# Signs of a second clause or of speech, to which the reason may belong.
_SECOND_CLAUSE = re.compile(
    r"\b(?:and|but|or|that|who|which|what|when|while|if|as|after|before|until|he|she|they|it(?! *$)|i|we|you(?! *$)|said|asked|told|thought"
    r"|not|only|just|all|mostly|partly|even|maybe|probably|once|there)\b",
    re.IGNORECASE,
)
_FUNCTION_WORD = re.compile(
    r"of|at|in|on|to|with|from|by|for|and|or|who|that|was|were|is|are|had|did|could|would|not|then|just|only"
)


@dataclass(frozen=True)
class Reason:
    """`question` and `answer` as full sentences, and the (start, end) of the sentence in the story."""

    question: str
    answer: str
    span: tuple[int, int]


@lru_cache(maxsize=1)
def past_to_base() -> dict[str, str]:
    """Past form -> base form of the verbs that children's stories use."""
    lists = load("story_verbs.yaml")
    table = {past: base for base, past in (pair.split() for pair in lists["irregular"].split(","))}
    for base in lists["regular"].split():
        table[base + ("d" if base.endswith("e") else "ed")] = base
    return table


def stated_reasons(story: str) -> list[Reason]:
    """All reasons that satisfy the rules above, in order."""
    if "because" not in story and "so that" not in story:
        return []
    narration = mask_speech(story)
    reasons = []
    for start, end in sentence_spans(narration):
        sentence = narration[start:end]
        if ("because" in sentence or "so that" in sentence) and (reason := _reason(sentence, (start, end))):
            reasons.append(reason)
    return reasons


def _reason(sentence: str, span: tuple[int, int]) -> Reason | None:
    match = _REASON.match(_START.sub("", sentence))
    if match is None or MASK in sentence or len(re.findall(r"\b(?:because|so that)\b", sentence)) > 1:
        return None
    effect, cause = match["effect"], match["cause"]
    if not 2 <= len(cause.split()) <= 25 or len(effect.split()) > 15:
        return None
    for pattern in _SUBJECTS:
        if (subject := pattern.match(effect)) and (question := _question(subject["subject"], subject["rest"])):
            return Reason(question, f"{match['link'].capitalize()} {cause}.", span)
    return None


def _question(subject: str, rest: str) -> str | None:
    """ "Why did the cat run home?" from "the cat" and "ran home"; None if the grammar is uncertain."""
    words = subject.split()
    if words[0] in ("The", "the"):
        if any(_FUNCTION_WORD.fullmatch(word) or word in past_to_base() for word in words[1:]):
            return None
        subject = "the " + " ".join(words[1:])
    elif any(is_opener(word) for word in re.findall(r"[A-Z][a-z]+", subject)):
        return None
    if match := _TO_BE.match(rest):
        if _SECOND_CLAUSE.search(match["what"].removeprefix("not ")):
            return None
        return f"Why {match['verb']} {subject} {match['what']}?"
    if match := _MODAL.match(rest):
        negation = match["negation"] or ""
        return (
            None
            if _SECOND_CLAUSE.search(match["what"])
            else f"Why {match['verb']} {subject}{negation} {match['what']}?"
        )
    if rest.startswith("had to "):
        return None if _SECOND_CLAUSE.search(rest[7:]) else f"Why did {subject} have to {rest[7:]}?"
    match = _PAST.match(rest)
    if match is None or match["verb"] not in past_to_base() or _SECOND_CLAUSE.search(match["what"]):
        return None
    return f"Why did {subject} {past_to_base()[match['verb']]}{match['what']}?"
