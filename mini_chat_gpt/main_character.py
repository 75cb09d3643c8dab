"""Who a story is about, where that is beyond doubt.

The rule: the main character is the one whom the narrator names first and by far most often. No answer is given if
somebody else comes near (two children who do everything together), if a mother or father is named as often, or if the
name comes late, because then the story is about someone who has none. Quoted speech doesn't count.

A name is a capitalised word that no list excludes (pronouns, days, places, "Mommy", words that open sentences), and that
proves to be one: it is introduced ("a girl named ..."), stands capitalised inside a sentence, or is a known given name.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from importlib.resources import files

import yaml

from mini_chat_gpt.story_facts import MASK, mask_speech

_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
_SENTENCE_START = re.compile(rf"(?:^|[.!?…:{MASK}\n\"“”‘'*(\[–—-])\s*$")
_INTRODUCED = re.compile(r"\b(?:named|called|name (?:was|is)) ((?:[A-Z][a-z]+\.? )*[A-Z][A-Za-z]+)")


@lru_cache(maxsize=1)
def _words() -> dict[str, frozenset[str]]:
    text = (files("mini_chat_gpt.data") / "character_words.yaml").read_text(encoding="utf-8")
    return {name: frozenset(words.split()) for name, words in yaml.safe_load(text).items()}
