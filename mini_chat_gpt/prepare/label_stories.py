"""Label plain stories: make TinyStories-Instruct records with the fields that can be read off a story itself.

    Words             a verb, a noun and an adjective that occur in the story (otherwise other content words)
    Random sentence   one of its sentences
    Features          Dialogue, if someone speaks; MoralValue, if the story states its moral

These records have no summary. Whether the ending is good can't be detected either, so every Features line ends with
`EndingUnknown`, which prevents tasks from taking the missing BadEnding for a good ending.
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
# Percentages of records with these fields, about as in the public files.
_WITH_WORDS = 85
_WITH_SENTENCE = 35


def label_stories(stories: Iterable[str], seed: int = 0) -> Iterator[str]:
    """Yield the record text, without separator, of each story that can be written as a record.

    A story that would not be read back unchanged (it contains a line like "Words: ..." or a separator) is skipped. The random
    choices depend on the story and the seed only.
    """
    for story in stories:
        story = story.strip()
        text = label_story(story, seed)
        if story and parse_record(text).story == story and "<|endoftext|>" not in story:
            yield text


def label_story(story: str, seed: int = 0) -> str:
    """Return the record text of one story, with its fields in random order before the story, as in the public files."""
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
    """Choose three words of the story: a verb, a noun and an adjective by the word lists, otherwise other content words.

    They occur in the story in this form and in lowercase, and are neither names nor function words. There are fewer than
    three only if the story has no more.
    """
    lists = _word_lists()
    candidates = dict.fromkeys(_LOWER_CASE_WORD.findall(story))
    chosen: list[str] = []
    for part in ("verbs", "nouns", "adjectives"):
        if of_this_part := [word for word in candidates if word in lists[part] and word not in chosen]:
            chosen.append(choose.one(of_this_part, part))
    rest = [word for word in candidates if len(word) > 3 and word not in lists["function_words"] and word not in chosen]
    while len(chosen) < 3 and rest:
        chosen.append(rest.pop(choose.number(f"word {len(chosen)}") % len(rest)))
    return chosen


def _plain_sentences(story: str) -> list[str]:
    """Sentences of 4 to 25 words with balanced quotation marks."""
    sentences = [story[start:end] for start, end in sentence_spans(story)]
    return [
        sentence
        for sentence in sentences
        if 4 <= len(sentence.split()) <= 25
        and sentence.count('"') % 2 == 0
        and sentence.count("“") == sentence.count("”")
        and sentence[-1] in '.!?"”'
    ]
