"""`mini-chat-gpt recipe check`: what a recipe lacks, and what of its held-out part is also in its training data."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mini_chat_gpt.cli import parse
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.terminal import console, print_line
from mini_chat_gpt.data.chat_files import Conversation, read_conversations
from mini_chat_gpt.evaluation.held_out_part import HeldOut, Item, read_items, reply_checks
from mini_chat_gpt.recipe.checklist import CHECKLIST, Checklist
from mini_chat_gpt.recipe.folder import PROMPTS, README, Recipe, all_recipes, read_recipe
from mini_chat_gpt.recipe.near_copies import near_copies

MIN_TRAINING, MIN_HELD_OUT = 30, 20
"""With fewer held-out records, the interval of a share is wider than 40 points."""
MAX_LISTED = 3
SECTIONS = {
    "the problem": "problem",
    "the base model, and why it was chosen": "base",
    "the data": "data",
    "the method": "method",
    "how it is judged": "judged|evaluat",
    "what is difficult, and what was done": "difficult",
    "results": "results",
}
"""What README.md must have a section about -> what its heading contains."""
TO_WRITE = "To be written"
"""How `recipe new` begins a section for which there was no answer."""


def problems_of(folder: Path) -> list[str]:
    """What is wrong with a recipe, one sentence each; [] if nothing is."""
    try:
        recipe = read_recipe(folder)
    except UserError as error:
        return [str(error)]
    found = list(_readme(folder))
    try:
        training = _training(recipe)
    except UserError as error:
        return [*found, str(error)]
    chats = [chat for of_file in training.values() for chat in of_file]
    if len(chats) < MIN_TRAINING:
        found.append(f"The training data have {len(chats)} records; {MIN_TRAINING} or more can teach something.")
    found += _prompts(recipe)
    checklist = None
    try:
        checklist = recipe.checklist()
    except UserError as error:
        found.append(str(error))
    found += _leaks([(prompt, f"{folder / PROMPTS}, {short(prompt)}") for prompt in recipe.prompts.all], chats)
    for part in recipe.prompts.held_out:
        try:
            items = read_items(folder / part.file, recipe.config.chats.keys)
            found += _held_out(part, items, recipe, checklist)
        except UserError as error:
            found.append(str(error))
            continue
        found += _copies(part, items, training, chats)
    if checklist is not None:
        found += _training_replies(training, checklist)
    return found


def _readme(folder: Path) -> Iterator[str]:
    file = folder / README
    if not file.is_file():
        yield f"There is no {file}; write the strategy: {', '.join(SECTIONS)}."
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    sections = re.split(r"^##+ +(.+)$", text, flags=re.MULTILINE)
    contents = dict(zip(sections[1::2], sections[2::2], strict=False))
    for title, pattern in SECTIONS.items():
        of_title = [content for heading, content in contents.items() if re.search(pattern, heading, re.IGNORECASE)]
        if not of_title:
            yield f"{file} has no section about {title}; add a heading with a text under it."
        elif not any(content.strip() for content in of_title):
            yield f"{file}: the section about {title} is empty; write it."
        elif any(content.strip().startswith(TO_WRITE) for content in of_title):
            yield f"{file}: the section about {title} is still to be written."


def _training(recipe: Recipe) -> dict[str, list[Conversation]]:
    """The conversations of each training file: those of the settings, and others in the folder that are called train*.jsonl."""
    files = dict.fromkeys([*recipe.config.chats.files, *map(str, sorted(recipe.folder.glob("train*.jsonl")))])
    if not recipe.config.chats.files:
        raise UserError(f"{recipe.folder}: no training records; name a file with chats.files in config.yaml.")
    return {file: list(read_conversations(file, keys=recipe.config.chats.keys)) for file in files}


def _prompts(recipe: Recipe) -> Iterator[str]:
    """Held-out files without an entry, and entries without checks."""
    named = {part.file for part in recipe.prompts.held_out}
    file = recipe.folder / PROMPTS
    if not named:
        yield f"{file} names no held-out part; add held_out: with a file and its checks, so that the result can be measured."
    for path in sorted(recipe.folder.glob("held_out*")):
        if path.name not in named:
            yield f"{path} is not used; add it to held_out in {file}, or remove it."
    for part in recipe.prompts.held_out:
        if not part.is_judged:
            yield f"{file}: {part.file} has no check; give labels, exact, key_facts, refuses, polite, checklist or overlap."
    if (recipe.folder / CHECKLIST).is_file() and not any(part.checklist for part in recipe.prompts.held_out):
        yield f"{recipe.folder / CHECKLIST} is not used; add `checklist: true` to a held-out part in {file}, or remove it."


def _held_out(part: HeldOut, items: Sequence[Item], recipe: Recipe, checklist: Checklist | None) -> Iterator[str]:
    """Too few records, records that a check can't judge, and expected replies that fail their own checks."""
    if len(items) < MIN_HELD_OUT:
        yield f"{recipe.folder / part.file} has {len(items)} records; {MIN_HELD_OUT} or more are needed to measure a share."
    signs = recipe.prompts.polite_signs, recipe.prompts.refusal_signs
    wrong = []
    for item in items:
        try:
            met = reply_checks(part, item, item.expected or "", *signs, checklist)
        except UserError as error:
            yield str(error)
            return
        failed = [check for check, passed in met.items() if not passed]
        # A reply of key_facts may be a phrase alone.
        if item.expected is not None and failed and part.key_facts is None:
            wrong.append(f"{item.place}: the expected reply fails {', '.join(failed)}")
    yield from _first(wrong, "expected replies fail a check of their own")


def _copies(
    part: HeldOut, items: Sequence[Item], training: dict[str, list[Conversation]], chats: Sequence[Conversation]
) -> Iterator[str]:
    """Held-out records that the training data also have, or nearly."""
    if (key := part.distinct_by) is None:
        yield from _leaks([(_question(item), item.place) for item in items], chats)
        return
    known = [item for file in training if Path(file).is_file() for item in read_items(Path(file)) if key in item.record]
    texts = [str(item.record.get(key, item.text)) for item in items]
    pairs = near_copies(texts, [str(item.record[key]) for item in known])
    copies = [f"{items[one].place}: its {key} is nearly that of {known[other].place}" for one, other in pairs]
    yield from _first(copies, "held-out prompts have a near copy in the training data")


def _question(item: Item) -> str:
    """The first message of the user."""
    return next((message.content for message in item.prompt if message.role == "user"), "")


def _leaks(asked: Sequence[tuple[str, str]], chats: Sequence[Conversation]) -> Iterator[str]:
    """Held-out prompts that the training data also have, or nearly."""
    known = [next((m.content for m in chat.messages if m.role == "user"), "") for chat in chats]
    copies = [
        f"{asked[number][1]} is nearly the same as a training record ({Path(chats[other].path).name}, {chats[other].place}: "
        f"{short(known[other])})"
        for number, other in near_copies([text for text, _ in asked], known)
    ]
    yield from _first(copies, "held-out prompts have a near copy in the training data")


def _training_replies(training: dict[str, list[Conversation]], checklist: Checklist) -> Iterator[str]:
    """Training replies that fail the recipe's own checklist, and records that it finds wrong."""
    wrong = []
    for file in filter(os.path.isfile, training):
        for item in read_items(Path(file)):
            if item.expected is None:
                continue
            failed = [
                point for point, passed in checklist(item.record, item.expected, item.place).items() if not passed
            ]
            faults = [*checklist.problems(item.record, item.place), *(f"its reply fails {point}" for point in failed)]
            if faults:
                wrong.append(f"{item.place}: {'; '.join(faults)}")
    yield from _first(wrong, f"training records fail {CHECKLIST}")


def _first(problems: Sequence[str], what: str) -> Iterator[str]:
    """The first problems of a kind, and the number of all."""
    yield from (f"{problem}." for problem in problems[:MAX_LISTED])
    if len(problems) > MAX_LISTED:
        yield f"{len(problems):,} {what}."


def _summary(found: Sequence[str]) -> str:
    return f"{len(found)} {'thing' if len(found) == 1 else 'things'} to correct" if found else "nothing is missing"


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt recipe check` with a parsed command line. The exit code is 1 if anything is wrong."""
    out, n_wrong = console(optional=True), 0
    folders = list(all_recipes()) if arguments.all else arguments.folders
    for folder in folders:
        found = problems_of(folder)
        n_wrong += bool(found)
        print_line(out, f"{folder}: {_summary(found)}")
        for problem in found:
            print_line(out, f"  - {problem}")
    if not folders:
        print_line(out, "There are no recipes in recipes/ here or in the installed package.")
    flush_or_discard(sys.stdout)
    return 1 if n_wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("recipe check", argv))


if __name__ == "__main__":
    exit_with(main)
