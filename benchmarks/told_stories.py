"""How well the stories of a model hold together, compared with held-out stories of the sample:

    python benchmarks/told_stories.py --checkpoint RUN [--data FOLDER] [--n 50] [--judge MODEL] [--show 5] [--json FILE]

For each group, the model writes n stories with three words of records of seen and of new plots, each in a conversation of its own, greedy,
with the wordings of conversation.yaml. Printed for each group and for n held-out stories of the same group:

    words used, all three used    shares of the words, and of the stories with all of them
    ends by itself                share of the stories
    repeated 4-grams              share of a story's 4-grams that occurred in it before (goal: at most 2 points more than in the sample)
    names introduced              share of the names in a story that are introduced, see `names_in` (goal: 90 %)
    bits per byte                 under another model, with --judge (goal: at most 1.15 times that of the sample's stories)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from conversation_script import GROUPS, Wordings, held_out, listed, words_of_group
from conversation_text import is_known_lower

from mini_chat_gpt import load_checkpoint
from mini_chat_gpt.assets import load
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.evaluation.bits_per_byte import BitsPerByte, bits_per_byte
from mini_chat_gpt.evaluation.held_out import sample_valid_file
from mini_chat_gpt.evaluation.text_metrics import text_statistics
from mini_chat_gpt.generation.decode import Model
from mini_chat_gpt.generation.sampling import Sampling
from mini_chat_gpt.generation.text import generate_replies
from mini_chat_gpt.tinystories.facts import sentence_spans
from mini_chat_gpt.tinystories.main_character import is_opener
from mini_chat_gpt.tinystories.word_forms import uses
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

GREEDY = Sampling(max_new_tokens=400, temperature=0)
FIRST_SENTENCES = 2
NEAR = 60  # characters around a name that are searched for an introducing phrase

# Capitalized words that are not names: relatives and titles, days and months, and exclamations.
NOT_NAMES = re.compile(
    r"(?:mom|mommy|mum|mama|mother|dad|daddy|papa|father|grandma|grandpa|granny|grandmother|grandfather|aunt|auntie|uncle|mr|mrs|ms|miss|dr|sir"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|august|september|october|november"
    r"|december|christmas|easter|halloween|yay|hooray|wow|ouch|oops|boom|bang|crash|splash|oh|ah|hey|hi|hello|bye|god|yes|no)"
)
PEOPLE = (
    "boy|girl|man|woman|child|kid|baby|friend|brother|sister|twin|cousin|neighbor|uncle|aunt|mother|father|son|daughter|teacher|"
    "doctor|farmer|baker|nurse|painter|fisherman|mailman|king|queen|prince|princess|wizard|witch|fairy|giant|dragon|monster|robot|"
    "doll|bird|pet|animal|creature|buddy|pal|classmate|guest|hero|person|lady|gentleman|stranger|captain|puppy|fish|toy"
)
NAME = r"[A-Z][a-z]+"


@dataclass(frozen=True)
class Name:
    """A name in a story, and how it is introduced."""

    name: str
    introduced: str  # "beginning", the introducing phrase, or "" if it is not introduced


@dataclass(frozen=True)
class Told:
    """A story that the model wrote."""

    group: str
    words: tuple[str, ...]
    text: str
    ended: bool


@cache
def _introductions() -> re.Pattern[str]:
    """A phrase that introduces the name that `@` stands for."""
    kinds = f"{PEOPLE}|{'|'.join(load('sample_words.yaml')['animal_kinds'])}"
    determiner = rf"(?:(?i:a|an|the|his|her|its|their|our|my|your|another|one|some|two)|{NAME}'s)"
    noun = rf"(?:{kinds})s?"
    return re.compile(
        rf"\b(?:named|called|by the name of|with the name(?: of)?|name (?:of \w+ \w+ )?(?:was|is)|names (?:were|are)) (?:{NAME},? and )?@"
        rf"|\b{determiner} (?:[\w-]+ ){{0,3}}?{noun},? (?:{NAME},? and )?@"
        rf"|@,? (?:was |is |who was )?{determiner} (?:[\w-]+ ){{0,3}}?{noun}\b"
        rf"|@, who (?:was|lived|had|came|lives|is)\b"
        rf"|\b(?:I am|I'm|[Tt]his is|[Mm]eet) @"
    )


def names_in(story: str) -> list[Name]:
    """The names in a story in the order of their first mention, and how each is introduced.

    A name is a capitalized word that is never written in lower case, neither in this story nor in the sample's texts, and is not
    a pronoun or a word that begins sentences, a relative or a title ("Mom", "Mr."), a day, a month or an exclamation. A word that
    only begins sentences and always has a mark after it ("Bravo!") is not a name either.

    It is introduced if it is first mentioned in the first two sentences, or if its first mention is part of an introducing phrase:

    - "named NAME", "called NAME", "with the name NAME", "name (of the ...) was NAME"
    - a determiner or possessive, up to three words, and a kind of person or animal before the name ("his friend NAME", "a little
      mouse NAME"; also the second of two: "his friends Tom and NAME") or after it ("NAME, her best friend", "NAME was a tall girl")
    - "NAME, who lived ...", "I am NAME", "This is NAME", "Meet NAME"
    """
    spans = sentence_spans(story)
    start = spans[FIRST_SENTENCES][0] if len(spans) > FIRST_SENTENCES else len(story)
    names: dict[str, Name] = {}
    for match in re.finditer(rf"(?<![\w'’]){NAME}(?![a-z])", story):
        name = match[0]
        if name in names:
            continue
        phrase = _introduction(name, match.start(), story)
        if _is_name(name, story, introduced=bool(phrase)):
            names[name] = Name(name, "beginning" if match.start() < start else phrase)
    return list(names.values())


def _is_name(word: str, story: str, introduced: bool) -> bool:
    lower = word.lower()
    if is_opener(word) or NOT_NAMES.fullmatch(lower) or is_known_lower(word):
        return False
    if re.search(rf"(?<![\w'’]){lower}\b", story):
        return False
    return introduced or re.search(rf"[\w,;] {word}\b|\b{word}\b(?! ?[!,.?])", story) is not None


def _introduction(name: str, at: int, story: str) -> str:
    """The introducing phrase around the first mention, or ""."""
    before, after = story[max(0, at - NEAR) : at], story[at + len(name) : at + len(name) + NEAR]
    match = _introductions().search(f"{before.replace('@', ' ')}@{after.replace('@', ' ')}")
    return match[0].replace("@", name) if match else ""


def share_introduced(stories: Sequence[str]) -> float:
    """The share of all names in the stories that are introduced; 1 if there are none."""
    names = [name for story in stories for name in names_in(story)]
    return fmean(bool(name.introduced) for name in names) if names else 1.0


def tell(model: Model, tokenizer: ChatTokenizer, folder: Path, n: int, seed: int) -> list[Told]:
    """n stories for each group."""
    words, wordings = words_of_group(held_out(folder), n, seed), Wordings(seed)
    prompts = [wordings.next("write_story")["ask"].format(words=listed(of_story)) for of_story in words]
    replies = generate_replies(model, tokenizer, prompts, GREEDY)
    groups = [group for group in GROUPS for _ in range(n)]
    return [
        Told(group, of_story, reply.text.strip(), reply.finish_reason == "stop")
        for group, of_story, reply in zip(groups, words, replies, strict=True)
    ]


def judged(judge: tuple[Model, ChatTokenizer] | None, texts: Sequence[str]) -> BitsPerByte | None:
    """Bits per byte of the texts under the judge."""
    if judge is None:
        return None
    return bits_per_byte(judge[0], judge[1], [text for text in texts if text], max_bytes=1 << 30)  # type: ignore[arg-type]


def table(told: Sequence[Told], sample: dict[str, list[str]], judge: tuple[Model, ChatTokenizer] | None) -> str:
    """The measures by group, for the model's stories and for held-out ones."""
    columns: dict[str, list[str]] = {}
    for group in GROUPS:
        of_group = [one for one in told if one.group == group]
        used = [[uses(one.text, word) for word in one.words] for one in of_group]
        texts = {"told": [one.text for one in of_group], "sample": sample[group]}
        bits = {name: judged(judge, of) for name, of in texts.items()}
        for name, of in texts.items():
            statistics = [text_statistics(text) for text in of]
            is_told, own, other = name == "told", bits[name], bits["sample"]
            columns[f"{group}, {name}"] = [
                f"{fmean(word for words in used for word in words):.1%}" if is_told else "",
                f"{fmean(all(words) for words in used):.1%}" if is_told else "",
                f"{fmean(one.ended for one in of_group):.1%}" if is_told else "",
                f"{fmean(one['n_words'] for one in statistics):.0f}",
                f"{fmean(one['repetition'] for one in statistics):.1%}",
                f"{share_introduced(of):.1%}",
                f"{fmean(len(names_in(text)) for text in of):.1f}",
                f"{own.bits_per_byte:.3f}" if own else "",
                f"{own.bits_per_byte / other.bits_per_byte:.3f}" if own and other else "",
            ]
    rows = [
        "words used",
        "all three used",
        "ends by itself",
        "words of a story",
        "repeated 4-grams",
        "names introduced",
        "names of a story",
        "bits per byte",
        "ratio to the sample",
    ]
    lines = [f"{'':20}" + "".join(f"{name:>15}" for name in columns)]
    lines += [
        f"{row:20}" + "".join(f"{cells[number]:>15}" for cells in columns.values()) for number, row in enumerate(rows)
    ]
    return "\n".join(lines)


def shown(one: Told) -> str:
    """A story to read, with its names; those that are not introduced are marked with !."""
    names = ", ".join(
        f"{name.name} ({name.introduced})" if name.introduced else f"!{name.name}" for name in names_in(one.text)
    )
    return f"--- {', '.join(one.words)} ({one.group})\n{one.text}{'' if one.ended else ' ...'}\nnames: {names}\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model")
    parser.add_argument("--data", type=Path, help="folder with a sample (default: the sample in the cache)")
    parser.add_argument("--n", type=int, default=50, help="stories for each of the two groups")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--judge", type=Path, metavar="MODEL", help="the model whose bits per byte are measured")
    parser.add_argument("--show", type=int, default=0, metavar="K", help="print K stories of each group")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all stories to this file")
    arguments = parser.parse_args(argv)
    folder = arguments.data or sample_valid_file().parent
    model, tokenizer = load_checkpoint(arguments.checkpoint, arguments.device)
    told = tell(model, tokenizer, folder, arguments.n, arguments.seed)
    for number, one in enumerate(told):
        if number % arguments.n < arguments.show:
            print(shown(one))
    stories = held_out(folder)
    sample = {group: [one.text for one in stories if one.group == group][: arguments.n] for group in GROUPS}
    print(f"{len(told)} stories told", file=sys.stderr)
    judge = load_checkpoint(arguments.judge, arguments.device) if arguments.judge else None
    print(table(told, sample, judge))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in told], indent=1))
    return 0


if __name__ == "__main__":
    exit_with(main)
