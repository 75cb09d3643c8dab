"""`mini-chat-gpt recipe new FOLDER`: make a recipe from a file of chats, without code.

What no option says is asked in a terminal; elsewhere the README says what is still to be written. The data are read as for training,
split into training and held-out records without near copies across the parts, and written as messages, with all other columns.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from mini_chat_gpt.cli import parse
from mini_chat_gpt.cli_options import RECIPE_CONFIG
from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.common.files import readable_disk_errors
from mini_chat_gpt.common.output import flush_or_discard
from mini_chat_gpt.common.terminal import console, print_line
from mini_chat_gpt.config import Config
from mini_chat_gpt.data.chat_files import Conversation, read_conversations
from mini_chat_gpt.data.record_fields import KeyNames
from mini_chat_gpt.data.record_files import read_records
from mini_chat_gpt.data.record_forms import read_record
from mini_chat_gpt.recipe.check import MIN_HELD_OUT
from mini_chat_gpt.recipe.folder import PROMPTS, README
from mini_chat_gpt.recipe.near_copies import near_copies
from mini_chat_gpt.recipe.strategy import POINTS, readme

TRAINING, HELD_OUT = "train.jsonl", "held_out.jsonl"
SHARE, MAX_HELD_OUT = 0.2, 200
MAX_LABELS, MAX_LABEL_WORDS, RECORDS_PER_LABEL = 20, 4, 5
"""Replies are taken as labels if they are few, short, and frequent."""
N_COMPARED = 3
TOKENS = 120_000
"""Tokens to train on, about: ten minutes for a model of 135 million parameters on two cores."""
TOKENS_PER_CHARACTER = 0.3
N_VALIDATED = 40
"""Training records whose loss is shown; the held-out part is judged after training."""
EXAMPLES = [
    {"messages": [{"role": "user", "content": "A prompt"}, {"role": "assistant", "content": "The reply to learn"}]},
    {"messages": [{"role": "user", "content": "Another prompt"}, {"role": "assistant", "content": "Its reply"}]},
]
Record = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """The records of a new recipe; each has messages, the last of which is the reply."""

    training: list[Record]
    held_out: list[Record]

    @property
    def all(self) -> list[Record]:
        return [*self.training, *self.held_out]

    @property
    def labels(self) -> list[str]:
        """The possible replies, the most frequent first; [] if the replies are texts."""
        counts = Counter(reply_of(record).strip() for record in self.all)
        few = len(counts) <= min(MAX_LABELS, len(self.all) / RECORDS_PER_LABEL)
        return [label for label, _ in counts.most_common()] if few and _are_short(counts) else []


def _are_short(replies: Counter[str]) -> bool:
    return all(reply and len(reply.split()) <= MAX_LABEL_WORDS for reply in replies)


def prompt_of(record: Record) -> str:
    """The first message of the user."""
    return next(message["content"] for message in record["messages"] if message["role"] == "user")


def reply_of(record: Record) -> str:
    """The last message."""
    return str(record["messages"][-1]["content"])


# Data


def read_data(file: str, config: Config) -> list[Record]:
    """The records of a file of chats as messages, with the columns that are not part of the chat. Raises UserError."""
    chats = list(read_conversations(file, keys=config.chats.keys))
    extras = _extras(Path(file), config) if Path(file).is_file() else {}
    return [{"messages": _messages(chat), **extras.get(chat.place, {})} for chat in chats]


def _messages(chat: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def _extras(file: Path, config: Config) -> dict[str, Record]:
    """The unused columns of each record, by its place."""
    extras, names = {}, KeyNames(config.chats.keys)
    for place, record in read_records(file):
        if isinstance(record, dict):
            unused = read_record(record, names).unused
            extras[place] = {key: value for key, value in record.items() if key in unused}
    return extras


def split(records: Sequence[Record], seed: int) -> Data:
    """Hold out a fifth of the records, at least MIN_HELD_OUT and at most half. A record with a near copy in training is not held out."""
    n = min(MAX_HELD_OUT, max(MIN_HELD_OUT, round(SHARE * len(records))), len(records) // 2)
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    texts = [prompt_of(record) for record in records]
    # More candidates than needed: some have near copies.
    held_out, training = order[: 2 * n], order[2 * n :]
    while True:
        copies = {one for one, _ in near_copies([texts[i] for i in held_out], [texts[i] for i in training])}
        moved = [number for at, number in enumerate(held_out) if at in copies]
        held_out = [number for at, number in enumerate(held_out) if at not in copies]
        if not moved:
            if len(held_out) <= n:
                break
            moved, held_out = held_out[n:], held_out[:n]
        training = [*training, *moved]
    return Data([records[i] for i in sorted(training)], [records[i] for i in sorted(held_out)])


# Files


def settings_of(data: Data, name: str, base: str, system: str | None, overrides: Config, keys: Sequence[str]) -> Record:
    """The content of config.yaml."""
    lengths = [TOKENS_PER_CHARACTER * len(json.dumps(record["messages"])) for record in data.all]
    epochs = min(4.0, max(1.0, round(TOKENS / max(1.0, sum(lengths[: len(data.training)])), 1)))
    longest = next((size for size in (128, 256, 512, 1024) if size >= max(lengths)), 2048)
    settings: Record = {
        "sft": {"pretrained_checkpoint": base, "save_dir": f"runs/{name}", "epochs": epochs, "warmup_steps": "auto"},
        "data": {
            "eval_examples": N_VALIDATED,
            "seq_len": longest,
            **({} if system is None else {"system_message": system}),
        },
        "chats": {"files": TRAINING, "valid_share": 0},
        "training": {"batch_size": 4},
        "lora": {"enabled": True, "rank": 16, "alpha": 32, "dropout": 0.1},
        "wandb": {"enabled": False},
    }
    for key in keys:  # what the command line sets
        section, _, field = key.partition(".")
        value = getattr(getattr(overrides, section), field)
        settings.setdefault(section, {})[field] = list(value) if isinstance(value, tuple) else value
    return settings


def prompts_of(data: Data, key_facts: str | None) -> Record:
    """The content of prompts.yaml: the first held-out prompts are shown, all are judged."""
    labels = data.labels
    part: Record = {"file": HELD_OUT, "shows": "the right label" if labels else "replies like those of the data"}
    if labels:
        part["labels"] = labels
    elif key_facts is None:
        part["overlap"] = ["chrf", "rouge"]
    if key_facts is not None:
        part |= {"shows": "the key facts", "key_facts": key_facts}
    longest = max(len(reply_of(record)) for record in data.all)
    part["max_new_tokens"] = int(min(512, max(16, TOKENS_PER_CHARACTER * 2 * longest)))
    shown = data.held_out[:N_COMPARED] or data.training[:1]
    compare: list[Record] = [{"prompts": [prompt_of(record)]} for record in shown]
    if labels:
        compare = [item | {"contains": reply_of(record)} for item, record in zip(compare, shown, strict=True)]
    return {"compare": compare, "held_out": [part]}


def facts_about(data: Data, source: str | None) -> dict[str, str]:
    """What the README says about the data without an answer of the user."""
    labels = data.labels
    n = f"{len(data.training):,} training records ([{TRAINING}]({TRAINING})) and {len(data.held_out):,} held-out ones "
    about = f"{n}([{HELD_OUT}]({HELD_OUT}))" + (
        f", from {Path(source).name}." if source else ", two of them examples of the form."
    )
    judged = (
        f"By count: a reply is exactly one of {', '.join(labels)}, compared with always the most frequent one and with a "
        "classifier that counts words."
        if labels
        else f"By count: what {PROMPTS} says about the held-out records."
    )
    return {"source": about, "judged": judged}


def write_recipe(folder: Path, arguments: argparse.Namespace, answers: dict[str, str], data: Data) -> None:
    """Write all files of the recipe. Raises UserError."""
    name = folder.resolve().name
    keys = [key for one in arguments.overrides if (key := one.partition("=")[0].strip()) != "chats.keys"]
    settings = settings_of(data, name, arguments.base, arguments.system, arguments.settings, keys)
    head = f"# Settings of `mini-chat-gpt recipe {name}`. All other keys have the defaults of sft_config.yaml.\n"
    files = {
        RECIPE_CONFIG: head + _yaml(settings),
        PROMPTS: "# Prompts that are shown side by side, and how the held-out records are judged (docs/recipes.md).\n"
        + _yaml(prompts_of(data, arguments.key_facts)),
        README: readme(name, arguments.base, answers, facts_about(data, arguments.data)),
        TRAINING: _jsonl(data.training),
        HELD_OUT: _jsonl(data.held_out),
    }
    with readable_disk_errors(folder):
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")


def _yaml(value: Record) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=140)


def _jsonl(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# The command


def ask(arguments: argparse.Namespace, out: Console) -> dict[str, str]:
    """The answers: those of the options, and in a terminal those that the user types."""
    answers = {point.option: getattr(arguments, point.option) or "" for point in POINTS}
    if sys.stdin.isatty() and sys.stdout.isatty():
        if not all(answers.values()) or arguments.data is None:
            print_line(out, "An empty answer leaves a point open; `recipe check` lists those.")
        if arguments.data is None:
            arguments.data = input("File of chats (CSV, JSON, …; Enter: two examples to replace): ").strip() or None
        for point in POINTS:
            answers[point.option] = answers[point.option] or input(f"{point.question} ").strip()
    return answers


def run(arguments: argparse.Namespace) -> int:
    """`mini-chat-gpt recipe new` with a parsed command line."""
    out, folder = console(optional=True), arguments.folder
    if folder.exists():
        raise UserError(f"{folder} exists already and is not overwritten; choose another name or move it away.")
    if arguments.data is not None:  # mistakes in it come before questions
        read_data(arguments.data, arguments.settings)
    answers = ask(arguments, out)
    if arguments.data is None:
        data = Data(list(EXAMPLES[:1]), list(EXAMPLES[1:]))
    else:
        data = split(read_data(arguments.data, arguments.settings), arguments.settings.system.seed)
    write_recipe(folder, arguments, answers, data)
    labels = data.labels
    kind = f"labels: {', '.join(labels)}" if labels else "texts"
    print_line(
        out, f"{folder}: {len(data.training):,} training records, {len(data.held_out):,} held-out ones ({kind})."
    )
    print_line(out, f"What is still missing: mini-chat-gpt recipe check {folder}")
    print_line(out, f"Train and compare:     mini-chat-gpt recipe {folder}")
    flush_or_discard(sys.stdout)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(parse("recipe new", argv))


if __name__ == "__main__":
    exit_with(main)
