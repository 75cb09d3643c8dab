"""TinyStories-Instruct records made from plain stories, with the fields that a story itself gives away.

    Words             a verb, a noun and an adjective that stand in the story as they are (else other content words)
    Random sentence   one of its sentences
    Features          Dialogue, if somebody speaks; MoralValue, if it states its moral

A summary can't be derived and none is invented. Neither can the ending be told: every Features line therefore ends with
`EndingUnknown`, because of which no task is made of the missing BadEnding. Call a file of such records derived.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from mini_chat_gpt.assets import load
from mini_chat_gpt.tinystories.facts import first_speech, sentence_spans, stated_moral
from mini_chat_gpt.tinystories.prompts import TemplateSampler
from mini_chat_gpt.tinystories.reasons import past_to_base
from mini_chat_gpt.tinystories.records import ENDING_UNKNOWN, StoryRecord, parse_record

_LOWER_CASE_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,}(?![\w'’-])")
# Out of 100 records, about as many as in the real files.
_WITH_WORDS = 85
_WITH_SENTENCE = 35


def derive_records(stories: Iterable[str], seed: int = 0) -> Iterator[str]:
    """Record texts, without separator, one for each story that can be written as a record.

    A story that would not be read back as it is (it holds a line like "Words: ..." or a separator) is left out. What is
    drawn depends on the story and the seed alone.
    """
    for story in stories:
        story = story.strip()
        text = derive_record(story, seed)
        if story and parse_record(text).story == story and "<|endoftext|>" not in story:
            yield text


def derive_record(story: str, seed: int = 0) -> str:
    """The record text of one story, its fields in a drawn order before the story, as in the real files."""
    choose = TemplateSampler(StoryRecord(story=story), seed)
    fields = []
    if features := _features(story):
        fields.append(f"Features: {', '.join(features)}")
    words = content_words(story, choose)
    if words and (choose.number("words") % 100 < _WITH_WORDS or not features):
        fields.append(f"Words: {', '.join(words)}")
    sentences = _plain_sentences(story)
    if sentences and choose.number("sentence") % 100 < _WITH_SENTENCE:
        fields.append(f"Random sentence: {choose.one(sentences, 'which sentence')}")
    fields.sort(key=choose.number)
    return "\n".join([*fields, "Story: ", "", story])


def _features(story: str) -> list[str]:
    features = []
    if first_speech(story):
        features.append("Dialogue")
    if stated_moral(story):
        features.append("MoralValue")
    return [*features, ENDING_UNKNOWN] if features else []


@lru_cache(maxsize=1)
def _word_lists() -> dict[str, frozenset[str]]:
    lists = load("story_words.yaml")
    words = {name: frozenset(words.split()) for name, words in lists.items()}
    return words | {"verbs": frozenset(past_to_base().values()) - words["function_words"] - {"like"}}


def content_words(story: str, choose: TemplateSampler) -> list[str]:
    """Three words of the story: a verb, a noun, an adjective as far as word lists tell, else other content words.

    They stand in the story exactly so and in small letters; names and function words are not among them. Fewer than three
    only where the story has no more.
    """
    lists = _word_lists()
    there = dict.fromkeys(_LOWER_CASE_WORD.findall(story))
    chosen: list[str] = []
    for part in ("verbs", "nouns", "adjectives"):
        if of_this_part := [word for word in there if word in lists[part] and word not in chosen]:
            chosen.append(choose.one(of_this_part, part))
    rest = [word for word in there if len(word) > 3 and word not in lists["function_words"] and word not in chosen]
    while len(chosen) < 3 and rest:
        chosen.append(rest.pop(choose.number(f"word {len(chosen)}") % len(rest)))
    return chosen


def _plain_sentences(story: str) -> list[str]:
    """Sentences of 4 to 25 words whose quotation marks pair up."""
    sentences = [story[start:end] for start, end in sentence_spans(story)]
    return [
        sentence
        for sentence in sentences
        if 4 <= len(sentence.split()) <= 25
        and sentence.count('"') % 2 == 0
        and sentence.count("“") == sentence.count("”")
        and sentence[-1] in '.!?"”'
    ]
