"""Metrics of a reply as text: overlap with a reference, length, extractiveness, repetition, and constraint satisfaction.

Words are compared without case and punctuation. Most metrics are shares from 0 to 1; `length_ratio` (1: as long as the reference)
can be larger, and those in COUNTS are counts. Metrics in NEUTRAL describe a text without saying how good it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mini_chat_gpt.tinystories.facts import first_speech, stated_moral
from mini_chat_gpt.tinystories.prompts import prompt_templates
from mini_chat_gpt.tinystories.tasks import Task

Scores = dict[str, float]
NEUTRAL = frozenset(
    {"length", "length_ratio", "copied", "n_words", "repetition", "distinct_1", "distinct_2", "distinct_3"}
)
"""Measures for which neither high nor low values are better."""
RIGHT_OR_WRONG = frozenset({
    "accuracy", "exact", "exact_match", "verbatim", "all_used", "refused", "answered", "stops", "role_token", "empty",
    "has_sentence", "has_sentence_verbatim", "has_dialogue", "has_moral",
})  # fmt: skip
"""Measures that are 1 or 0 for each reply."""
COUNTS = frozenset({"n_words"})
"""Measures that are counts, not shares; they are not shown in percent."""
LOSS = "loss"
"""Nats per token of the expected replies: lower is better, and not a share either."""
N = 4  # words of an n-gram: long enough that it rarely occurs twice by chance


def is_share(measure: str) -> bool:
    """Whether a measure is shown in percent."""
    return measure not in COUNTS and measure != LOSS


def plain_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation. "isn't" and "Tom's" are one word each."""
    return re.findall(r"\w+(?:'\w+)*", text.casefold().replace("’", "'"))


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams in order; [] for fewer than n words."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


# Compared with the reference


def rouge(target: str, reply: str) -> Scores:
    """F-measures of ROUGE-L, ROUGE-1 and ROUGE-2 (Lin 2004, "ROUGE: a package for automatic evaluation of summaries").

    Computed with Google's rouge_score package, without stemming. Words are runs of letters and digits of any alphabet.
    """
    scores = _scorer("rougeL", "rouge1", "rouge2").score(target, reply)
    return {
        "rouge_l": scores["rougeL"].fmeasure,
        "rouge_1": scores["rouge1"].fmeasure,
        "rouge_2": scores["rouge2"].fmeasure,
    }


def rouge_l(target: str, reply: str) -> float:
    """F-measure of the longest common subsequence of words; see `rouge`."""
    return float(_scorer("rougeL").score(target, reply)["rougeL"].fmeasure)


@lru_cache(maxsize=2)
def _scorer(*names: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        """As the package's own tokenizer, which knows ASCII only: every other word would be lost."""

        def tokenize(self, text: str) -> list[str]:
            return re.findall(r"[^\W_]+", text.lower())

    return RougeScorer(list(names), tokenizer=Words())


def length_ratio(target: str, reply: str) -> float:
    """The length of the reply relative to the target, in words. A target without words counts as one word."""
    return len(plain_words(reply)) / max(1, len(plain_words(target)))


# Compared with the story in the prompt


def extractiveness(story: str, reply: str) -> float:
    """The share of the reply's 4-grams that occur in the story; 0 for a reply of fewer than four words.

    One minus the share of novel 4-grams (See et al. 2017, "Get to the point", section 6).
    """
    ngrams = _ngrams(plain_words(reply), N)
    of_story = set(_ngrams(plain_words(story), N))
    return sum(ngram in of_story for ngram in ngrams) / len(ngrams) if ngrams else 0.0


# Of a generated story


def text_statistics(story: str) -> Scores:
    """n_words, repetition and distinct_1, _2, _3 of a story.

    repetition: share of its 4-grams that occurred in it before (seq-rep-4, Welleck et al. 2020, "Neural text generation with
    unlikelihood training"); distinct_n: share of different n-grams (Li et al. 2016, "A diversity-promoting objective function").
    They are 0 for a text without n-grams. Short texts repeat less, so compare texts of similar length.
    """
    words = plain_words(story)
    ngrams = _ngrams(words, N)
    return {
        "n_words": float(len(words)),
        "repetition": 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0,
        **{f"distinct_{n}": _distinct(_ngrams(words, n)) for n in (1, 2, 3)},
    }


def _distinct(ngrams: Sequence[tuple[str, ...]]) -> float:
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def constraint_satisfaction(task: Task, story: str) -> Scores:
    """Whether a story meets the constraints of its prompt, apart from the required words. 1 or 0; only for what the prompt asks.

    has_sentence           contains the words of the required sentence, in order and without gaps; has_sentence_verbatim: the
                           exact sentence, ignoring white space
    has_dialogue           contains speech in quotation marks
    has_moral              states a moral explicitly

    Features count only if the rule also finds them in the reference story, because stories can be labeled with a moral that they
    leave to the reader. Other features can't be detected by rules.
    """
    scores = {}
    if task.sentence is not None and plain_words(task.sentence):
        scores["has_sentence"] = float(_contains_words(task.sentence, story))
        scores["has_sentence_verbatim"] = float(" ".join(task.sentence.split()) in " ".join(story.split()))
    features = requested_features(task.prompt)
    if "Dialogue" in features and first_speech(task.target):
        scores["has_dialogue"] = float(first_speech(story) is not None)
    if "MoralValue" in features and stated_moral(task.target):
        scores["has_moral"] = float(stated_moral(story) is not None)
    return scores


def _contains_words(sentence: str, text: str) -> bool:
    return f" {' '.join(plain_words(sentence))} " in f" {' '.join(plain_words(text))} "


def requested_features(prompt: str) -> tuple[str, ...]:
    """The features that a writing prompt asks for in its second line, by their names in a record."""
    line = prompt.split("\n")[1:2]
    match = _feature_line().fullmatch(line[0]) if line else None
    if match is None:
        return ()
    name_of = {phrase: name for name, phrase in prompt_templates()["feature_names"].items()}
    listed = re.split(r", | and ", next(part for part in match.groups() if part))
    return tuple(name_of[phrase] for phrase in listed) if set(listed) <= name_of.keys() else ()


@lru_cache(maxsize=1)
def _feature_line() -> re.Pattern[str]:
    lines = (line.split("{features}") for line in prompt_templates()["words"]["features"])
    return re.compile("|".join(f"{re.escape(before)}(.+){re.escape(after)}" for before, after in lines))
