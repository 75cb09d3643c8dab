"""Write the sample data set: generated stories in the public instruct format for which all answers are known.

It replaces TinyStories-Instruct where there is no network, so that everything from training to evaluation runs offline. The
valid split is difficult by design. Held out from training are:

- three plots (`unseen: true` in assets/sample_plots.yaml): two fifths of the valid split;
- a list of names (`names_only_in_valid` in assets/sample_words.yaml): the main character of a tenth of the valid split;
- for all other names, one in five pairs of a main character's name and a main thing (`is_held_out`): the valid split has
  only such pairs, so no story can be in both splits.

The same seed writes the same bytes on every machine and version of Python.

    python -m mini_chat_gpt.prepare.sample_stories FOLDER
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from mini_chat_gpt.assets import load
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import atomic_write_text, read_file
from mini_chat_gpt.common.json_files import JSONRecord, parse_json
from mini_chat_gpt.common.wordings import pick
from mini_chat_gpt.prepare.sample_plots import Story, StoryGenerator, StorySpec
from mini_chat_gpt.tinystories.records import FILE_NAMES, SEPARATOR
from mini_chat_gpt.tinystories.records import stories as stories_of

FILE_NAME = FILE_NAMES[0]
ANSWERS_NAME = FILE_NAME.replace(".txt", ".answers.jsonl")
TRAIN_RECORDS, VALID_RECORDS = 12_000, 3_000

# Fractions of the stories, and of the records with each field, similar to those of the public data set.
BAD_ENDINGS, WITH_DIALOGUE, WITH_MORAL = 0.13, 0.64, 0.21
UNSEEN_PLOTS_IN_VALID, NEW_NAMES_IN_VALID = 0.4, 0.1
HAVE_FEATURES, HAVE_WORDS, HAVE_SUMMARY, HAVE_SENTENCE = 0.95, 0.58, 0.82, 0.35
SUMMARY_LAST = 1 / 3
NEWLINES = ("\n", "\n\n")  # after `Story: `

_TOKEN = re.compile(r"[a-z]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+")


def write_sample(
    folder: Path | str, n_train: int = TRAIN_RECORDS, n_valid: int = VALID_RECORDS, seed: int = 0
) -> list[Path]:
    """Write both splits, and a file with the answers for each. Returns the four paths.

    Raises UserError if a file of one of these names exists that is not an earlier sample.
    """
    sizes = {"train": n_train, "valid": n_valid}
    paths = {split: [Path(folder) / name.format(split=split) for name in (FILE_NAME, ANSWERS_NAME)] for split in sizes}
    for path, answers in paths.values():
        if path.exists() and not answers.exists():
            raise UserError(f"{path} exists and is not a generated sample; choose another folder or move it away.")
    generator = StoryGenerator()
    for split, (path, answers) in paths.items():
        rng = Random(2 * seed + (split == "valid"))
        records = [(story, *record_of(story, rng)) for story in stories(generator, split, sizes[split], rng)]
        entries = (answers_of(story, fields) for story, _, fields in records)
        atomic_write_text(answers, "".join(f"{json.dumps(answer, ensure_ascii=False)}\n" for answer in entries))
        atomic_write_text(path, "".join(f"{text}\n{SEPARATOR.decode()}\n" for _, text, _ in records))
    return [path for pair in paths.values() for path in pair]


def stories(generator: StoryGenerator, split: str, n_stories: int, rng: Random) -> Iterator[Story]:
    """Generate `n_stories` different stories of one split."""
    seen = [plot for plot in generator.plots if not plot.get("unseen")]
    unseen = [plot for plot in generator.plots if plot.get("unseen")]
    valid = split == "valid"
    texts: set[str] = set()
    while len(texts) < n_stories:
        plot = pick(rng, unseen if valid and rng.random() < UNSEEN_PLOTS_IN_VALID else seen)
        spec = StorySpec(
            valid=valid,
            bad=rng.random() < BAD_ENDINGS,
            talk=rng.random() < WITH_DIALOGUE,
            moral=rng.random() < WITH_MORAL,
            new_name=valid and rng.random() < NEW_NAMES_IN_VALID,
        )
        story = generator.generate(plot, spec, rng)
        if story.text not in texts:
            texts.add(story.text)
            yield story


def record_of(story: Story, rng: Random) -> tuple[str, dict[str, Any]]:
    """Return the story as a record in the public format, and the fields of that record."""
    fields: dict[str, Any] = {}
    if story.features and rng.random() < HAVE_FEATURES:
        fields["Features"] = list(story.features)
    if rng.random() < HAVE_WORDS and (words := required_words(story, rng)):
        fields["Words"] = words
    if rng.random() < HAVE_SUMMARY:
        fields["Summary"] = story.summary
    if rng.random() < HAVE_SENTENCE:
        fields["Random sentence"] = pick(rng, sentences(story.text))
    order = sorted(fields, key=lambda _: rng.random())
    after = ["Summary"] if "Summary" in fields and rng.random() < SUMMARY_LAST else []
    before = [name for name in order if name not in after]

    def lines(names: Sequence[str]) -> list[str]:
        return [
            f"{name}: {', '.join(fields[name]) if isinstance(fields[name], list) else fields[name]}" for name in names
        ]

    story_lines = f"Story: {pick(rng, NEWLINES)}{story.text}"
    return "\n".join([*lines(before), story_lines, *lines(after)]), fields


def answers_of(story: Story, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the answers file: all facts of the story, including those that are not in the record."""
    return {
        "plot": story.plot,
        "seen": story.seen,
        "main_character": story.main_character,
        "name_seen": story.main_character not in new_names(),
        "kind": story.character_kind,
        "thing": story.thing,
        "adjective": story.adjective,
        "ending": story.ending,
        "dialogue": "Dialogue" in story.features,
        "features": list(story.features),
        "moral": story.moral,
        "why": list(story.why),
        "what_happened": story.summary,
        "fields": list(fields),
        "words": fields.get("Words"),
    }


@lru_cache(maxsize=1)
def new_names() -> frozenset[str]:
    """Names that never occur in training."""
    return frozenset(name for names in load("sample_words.yaml")["names_only_in_valid"].values() for name in names)


def sentences(text: str) -> list[str]:
    """Complete sentences of at least three words from the text, without those that split a quotation."""
    parts = [part for line in text.split("\n") for part in _SENTENCE_END.split(line)]
    return [part for part in parts if len(part.split()) >= 3 and part.count('"') % 2 == 0 and not part[0].islower()]


def required_words(story: Story, rng: Random) -> list[str]:
    """A verb, a noun and an adjective of the story in their base form, as in the public records; [] if one is missing."""
    lexicon = known_words()
    bases_of: dict[str, list[str]] = {"verb": [], "noun": [], "adjective": []}
    for token in _TOKEN.findall(story.text.lower()):
        for part, bases in bases_of.items():
            base = lexicon[part].get(token)
            if base and base not in bases:
                bases.append(base)
    chosen = {part: pick(rng, bases) for part, bases in bases_of.items() if bases}
    # Half of the time, choose the main thing and its adjective.
    for part, word in (("noun", story.thing.split()[-1]), ("adjective", story.adjective)):
        if word in bases_of[part] and rng.random() < 0.5:
            chosen[part] = word
    return [chosen[part] for part in bases_of] if len(set(chosen.values())) == len(bases_of) else []


def _stem(verb: str) -> str:
    """The part of a verb before -ing: hope -> hop, hop -> hopp, visit -> visit."""
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgklmnprt]", verb):  # one syllable, ending in a vowel and a consonant
        return verb + verb[-1]
    return verb.removesuffix("e")


@lru_cache(maxsize=1)
def known_words() -> dict[str, dict[str, str]]:
    """Map the forms of known verbs, nouns and adjectives to their base forms."""
    words = load("sample_words.yaml")
    verbs: dict[str, str] = {}
    for base in [*words["verbs"]["regular"], *(hobby for hobby in words["hobbies"] if " " not in hobby)]:
        stem = _stem(base)
        past = f"{base[:-1]}ied" if re.search(r"[^aeiou]y$", base) else f"{stem}ed"
        verbs |= dict.fromkeys([base, past, f"{base}s", f"{stem}ing"], base)
    for base, pasts in words["verbs"]["irregular"].items():
        verbs |= dict.fromkeys([base, *pasts, f"{base}s", f"{_stem(base)}ing"], base)
    groups = words["things"].values()
    nouns = {noun for group in groups for noun in group["nouns"] if " " not in noun}
    nouns |= {*words["nouns"], *words["animal_kinds"], *words["landmarks"]}
    adjectives = {adjective for group in groups for adjective in group["adjectives"]}
    adjectives |= {*words["adjectives"], *words["traits"], *words["home_adjectives"], *words["weather"]}
    adjectives |= {feeling for feelings in words["feelings"].values() for feeling in feelings}
    return {"verb": verbs, "noun": {noun: noun for noun in nouns}, "adjective": {word: word for word in adjectives}}


def measure(folder: Path | str) -> dict[str, dict[str, float]]:
    """Measure how varied each split of a sample is, from the files in the folder."""
    return {split: measure_split(Path(folder), split) for split in ("train", "valid")}


class _Answers(JSONRecord):
    """The part of a line of an answers file that is measured."""

    plot: str
    seen: bool
    main_character: str
    thing: str
    ending: str
    dialogue: bool
    moral: str | None
    why: list[Any]


def measure_split(folder: Path, split: str) -> dict[str, float]:
    """The measures of one split, by name."""
    texts = list(stories_of(folder / FILE_NAME.format(split=split)))
    path = folder / ANSWERS_NAME.format(split=split)
    lines = enumerate(read_file(path).splitlines(), start=1)
    answers = [parse_json(line, _Answers, f"{path}, line {number}", "write the sample again") for number, line in lines]
    words = [re.findall(r"[\w']+", text.lower()) for text in texts]
    total = sum(map(len, words))
    return {
        "records": len(texts),
        "distinct stories, share": len(set(texts)) / len(texts),
        "words per story, mean": total / len(texts),
        "words per story, least": min(map(len, words)),
        "words per story, most": max(map(len, words)),
        "distinct words": len({word for story in words for word in story}),
        "distinct 4-grams": len(four_grams(words)),
        "distinct 4-grams per 1,000 words": 1000 * len(four_grams(words)) / total,
        "the same, first 1,000 stories alone": 1000 * len(four_grams(words[:1000])) / sum(map(len, words[:1000])),
        "largest plot, share": max(Counter(answer.plot for answer in answers).values()) / len(answers),
        "plots": len({answer.plot for answer in answers}),
        "stories of plots that never occur in training, share": sum(not answer.seen for answer in answers)
        / len(answers),
        "names of main characters": len({answer.main_character for answer in answers}),
        "pairs of name and thing": len({(answer.main_character, answer.thing) for answer in answers}),
        "bad endings, share": sum(answer.ending == "bad" for answer in answers) / len(answers),
        "with dialogue, share": sum(answer.dialogue for answer in answers) / len(answers),
        "with a moral, share": sum(answer.moral is not None for answer in answers) / len(answers),
        "distinct morals": len({answer.moral for answer in answers} - {None}),
        "questions why": sum(len(answer.why) for answer in answers),
    }


def four_grams(words: Sequence[Sequence[str]]) -> set[tuple[str, ...]]:
    """All 4-grams of words within a story."""
    return {tuple(story[i : i + 4]) for story in words for i in range(len(story) - 3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write a sample and print its measures."""
    parser = argparse.ArgumentParser(description="Write the sample data set and print measures of its variety.")
    parser.add_argument("folder", type=Path, help="folder for the four files")
    parser.add_argument("--train", type=int, default=TRAIN_RECORDS, help="records of train (default: %(default)s)")
    parser.add_argument("--valid", type=int, default=VALID_RECORDS, help="records of valid (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    arguments = parser.parse_args(argv)
    write_sample(arguments.folder, arguments.train, arguments.valid, arguments.seed)
    train, valid = measure(arguments.folder).values()
    print(f"{'':52}{'train':>12}{'valid':>12}")
    for name, value in train.items():
        cells = [f"{number:>12,.3f}" if number % 1 else f"{number:>12,.0f}" for number in (value, valid[name])]
        print(f"{name:52}{''.join(cells)}")
    return 0


if __name__ == "__main__":
    exit_with(main)
