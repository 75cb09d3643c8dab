"""chrF: the overlap of a reply with its reference in characters (Popović 2015, "chrF: character n-gram F-score for automatic MT
evaluation").

    precision of order n    shared n-grams / n-grams of the reply, with repeated ones counted as often as both have them
    recall of order n       shared n-grams / n-grams of the reference
    chrF                    (1 + β²) · P · R / (β² · P + R), with the means P and R over the orders 1 to 6

White space is removed first. With β = 2 recall counts twice as much as precision. An order for which one of the two texts is too
short is left out of the means. These are the defaults of sacrebleu (Post 2018), whose scores are 100 times as large.

Characters need no words, so chrF works for every language, and an inflected or misspelled word still counts in part.
"""

from __future__ import annotations

from collections import Counter

ORDER = 6
BETA = 2


def chrf(target: str, reply: str) -> float:
    """The chrF of one reply, from 0 to 1."""
    expected, replied = ("".join(text.split()) for text in (target, reply))
    precisions, recalls = [], []
    for n in range(1, min(ORDER, len(expected), len(replied)) + 1):
        of_target, of_reply = _ngrams(expected, n), _ngrams(replied, n)
        shared = (of_target & of_reply).total()
        precisions.append(shared / of_reply.total())
        recalls.append(shared / of_target.total())
    precision, recall = sum(precisions), sum(recalls)
    if not precision + recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall) / len(precisions)


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))
