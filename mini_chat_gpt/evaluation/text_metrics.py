"""What a reply is like as a text: its overlap with the expected one, its length, what it copies, repeats and keeps.

Words are compared without case and punctuation. Nearly all numbers are shares from 0 to 1; `length_ratio` (1: as long as
expected) may be larger, and those in COUNTS are numbers. What is in NEUTRAL tells what a text is like, not how good it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mini_chat_gpt.tinystories.facts import first_speech, stated_moral
from mini_chat_gpt.tinystories.prompts import phrasings
from mini_chat_gpt.tinystories.tasks import Task

Scores = dict[str, float]
NEUTRAL = frozenset({"length_ratio", "copied", "n_words", "repetition", "distinct_1", "distinct_2", "distinct_3"})
"""Measures of which neither the highest value is the best nor the lowest."""
RIGHT_OR_WRONG = frozenset({
    "accuracy", "exact", "verbatim", "all_used", "refused", "answered", "stops", "role_token", "empty",
    "has_sentence", "has_sentence_verbatim", "has_dialogue", "has_moral",
})  # fmt: skip
"""Measures that are 1 or 0 of each reply."""
COUNTS = frozenset({"n_words"})
"""Measures that are numbers of something, no shares: not to be shown in percent."""
RUN = 4  # words that in the same order are hardly there twice by chance


def plain_words(text: str) -> list[str]:
    """The words of a text without case and punctuation; "isn't" and "Tom's" are one word each."""
    return re.findall(r"\w+(?:'\w+)*", text.casefold().replace("’", "'"))


def _runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All stretches of n words (n-grams), in their order; [] for fewer than n words."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


# Beside the expected text


def rouge(target: str, reply: str) -> Scores:
    """F-measures of ROUGE-L, ROUGE-1 and ROUGE-2 (Lin 2004, "ROUGE: a package for automatic evaluation of summaries").

    Computed by Google's rouge_score, without stemming.
    """
    found = _scorer("rougeL", "rouge1", "rouge2").score(target, reply)
    return {
        "rouge_l": found["rougeL"].fmeasure,
        "rouge_1": found["rouge1"].fmeasure,
        "rouge_2": found["rouge2"].fmeasure,
    }


def rouge_l(target: str, reply: str) -> float:
    """F-measure of the longest common subsequence of words; see `rouge`."""
    return float(_scorer("rougeL").score(target, reply)["rougeL"].fmeasure)


@lru_cache(maxsize=2)
def _scorer(*names: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(names))


def length_ratio(target: str, reply: str) -> float:
    """The reply's length over the target's, in words; a target without words counts as one."""
    return len(plain_words(reply)) / max(1, len(plain_words(target)))


# Beside the story that was told


def copied(story: str, reply: str) -> float:
    """Share of the reply's stretches of four words that stand in the story as they are; 0 for fewer than four words.

    One minus the share of novel 4-grams (See et al. 2017, "Get to the point", section 6).
    """
    runs = _runs(plain_words(reply), RUN)
    there = set(_runs(plain_words(story), RUN))
    return sum(run in there for run in runs) / len(runs) if runs else 0.0


# Of a story that was written


def told(story: str) -> Scores:
    """n_words, repetition and distinct_1, _2, _3 of a story.

    repetition: share of its stretches of four words that occurred in it before (seq-rep-4, Welleck et al. 2020, "Neural text
    generation with unlikelihood training"); distinct_n: share of different ones among those of n words (Li et al. 2016,
    "A diversity-promoting objective function"). Where there are none, 0. Short texts repeat less: compare at like lengths.
    """
    words = plain_words(story)
    runs = _runs(words, RUN)
    repeated = 1 - len(set(runs)) / len(runs) if runs else 0.0
    return {
        "n_words": float(len(words)),
        "repetition": repeated,
        **{f"distinct_{n}": _distinct(_runs(words, n)) for n in (1, 2, 3)},
    }


def _distinct(runs: Sequence[tuple[str, ...]]) -> float:
    return len(set(runs)) / len(runs) if runs else 0.0


def kept(task: Task, story: str) -> Scores:
    """Whether a story heeds what its prompt asked for beside words, 1 or 0 each; only what was asked is there.

    has_sentence           the sentence's words stand there one after the other; has_sentence_verbatim: to the letter,
                           but for white space
    has_dialogue           somebody speaks, in quotation marks
    has_moral              the story states a moral outright

    Features are measured where the rule finds them in the expected story too, for stories may be labelled with a moral
    that they leave to the reader. Other features no rule can tell.
    """
    scores = {}
    if task.sentence is not None and plain_words(task.sentence):
        scores["has_sentence"] = float(_in_a_row(task.sentence, story))
        scores["has_sentence_verbatim"] = float(" ".join(task.sentence.split()) in " ".join(story.split()))
    asked = asked_features(task.prompt)
    if "Dialogue" in asked and first_speech(task.target):
        scores["has_dialogue"] = float(first_speech(story) is not None)
    if "MoralValue" in asked and stated_moral(task.target):
        scores["has_moral"] = float(stated_moral(story) is not None)
    return scores


def _in_a_row(sentence: str, text: str) -> bool:
    return f" {' '.join(plain_words(sentence))} " in f" {' '.join(plain_words(text))} "


def asked_features(prompt: str) -> tuple[str, ...]:
    """The features that a writing prompt asks for, by their names in a record: those that its second line lists."""
    line = prompt.split("\n")[1:2]
    match = _feature_line().fullmatch(line[0]) if line else None
    if match is None:
        return ()
    name_of = {shown: name for name, shown in phrasings()["feature_names"].items()}
    listed = re.split(r", | and ", next(part for part in match.groups() if part))
    return tuple(name_of[shown] for shown in listed) if set(listed) <= name_of.keys() else ()


@lru_cache(maxsize=1)
def _feature_line() -> re.Pattern[str]:
    lines = (line.split("{features}") for line in phrasings()["words"]["features"])
    return re.compile("|".join(f"{re.escape(before)}(.+){re.escape(after)}" for before, after in lines))
