"""What the rules of the scripted conversation need to know about texts: signs, known words, loops, and the characters of a story."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mini_chat_gpt import assets
from mini_chat_gpt.assets import load
from mini_chat_gpt.evaluation.text_metrics import plain_words, rouge_l
from mini_chat_gpt.tinystories.main_character import find_word, is_opener

ASSETS = Path(assets.__file__ or "").parent
WORD_FILES = ("sample_plots", "sample_words", "story_words", "story_verbs", "word_forms", "character_words")
UNKNOWN_WORDS = 0.2  # most, as a share
LONG_TEXT = 80  # words
ENDINGS = ("'s", "s", "es", "ed", "d", "ing", "ly", "er", "n't", "'ll", "'re", "'ve", "'m", "'d")


@cache
def settings() -> dict[str, Any]:
    """conversation.yaml."""
    return dict(yaml.safe_load(Path(__file__).with_name("conversation.yaml").read_text(encoding="utf-8")))


@cache
def sign(name: str) -> re.Pattern[str]:
    """A pattern of conversation.yaml."""
    return re.compile(settings()["signs"][name], re.IGNORECASE)


def has(name: str, text: str) -> bool:
    """Whether the text has a sign."""
    return sign(name).search(text) is not None


@cache
def known_words() -> frozenset[str]:
    """Words of the sample's texts, of the package's word lists, of the messages, and of an assistant."""
    files = [*(ASSETS / f"{name}.yaml" for name in WORD_FILES), Path(__file__).with_name("short_stories.yaml")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    texts += [yaml.safe_dump(settings()["messages"], width=10_000), settings()["assistant_words"]]
    return frozenset(word for text in texts for word in plain_words(text))


@cache
def _forms(word: str) -> tuple[str, ...]:
    """A word, and the same without an ending."""
    forms = [word, *(word.removesuffix(end) for end in ENDINGS)]
    forms += [form + "e" for form in forms if word.endswith(("ing", "ed"))]
    forms += [form[:-1] for form in forms if len(form) > 3 and form[-1] == form[-2]]
    return tuple(dict.fromkeys([*forms, *(form[:-1] + "y" for form in forms if form.endswith("i"))]))


def is_known(word: str, known: frozenset[str] | set[str]) -> bool:
    """Whether a word, or the same without an ending, is in the list. Numbers are."""
    return word.isdigit() or any(form in known for form in _forms(word))


def too_long(text: str, most: int) -> str | None:
    """The number of words, if it is too large."""
    n = len(plain_words(text))
    return f"{n} words" if n > most else None


def loop_in(text: str, is_story: bool = False) -> str | None:
    """ "loop" if a letter occurs five times in a row, a word four times in a row, or three words three times in up to 80 words.

    A story may repeat three words: "the big tree".
    """
    words = plain_words(text)
    if re.search(r"([^\W\d_])\1{4}", text.lower()) or any(
        len(set(words[i : i + 4])) == 1 for i in range(len(words) - 3)
    ):
        return "loop"
    if len(words) <= LONG_TEXT and not is_story:
        triples = Counter(zip(words, words[1:], words[2:], strict=False))
        return "loop" if max(triples.values(), default=0) >= 3 else None
    return None


def unknown_words_in(text: str, messages: Iterable[str], share: float = UNKNOWN_WORDS) -> str | None:
    """The words that are neither known nor in the messages, if they are more than this share (in up to four words, more than one)."""
    words = plain_words(text)
    of_chat = {word for message in messages for word in plain_words(message)}
    unknown = [word for word in words if not is_known(word, known_words()) and not is_known(word, of_chat)]
    if not words or len(unknown) > max(share * len(words), share > 0 and len(words) <= 4):
        return f"unknown words: {', '.join(unknown)}"
    return None


def foreign_words(text: str, sources: Iterable[str]) -> list[str]:
    """The content words of a text of which no form occurs in the sources."""
    own = {form for source in sources for word in plain_words(source) for form in _forms(word)}
    return [word for word in content_words(text) if own.isdisjoint(_forms(word))]


def content_words(text: str) -> list[str]:
    """The words of a text without pronouns, auxiliary verbs and the like."""
    return [word for word in plain_words(text) if word not in _function_words()]


@cache
def _function_words() -> frozenset[str]:
    return frozenset(settings()["function_words"].split())


def overlap(target: str, reply: str) -> float:
    """ROUGE-L of the words, ignoring the punctuation marks that join them."""
    return rouge_l(" ".join(plain_words(target)), " ".join(plain_words(reply)))


def characters(story: str) -> set[str]:
    """Capitalized words of a story that it never writes in lower case and that don't just begin sentences: "Tom", "Mom"."""
    names = {word for word in re.findall(r"\b[A-Z][a-z]+\b", story) if not is_opener(word)}
    return {word for word in names if find_word(story, word.lower()) is None and not is_known_lower(word)}


def is_known_lower(word: str) -> bool:
    """Whether a word also occurs in lower case in the sample's texts, so that it is not a name."""
    return word.lower() in _lower_case_words()


@cache
def _lower_case_words() -> frozenset[str]:
    files = [ASSETS / "sample_plots.yaml", Path(__file__).with_name("short_stories.yaml")]
    texts = [*(path.read_text(encoding="utf-8") for path in files), settings()["assistant_words"]]
    words = load("sample_words.yaml")
    texts.append(yaml.safe_dump({name: part for name, part in words.items() if "names" not in name}, width=10_000))
    return frozenset(word for text in texts for word in re.findall(r"\b[a-z]+(?:'[a-z]+)?\b", text))
