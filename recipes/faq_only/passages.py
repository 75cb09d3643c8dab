"""Find the facts that are most similar to a question, by the words that they share.

Each fact is one document: what it is about, its answer, the ways of asking in questions.yaml, and the synonyms in keywords.yaml.
Documents are ranked by BM25 over words and parts of words of four letters, so that "deliveries" and a typing error still find "delivery".
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
STOP_WORDS = frozenset(re.findall(r"\w+", "a an the is are of in on at to for from with and or do does can"))
SATURATION = 1.2  # k1 of BM25: how much a second mention of a word counts
LENGTH_WEIGHT = 0.5  # b of BM25: how much long documents are scored down
PART_LENGTH = 4


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def terms(text: str) -> list[str]:
    """The words of a text without stop words, and their parts."""
    text = text.lower().replace("é", "e").replace("'", "").replace("wi-fi", "wifi").replace("e-mail", "email")
    found = []
    for word in re.findall(r"[a-z0-9$]+(?:\.\d+)?", text):
        if word not in STOP_WORDS:
            marked = f"_{word}_"
            found += [word] + ["#" + marked[i : i + PART_LENGTH] for i in range(max(1, len(marked) - PART_LENGTH + 1))]
    return found


class Retriever:
    """Ranks facts by their similarity to a question."""

    def __init__(self) -> None:
        questions, keywords = load("questions.yaml")["in_scope"], load("keywords.yaml")
        self.documents = {
            fact["id"]: Counter(
                terms(" ".join((fact["about"], fact["answer"], *questions[fact["id"]], keywords[fact["id"]])))
            )
            for fact in load("facts.yaml")
        }
        counts = Counter(term for document in self.documents.values() for term in document)
        total = len(self.documents)
        self.rarity = {term: math.log(1 + (total - n + 0.5) / (n + 0.5)) for term, n in counts.items()}
        self.mean_length = sum(sum(document.values()) for document in self.documents.values()) / total

    def _score(self, asked: set[str], document: Counter[str]) -> float:
        norm = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * sum(document.values()) / self.mean_length)
        return sum(
            self.rarity.get(term, 0.0) * document[term] * (SATURATION + 1) / (document[term] + norm) for term in asked
        )

    def rank(self, question: str, own: str | None = None) -> list[tuple[float, str]]:
        """(score, fact id) of all facts, the most similar first. `own` is the fact of which the question itself is a wording to ignore."""
        asked = Counter(terms(question))
        scores = [
            (self._score(set(asked), document - asked if fact_id == own else document), fact_id)
            for fact_id, document in self.documents.items()
        ]
        return sorted(scores, key=lambda pair: (-pair[0], pair[1]))

    def nearest(self, question: str, n: int = 3, own: str | None = None) -> list[str]:
        """Ids of the `n` most similar facts, the most similar first."""
        return [fact_id for _, fact_id in self.rank(question, own)[:n]]


def prompt_with_passage(question: str, answers: Iterable[str]) -> str:
    """The user's message of the second design."""
    return "\n".join(answers) + f"\n\nQuestion: {question}"
